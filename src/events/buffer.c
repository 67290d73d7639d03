/*
 * buffer.c
 *		The transaction's events, until it ends.
 *
 * Bulk is what a transaction records that has only historic events, or turns
 * out to be large.  The records of session contexts are live in any case: the
 * worker makes one request of them.
 *
 * Events are encoded when they are recorded, into payloads of the size of a
 * tuple of the outbox; at the end only bytes are left to be written.  There
 * are two streams of payloads: one for the outbox, one for the memory queue.
 *
 * Nothing is done when a subtransaction starts.  Its first event leaves a mark
 * of where the streams were, to which its rollback returns.  A payload that
 * was finished after the mark is cut; since names are defined in a payload
 * where they are first used, its first part is a payload, too.
 *
 * What is allocated lives in a child of TopTransactionContext, and the
 * temporary file belongs to the top transaction's resource owner: at its end
 * both go by themselves.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "commands/tablespace.h"
#include "datatype/timestamp.h"
#include "miscadmin.h"
#include "storage/buffile.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "data/context_slot.h"
#include "data/shared.h"
#include "data/store.h"
#include "events/buffer.h"
#include "events/dedup.h"
#include "events/marks.h"
#include "events/heaps.h"
#include "events/outbox.h"
#include "events/queue.h"
#include "settings.h"

/*
 * A payload: what fits in a tuple of the outbox beside the longest origin.  A
 * request to the collector takes 500 contexts: two payloads that are full of
 * small ones.
 */
#define PAYLOAD_BYTES 7000
#define PAYLOAD_CONTEXTS 250

/*
 * A transaction with more than that is large: it does not fit in one request,
 * or has to spill.
 */
#define LARGE_CONTEXTS 500
#define LARGE_BYTES SPILL_BYTES

/* finished payloads that are kept in memory, for each stream */
#define SPILL_BYTES ((Size) 4 * 1024 * 1024)

/* exposed marks of one transaction; beyond that duplicates may be sent */
#define MAX_EXPOSED 65536

/* how often a process tells the worker of dropped events */
#define ANNOUNCE_MS 1000

#define UNIX_EPOCH_US \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

/* where a payload begins in the temporary file */
typedef struct FilePosition
{
	int fileno;
	off_t offset;
} FilePosition;

/* How far a stream has got. */
typedef struct StreamMark
{
	uint64 finished; /* payloads before the open one */
	bool open;
	EncoderMark at; /* of the open one */
	FilePosition position; /* of the open one, once it has been spilled */
	uint64 bytes; /* of the finished ones */
	uint64 contexts; /* in them */
} StreamMark;

typedef struct Stream
{
	Encoder encoder; /* of the open payload */
	char place[PAYLOAD_BYTES]; /* for it */
	bool open;
	bool has_live; /* events that are not historic, some perhaps undone since */
	uint64 context; /* key of the context whose events it has; 0: of none */

	EventPayload *finished; /* in memory, after those in the file */
	int nfinished;
	int max_finished;
	Size finished_bytes;

	BufFile *file;
	uint64 nspilled;
	FilePosition end; /* of the file's valid part */
	bool cut; /* the file's next payload is valid up to cut_at */
	EncoderMark cut_at;

	/* of all finished payloads, in memory or not */
	uint64 bytes;
	uint64 contexts;
} Stream;

typedef enum StreamKind
{
	STREAM_OUTBOX,
	STREAM_MEMORY,
	STREAM_COUNT
} StreamKind;

/* What a subtransaction returns to when it is rolled back. */
typedef struct Mark
{
	int level; /* of the subtransaction */
	StreamMark streams[STREAM_COUNT];
	uint32 nexposed;
	int nprogress;
} Mark;

/* in the temporary file, before a payload's bytes */
typedef struct SpillHeader
{
	uint32 length;
	uint32 contexts;
	uint32 exposures;
	uint32 goals;
	uint64 context;
} SpillHeader;

static Stream streams[STREAM_COUNT];

/* The rest is valid while recording is true. */
static bool recording = false;
static MemoryContext context = NULL;
static DatabaseState *state;
static uint64 outbox_room; /* bytes of exposures that the outbox can take */
static bool goals_recorded; /* some perhaps undone since */
static bool goals_dropped;
static bool exposures_dropped; /* so don't claim that they were queued */
static bool commit_prepared; /* nothing that commit needs is left to be had */
static bool written; /* to the outbox */
static uint64 ndeduplicated;

static Mark *marks;
static int nmarks;
static int max_marks;

/* exposed marks, oldest first, and an index over them; 0: none */
static uint64 *exposed;
static uint32 nexposed;
static uint32 max_exposed; /* half the size of the index */
static uint64 *exposed_index;

static BackfillProgress *progress;
static int nprogress;
static int max_progress;

/* what goes to the memory queue at commit */
static EventPayload *to_queue;
static int nto_queue;
static uint64 contexts_written[LANE_COUNT]; /* but those that have to wait */
static uint64 exposures_written;
static uint64 goals_written;

/* what was written of the context that recorded last */
static uint64 last_context;
static uint64 context_events_written;
static uint64 context_sequence_written;

/* records of contexts are numbered, for the life of the session */
static uint64 last_sequence = 0;

int64
buffer_time_ms(TimestampTz time)
{
	return (time + UNIX_EPOCH_US) / 1000;
}

/*
 * The beginning and the end
 */

void
buffer_forget(void)
{
	if (likely(!recording))
		return;
	for (int kind = 0; kind < STREAM_COUNT; kind++)
	{
		Stream *stream = &streams[kind];

		stream->open = false;
		stream->finished = NULL;
		stream->nfinished = 0;
		stream->max_finished = 0;
		stream->finished_bytes = 0;
		stream->file = NULL;
		stream->nspilled = 0;
		stream->cut = false;
		stream->bytes = 0;
		stream->contexts = 0;
		stream->has_live = false;
	}
	recording = false;
	context = NULL;
	state = NULL;
	goals_recorded = false;
	goals_dropped = false;
	exposures_dropped = false;
	commit_prepared = false;
	written = false;
	ndeduplicated = 0;
	marks = NULL;
	nmarks = 0;
	max_marks = 0;
	exposed = NULL;
	nexposed = 0;
	max_exposed = 0;
	exposed_index = NULL;
	progress = NULL;
	nprogress = 0;
	max_progress = 0;
	to_queue = NULL;
	nto_queue = 0;
	memset(contexts_written, 0, sizeof(contexts_written));
	exposures_written = 0;
	goals_written = 0;
	last_context = 0;
	context_events_written = 0;
	context_sequence_written = 0;
}

/* Whether what a stream has is bulk for being so much. */
static bool
is_large(const Stream *stream)
{
	uint64 contexts =
		stream->contexts + (stream->open ? stream->encoder.at.contexts : 0);

	return contexts > LARGE_CONTEXTS ||
		   (contexts > 1 && stream->bytes >= LARGE_BYTES);
}

/* The lane of what a stream has. */
static EventLane
lane_of(const Stream *stream)
{
	bool bulk = !stream->has_live || nprogress > 0 || is_large(stream);

	return bulk ? LANE_BULK : LANE_LIVE;
}

/* Bytes of exposures that the outbox takes before their lane is full. */
static void
measure_room(void)
{
	const Stream *stream = &streams[STREAM_OUTBOX];
	uint64 most = (uint64) settings_outbox_max_size * 1024 * 1024;
	uint64 used =
		stream->bytes + outbox_size(is_large(stream) ? LANE_BULK : LANE_LIVE);

	outbox_room = most > used ? most - used : 0;
}

/* The transaction's first event: finds all that is needed at its end. */
static void
start_recording(void)
{
	if (IsParallelWorker())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("cannot record events in a parallel worker"),
				 errhint("A function that calls absmartly_treatment() or "
						 "absmartly_track() must not be PARALLEL SAFE.")));
	outbox_require();
	state = shared_my_database();
	if (state == NULL && shared_available())
		state = shared_database(MyDatabaseId, true);
	context = AllocSetContextCreate(TopTransactionContext, "absmartly events",
									ALLOCSET_DEFAULT_SIZES);
	measure_room();
	recording = true;
}

/*
 * What is recorded now is going to be written to the outbox: takes what that
 * needs and may not be there at commit.  That is places in the lock table, one
 * of them for a transaction id.  Only a query that runs in parallel can have
 * none given, and leaves it to the next event, or to the commit.
 */
static void
prepare_commit(void)
{
	if (likely(commit_prepared))
		return;
	if (!IsInParallelMode())
		(void) GetTopTransactionId();
	heaps_prepare(outbox_active_heap(LANE_LIVE));
	(void) heaps_reserve(true);
	commit_prepared = TransactionIdIsValid(GetTopTransactionIdIfAny());
}

static StreamKind
stream_for(bool goal)
{
	if (XactReadOnly)
	{
		if (!shared_available())
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot record events in a read-only transaction "
							"without the background worker of absmartly"),
					 errhint("Add absmartly to \"shared_preload_libraries\" "
							 "and restart the server.")));
		return STREAM_MEMORY;
	}
	if (settings_durability == DURABILITY_TRANSACTION || !shared_available())
		return STREAM_OUTBOX;
	return goal && settings_durability == DURABILITY_GOALS ? STREAM_OUTBOX
														   : STREAM_MEMORY;
}

/*
 * Streams
 */

static uint64
finished_count(const Stream *stream)
{
	return stream->nspilled + (stream->cut ? 1 : 0) + stream->nfinished;
}

static void
remember_position(FilePosition *position, BufFile *file)
{
	BufFileTell(file, &position->fileno, &position->offset);
}

static void
seek(BufFile *file, const FilePosition *position)
{
	if (BufFileSeek(file, position->fileno, position->offset, SEEK_SET) != 0)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not position the temporary file of "
							   "events: %m")));
}

static void
read_exactly(BufFile *file, void *data, size_t length)
{
	if (BufFileRead(file, data, length) != length)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
						errmsg("could not read the temporary file of events")));
}

/* The next payload of the file, in the current memory context. */
static EventPayload
read_payload(BufFile *file)
{
	SpillHeader header;
	EventPayload payload;
	char *data;

	read_exactly(file, &header, sizeof(header));
	data = palloc(header.length);
	read_exactly(file, data, header.length);
	payload.data = data;
	payload.length = header.length;
	payload.contexts = header.contexts;
	payload.exposures = header.exposures;
	payload.goals = header.goals;
	payload.context = header.context;
	payload.lane = LANE_LIVE;
	payload.sequence = 0;
	payload.prepared = false;
	return payload;
}

static void
payload_cut(EventPayload *payload, const EncoderMark *at)
{
	payload->length = at->length;
	payload->contexts = at->contexts;
	payload->exposures = at->exposures;
	payload->goals = at->goals;
}

static void
add_finished(Stream *stream, const EventPayload *payload)
{
	if (stream->nfinished == stream->max_finished)
	{
		int most = Max(stream->max_finished * 2, 16);

		if (stream->finished == NULL)
			stream->finished =
				MemoryContextAlloc(context, most * sizeof(EventPayload));
		else
			stream->finished =
				repalloc(stream->finished, most * sizeof(EventPayload));
		stream->max_finished = most;
	}
	stream->finished[stream->nfinished++] = *payload;
	stream->finished_bytes += payload->length;
	stream->bytes += payload->length;
	stream->contexts += payload->contexts;
}

/*
 * Brings back the payload at the end of the file that a rollback has cut.  Not
 * done by the rollback itself: that must not fail.
 */
static void
restore_cut(Stream *stream)
{
	MemoryContext previous;
	EventPayload payload;

	Assert(stream->nfinished == 0);
	previous = MemoryContextSwitchTo(context);
	seek(stream->file, &stream->end);
	payload = read_payload(stream->file);
	payload_cut(&payload, &stream->cut_at);
	add_finished(stream, &payload);
	stream->cut = false;
	MemoryContextSwitchTo(previous);
}

/* Moves the finished payloads to the temporary file, with no block left. */
static void
spill(StreamKind kind)
{
	const FilePosition start = {0, 0};
	FilePosition end;
	Stream *stream = &streams[kind];
	MemoryContext previous = MemoryContextSwitchTo(context);
	ResourceOwner owner = CurrentResourceOwner;

	/* it must outlive the subtransaction */
	CurrentResourceOwner = TopTransactionResourceOwner;
	if (stream->file == NULL)
	{
		PrepareTempTablespaces();
		stream->file = BufFileCreateTemp(false);
		remember_position(&stream->end, stream->file);
	}
	else
		seek(stream->file, &stream->end);
	for (int i = 0; i < stream->nfinished; i++)
	{
		const EventPayload *payload = &stream->finished[i];
		SpillHeader header = {payload->length, payload->contexts,
							  payload->exposures, payload->goals,
							  payload->context};

		/* who returns to the middle of this payload must find it */
		for (int at = nmarks - 1; at >= 0; at--)
		{
			StreamMark *mark = &marks[at].streams[kind];

			if (mark->finished < stream->nspilled + i)
				break;
			if (mark->finished == stream->nspilled + i)
				remember_position(&mark->position, stream->file);
		}
		BufFileWrite(stream->file, &header, sizeof(header));
		BufFileWrite(stream->file, unconstify(char *, payload->data),
					 payload->length);
	}
	remember_position(&end, stream->file);
	/* writes the last block, which must not fail at commit */
	seek(stream->file, &start);
	stream->end = end;
	for (int i = 0; i < stream->nfinished; i++)
		pfree(unconstify(char *, stream->finished[i].data));
	stream->nspilled += stream->nfinished;
	stream->nfinished = 0;
	stream->finished_bytes = 0;
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(previous);
}

/* The open payload, as far as it has got. */
static EventPayload
open_payload(const Stream *stream)
{
	const EncoderMark *at = &stream->encoder.at;
	EventPayload payload = {.data = stream->encoder.data,
							.length = at->length,
							.contexts = at->contexts,
							.exposures = at->exposures,
							.goals = at->goals,
							.context = stream->context};

	return payload;
}

static bool
has_open_events(const Stream *stream)
{
	return stream->open && stream->encoder.at.contexts > 0;
}

/* Finishes the open payload. */
static void
finish_payload(StreamKind kind)
{
	Stream *stream = &streams[kind];

	if (has_open_events(stream))
	{
		EventPayload payload = open_payload(stream);

		if (payload.data == stream->place)
		{
			char *copy = MemoryContextAlloc(context, payload.length);

			memcpy(copy, payload.data, payload.length);
			payload.data = copy;
		}
		add_finished(stream, &payload);
		if (kind == STREAM_OUTBOX)
			measure_room();
	}
	stream->open = false;
	/* memory's own stream is bounded, and stays there */
	if (kind == STREAM_OUTBOX && stream->finished_bytes >= SPILL_BYTES)
		spill(kind);
}

/* An exposure, a goal, or the context alone. */
static inline bool
encode(Encoder *encoder, const EventContext *event_context,
	   const EventExposure *exposure, const EventGoal *goal)
{
	if (exposure != NULL)
		return encoder_add_exposure(encoder, event_context, exposure);
	if (goal != NULL)
		return encoder_add_goal(encoder, event_context, goal);
	return encoder_add_context(encoder, event_context);
}

/* An event that is larger than a usual payload gets one of its own. */
static void
add_large(StreamKind kind, const EventContext *event_context,
		  const EventExposure *exposure, const EventGoal *goal, size_t bound)
{
	Stream *stream = &streams[kind];
	uint32 capacity = (uint32) Max(bound, PAYLOAD_BYTES);
	char *data = MemoryContextAlloc(context, capacity);

	encoder_begin(&stream->encoder, data, capacity);
	stream->open = true;
	if (!encode(&stream->encoder, event_context, exposure, goal))
		elog(ERROR, "an event does not fit in %u bytes", capacity);
	finish_payload(kind);
}

static size_t
event_bound(const EventContext *event_context, const EventExposure *exposure,
			const EventGoal *goal)
{
	if (exposure != NULL)
		return encoder_exposure_bound(event_context, exposure);
	if (goal != NULL)
		return encoder_goal_bound(event_context, goal);
	return encoder_context_bound(event_context);
}

/* key is that of the context whose event it is; 0: of none. */
static void
stream_add(StreamKind kind, uint64 key, const EventContext *event_context,
		   const EventExposure *exposure, const EventGoal *goal)
{
	Stream *stream = &streams[kind];

	if (unlikely(stream->cut))
		restore_cut(stream);
	if (unlikely(stream->context != key))
	{
		if (stream->open)
			finish_payload(kind);
		stream->context = key;
	}
	stream->has_live |= key == 0 && !event_context->historic;
	if (stream->open)
	{
		EncoderMark before = stream->encoder.at;

		if (likely(encode(&stream->encoder, event_context, exposure, goal)))
		{
			if (likely(stream->encoder.at.contexts <= PAYLOAD_CONTEXTS))
				return;
			encoder_truncate(&stream->encoder, &before);
		}
		finish_payload(kind);
	}
	encoder_begin(&stream->encoder, stream->place, PAYLOAD_BYTES);
	stream->open = true;
	if (likely(encode(&stream->encoder, event_context, exposure, goal)))
		return;
	stream->open = false;
	add_large(kind, event_context, exposure, goal,
			  event_bound(event_context, exposure, goal));
}

/*
 * Subtransactions
 */

static void
mark_stream(const Stream *stream, StreamMark *mark)
{
	mark->finished = finished_count(stream);
	mark->open = stream->open;
	mark->at = stream->encoder.at;
	mark->bytes = stream->bytes;
	mark->contexts = stream->contexts;
}

/* The first event of a subtransaction leaves a mark. */
static void
mark_level(void)
{
	int level = GetCurrentTransactionNestLevel();
	Mark *mark;

	if (!marks_wanted(level,
					  nmarks > 0 ? marks[nmarks - 1].level : MARKS_TOP_LEVEL))
		return;
	if (nmarks == max_marks)
	{
		int most = Max(max_marks * 2, 16);

		if (marks == NULL)
			marks = MemoryContextAlloc(context, most * sizeof(Mark));
		else
			marks = repalloc(marks, most * sizeof(Mark));
		max_marks = most;
	}
	mark = &marks[nmarks++];
	mark->level = level;
	for (int kind = 0; kind < STREAM_COUNT; kind++)
		mark_stream(&streams[kind], &mark->streams[kind]);
	mark->nexposed = nexposed;
	mark->nprogress = nprogress;
}

/*
 * Returns to a mark.  Part of a rollback: allocates nothing, reads nothing,
 * raises nothing.
 */
static void
stream_return(Stream *stream, const StreamMark *mark)
{
	bool part = mark->open && mark->at.contexts > 0;
	int keep;

	if (mark->finished == finished_count(stream))
	{
		if (!mark->open)
			stream->open = false;
		else if (stream->open)
			encoder_truncate(&stream->encoder, &mark->at);
		return;
	}

	/* what was open then has been finished since */
	stream->open = false;
	stream->bytes = mark->bytes;
	stream->contexts = mark->contexts;
	if (mark->finished < stream->nspilled + (stream->cut ? 1 : 0))
	{
		if (mark->finished < stream->nspilled)
			stream->end = mark->position;
		stream->nspilled = mark->finished;
		stream->cut = part;
		stream->cut_at = mark->at;
		keep = 0;
		part = false;
	}
	else
		keep = (int) (mark->finished - stream->nspilled);

	while (stream->nfinished > keep)
	{
		EventPayload *payload = &stream->finished[stream->nfinished - 1];

		stream->finished_bytes -= payload->length;
		if (part && stream->nfinished == keep + 1)
		{
			payload_cut(payload, &mark->at);
			stream->finished_bytes += payload->length;
			stream->bytes += payload->length;
			stream->contexts += payload->contexts;
			break;
		}
		pfree(unconstify(char *, payload->data));
		stream->nfinished--;
	}
}

static uint32
exposed_slot(uint64 key)
{
	return (uint32) (key ^ (key >> 32)) & (2 * max_exposed - 1);
}

/*
 * The last mark's key is in the last slot of its chain, so it can be taken out
 * without leaving a hole.
 */
static void
forget_exposed(uint32 keep)
{
	while (nexposed > keep)
	{
		uint32 slot = exposed_slot(exposed[nexposed - 1]);

		while (exposed_index[slot] != exposed[nexposed - 1])
			slot = (slot + 1) & (2 * max_exposed - 1);
		exposed_index[slot] = 0;
		nexposed--;
	}
}

void
buffer_subtransaction_end(SubXactEvent event)
{
	int level;
	Mark *mark;

	if (nmarks == 0 ||
		(event != SUBXACT_EVENT_ABORT_SUB && event != SUBXACT_EVENT_COMMIT_SUB))
		return;
	level = GetCurrentTransactionNestLevel();
	mark = &marks[nmarks - 1];
	if (mark->level < level)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		for (int kind = 0; kind < STREAM_COUNT; kind++)
			stream_return(&streams[kind], &mark->streams[kind]);
		forget_exposed(mark->nexposed);
		nprogress = mark->nprogress;
		nmarks--;
	}
	else if (marks_merge(level, nmarks > 1 ? marks[nmarks - 2].level
										   : MARKS_TOP_LEVEL))
		nmarks--;
	else
		mark->level = level - 1;
}

/*
 * Recording
 */

bool
buffer_event_fits(size_t size)
{
	return size <= (size_t) settings_max_event_size * 1024;
}

static void
check_size(size_t size)
{
	if (!buffer_event_fits(size))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("event is too large"),
				 errdetail("It has %zu bytes, \"absmartly.max_event_size\" is "
						   "%d kB.",
						   size, settings_max_event_size)));
}

static void
check_context(const EventContext *event_context)
{
	if (event_context->nunits > ENCODING_MAX_UNITS)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("too many units for an event"),
						errdetail("There may be %d, these are %u.",
								  ENCODING_MAX_UNITS, event_context->nunits)));
	if (event_context->nattributes > ENCODING_MAX_ATTRIBUTES)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("too many attributes for an event"),
						errdetail("There may be %d, these are %u.",
								  ENCODING_MAX_ATTRIBUTES,
								  event_context->nattributes)));
}

/* Whether the memory queue can hold no more than what is waiting for it. */
static bool
memory_is_full(void)
{
	return state == NULL || streams[STREAM_MEMORY].bytes >= queue_capacity();
}

/*
 * Says once in a session that there are exposures which the collector takes
 * from nobody.  What decides about them is the data.
 */
static void
drop_impossible(const EventExposure *exposure)
{
	static bool told = false;

	shared_count(COUNTER_EXPOSURES_IMPOSSIBLE, 1);
	if (told)
		return;
	told = true;
	ereport(WARNING,
			(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
			 errmsg("an exposure of experiment \"%s\" is not queued",
					store_message(
						pnstrdup(exposure->name.data, exposure->name.length),
						CurrentMemoryContext)),
			 exposure->name.length == 0
				 ? errdetail("The collector takes no empty name.")
			 : exposure->variant < 0 || exposure->variant > ENGINE_MAX_VARIANT
				 ? errdetail("Its variant is %d; the collector takes those "
							 "from 0 to %d.",
							 exposure->variant, ENGINE_MAX_VARIANT)
				 : errdetail("The id of its experiment or holdout has more "
							 "than the 32 bits that the collector takes."),
			 errhint("Further warnings of this kind are suppressed in this "
					 "session; absmartly_stat counts all such exposures.")));
}

/* Whether the collector may take it: protocol 1. */
static inline bool
is_possible(const EventExposure *exposure)
{
	return exposure->variant >= 0 && exposure->variant <= ENGINE_MAX_VARIANT &&
		   exposure->name.length > 0 && exposure->id == (int32) exposure->id &&
		   exposure->holdout_id == (int32) exposure->holdout_id;
}

/* False if it was dropped. */
static inline bool
record_exposure(uint64 key, const EventContext *event_context,
				const EventExposure *exposure)
{
	StreamKind kind;

	if (unlikely(!is_possible(exposure)))
	{
		drop_impossible(exposure);
		return false;
	}
	if (unlikely(!recording))
		start_recording();
	kind = stream_for(false);
	check_context(event_context);
	if (event_context->nattributes > 0)
		check_size(encoder_exposure_bound(event_context, exposure));
	if (unlikely(kind == STREAM_OUTBOX
					 ? outbox_room == 0 &&
						   (key != 0 || !event_context->historic)
					 : memory_is_full()))
	{
		exposures_dropped = true;
		shared_count(COUNTER_EXPOSURES_DROPPED, 1);
		return false;
	}
	mark_level();
	stream_add(kind, key, event_context, exposure, NULL);
	return true;
}

static inline bool
record_goal(uint64 key, const EventContext *event_context,
			const EventGoal *goal)
{
	StreamKind kind;

	if (unlikely(!recording))
		start_recording();
	kind = stream_for(true);
	check_context(event_context);
	check_size(encoder_goal_bound(event_context, goal));
	if (unlikely(kind == STREAM_MEMORY && memory_is_full()))
	{
		goals_dropped = true;
		shared_count(COUNTER_GOALS_DROPPED, 1);
		return false;
	}
	if (kind == STREAM_OUTBOX)
		prepare_commit();
	mark_level();
	goals_recorded = true;
	stream_add(kind, key, event_context, NULL, goal);
	return true;
}

bool
buffer_exposure(const EventContext *event_context,
				const EventExposure *exposure)
{
	return record_exposure(0, event_context, exposure);
}

void
buffer_goal(const EventContext *event_context, const EventGoal *goal)
{
	(void) record_goal(0, event_context, goal);
}

/* What was written so far is another context's. */
static void
turn_to_context(uint64 key)
{
	if (likely(last_context == key))
		return;
	last_context = key;
	context_events_written = 0;
	context_sequence_written = 0;
}

bool
buffer_context_exposure(uint64 key, const EventContext *event_context,
						const EventExposure *exposure)
{
	turn_to_context(key);
	return record_exposure(key, event_context, exposure);
}

bool
buffer_context_goal(uint64 key, const EventContext *event_context,
					const EventGoal *goal)
{
	turn_to_context(key);
	return record_goal(key, event_context, goal);
}

void
buffer_prepare(void)
{
	if (!recording)
		start_recording();
}

bool
buffer_is_recording(void)
{
	return recording;
}

void
buffer_context_header(uint64 key, const EventContext *event_context)
{
	turn_to_context(key);
	mark_level();
	stream_add(stream_for(true), key, event_context, NULL, NULL);
}

uint64
buffer_leave_context(uint64 key, const EventContext *event_context)
{
	uint32 capacity = (uint32) encoder_context_bound(event_context) + 64;
	Encoder *encoder = palloc(sizeof(Encoder));
	char *data = palloc(capacity);
	DatabaseState *database = shared_my_database();
	bool first = false;
	uint64 left = 0;

	encoder_begin(encoder, data, capacity);
	if (database != NULL && encoder_add_context(encoder, event_context))
	{
		EventPayload payload = {.data = data,
								.length = encoder->at.length,
								.contexts = encoder->at.contexts,
								.context = key,
								.sequence = ++last_sequence};

		if (queue_put(database, record_current_origin(), &payload, &first))
		{
			left = payload.sequence;
			context_slot_commit(key, left);
		}
	}
	pfree(data);
	pfree(encoder);
	return left;
}

void
buffer_progress(const BackfillProgress *backfill)
{
	BackfillProgress *entry;

	if (!recording)
		start_recording();
	prepare_commit();
	mark_level();
	if (nprogress == max_progress)
	{
		int most = Max(max_progress * 2, 4);

		if (progress == NULL)
			progress =
				MemoryContextAlloc(context, most * sizeof(BackfillProgress));
		else
			progress = repalloc(progress, most * sizeof(BackfillProgress));
		max_progress = most;
	}
	entry = &progress[nprogress];
	*entry = *backfill;
	entry->name = MemoryContextStrdup(context, backfill->name);
	entry->source = MemoryContextStrdup(context, backfill->source);
	if (backfill->position != NULL)
		entry->position = MemoryContextStrdup(context, backfill->position);
	nprogress++;
}

/*
 * Exposed marks
 */

static bool
exposed_here(uint64 key)
{
	uint32 slot;

	if (nexposed == 0)
		return false;
	slot = exposed_slot(key);
	while (exposed_index[slot] != 0)
	{
		if (exposed_index[slot] == key)
			return true;
		slot = (slot + 1) & (2 * max_exposed - 1);
	}
	return false;
}

bool
buffer_exposed(uint64 key, TimestampTz now)
{
	dedup_prefetch(key);
	if (exposed_here(key) ||
		dedup_seen(key, now, settings_exposure_dedup_interval))
	{
		/* at the end of the transaction, if that has something to do */
		if (recording)
			ndeduplicated++;
		else
			shared_count(COUNTER_EXPOSURES_DEDUPLICATED, 1);
		return true;
	}
	return false;
}

static void
index_exposed(uint32 number)
{
	uint32 slot = exposed_slot(exposed[number]);

	while (exposed_index[slot] != 0)
		slot = (slot + 1) & (2 * max_exposed - 1);
	exposed_index[slot] = exposed[number];
}

static void
grow_exposed(void)
{
	uint32 most = max_exposed == 0 ? 64 : max_exposed * 4;
	uint64 *keys = MemoryContextAlloc(context, most * sizeof(uint64));
	uint64 *slots = MemoryContextAllocZero(context, 2 * most * sizeof(uint64));

	if (exposed != NULL)
	{
		memcpy(keys, exposed, nexposed * sizeof(uint64));
		pfree(exposed);
		pfree(exposed_index);
	}
	exposed = keys;
	exposed_index = slots;
	max_exposed = most;
	for (uint32 i = 0; i < nexposed; i++)
		index_exposed(i);
}

void
buffer_mark_exposed(uint64 key)
{
	if (!recording || exposures_dropped || nexposed >= MAX_EXPOSED)
		return;
	if (nexposed >= max_exposed)
		grow_exposed();
	exposed[nexposed] = key;
	index_exposed(nexposed++);
}

/*
 * The end of the transaction
 */

/*
 * Modules that write at PRE_COMMIT after us, and must not find their commit
 * asynchronous: Citus records its distributed transactions there.
 */
static bool
others_write_later(void)
{
	return GetConfigOption("citus.shard_count", true, false) != NULL;
}

/*
 * An exposure must not turn a SELECT into a wait for the disk.  A transaction
 * without an id has written nothing yet.
 */
static void
choose_commit(void)
{
	if (goals_recorded || nprogress > 0 || !settings_async_commit ||
		TransactionIdIsValid(GetTopTransactionIdIfAny()) ||
		others_write_later())
		return;
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

static bool
stream_is_empty(const Stream *stream)
{
	return finished_count(stream) == 0 && !has_open_events(stream);
}

/* Numbers the records of contexts, in the order in which they are written. */
static void
number_payload(EventPayload *payload, bool prepare)
{
	if (likely(payload->context == 0))
		return;
	payload->sequence = ++last_sequence;
	payload->prepared = prepare;
}

static void
choose_lane(EventPayload *payload, EventLane lane)
{
	payload->lane = payload->context == 0 ? lane : LANE_LIVE;
}

/* A payload is where the worker finds it, or will when this has committed. */
static void
count_written(const EventPayload *payload)
{
	exposures_written += payload->exposures;
	goals_written += payload->goals;
	if (unlikely(payload->context != 0))
	{
		if (payload->context == last_context)
		{
			context_events_written += payload->exposures + payload->goals;
			context_sequence_written = payload->sequence;
		}
		if (context_slot_holds(payload->context, payload->sequence,
							   GetCurrentTimestamp()))
			return;
	}
	contexts_written[payload->lane] += payload->contexts;
}

/* Writers of the lanes, made when there is something to write. */
typedef struct Writing
{
	OutboxWriter *writers[LANE_COUNT]; /* NULL: the outbox is gone */
	bool begun[LANE_COUNT];
	bool prepare;
} Writing;

static OutboxWriter *
writer_for(Writing *writing, EventLane lane)
{
	if (!writing->begun[lane])
		writing->writers[lane] = outbox_write_begin(lane, writing->prepare);
	writing->begun[lane] = true;
	return writing->writers[lane];
}

static void
write_payload(Writing *writing, EventPayload *payload, EventLane lane)
{
	OutboxWriter *writer;

	number_payload(payload, writing->prepare);
	choose_lane(payload, lane);
	writer = writer_for(writing, payload->lane);
	if (writer == NULL)
		return;
	outbox_write(writer, payload);
	count_written(payload);
}

/* Says how far a backfill is, and which one's events are written. */
static void
write_progress(OutboxWriter *writer)
{
	static char note[PROGRESS_NOTE_SIZE];

	for (int i = 0; i < nprogress; i++)
	{
		progress_note(&progress[i], note);
		progress_write(&progress[i], outbox_write_note(writer, note));
	}
}

static void
write_stream(Writing *writing, Stream *stream)
{
	EventLane lane;

	if (stream->cut)
		restore_cut(stream);
	lane = lane_of(stream);
	if (stream->nspilled > 0)
	{
		FilePosition start = {0, 0};

		seek(stream->file, &start);
		for (uint64 i = 0; i < stream->nspilled; i++)
		{
			EventPayload payload = read_payload(stream->file);

			CHECK_FOR_INTERRUPTS();
			write_payload(writing, &payload, lane);
			pfree(unconstify(char *, payload.data));
		}
	}
	for (int i = 0; i < stream->nfinished; i++)
		write_payload(writing, &stream->finished[i], lane);
	if (has_open_events(stream))
	{
		EventPayload payload = open_payload(stream);

		write_payload(writing, &payload, lane);
	}
}

/* False: the outbox is gone. */
static bool
write_all(bool prepare)
{
	Writing writing = {.prepare = prepare};
	bool any = false;

	/* what a backfill records is bulk */
	if (nprogress > 0 && writer_for(&writing, LANE_BULK) != NULL)
		write_progress(writing.writers[LANE_BULK]);
	write_stream(&writing, &streams[STREAM_OUTBOX]);
	if (prepare)
		write_stream(&writing, &streams[STREAM_MEMORY]);
	for (int lane = 0; lane < LANE_COUNT; lane++)
		if (writing.writers[lane] != NULL)
		{
			outbox_write_end(writing.writers[lane]);
			any = true;
		}
	return any;
}

/*
 * Lists a stream's payloads for the memory queue, as far as that could hold
 * them.
 */
static void
list_for_queue(Stream *stream)
{
	Size bytes = 0;
	int before = nto_queue;
	EventLane lane;
	int most;

	if (stream->cut)
		restore_cut(stream);
	lane = lane_of(stream);
	most = (int) Min(finished_count(stream) + 1,
					 MaxAllocSize / sizeof(EventPayload) / 2);
	if (to_queue == NULL)
		to_queue = palloc(most * sizeof(EventPayload));
	else
		to_queue =
			repalloc(to_queue, (nto_queue + most) * sizeof(EventPayload));
	if (stream->nspilled > 0)
	{
		FilePosition start = {0, 0};

		seek(stream->file, &start);
		for (uint64 i = 0; i < stream->nspilled && bytes < queue_capacity();
			 i++)
		{
			CHECK_FOR_INTERRUPTS();
			to_queue[nto_queue] = read_payload(stream->file);
			bytes += to_queue[nto_queue++].length;
		}
	}
	for (int i = 0; i < stream->nfinished; i++)
		to_queue[nto_queue++] = stream->finished[i];
	if (has_open_events(stream))
		to_queue[nto_queue++] = open_payload(stream);
	for (int i = before; i < nto_queue; i++)
	{
		number_payload(&to_queue[i], false);
		choose_lane(&to_queue[i], lane);
	}
}

/*
 * Whether the transaction can do without writing anything.  It has written
 * nothing else, and an exposure is not worth a transaction id and a commit
 * record, let alone a wait for the disk: these cost more than the rest of a
 * short SELECT.  So its exposures go to the memory queue, from which the worker
 * sends them, or writes them to the outbox, those of many transactions at once,
 * before a crash could take more than from an asynchronous commit.
 */
static bool
can_leave_to_worker(const Stream *outbox)
{
	return settings_async_commit && !goals_recorded && nprogress == 0 &&
		   finished_count(outbox) == 0 &&
		   !TransactionIdIsValid(GetTopTransactionIdIfAny()) && state != NULL &&
		   state->worker_pid != 0 && !state->worker_leaves &&
		   queue_has_room(PAYLOAD_BYTES);
}

/*
 * Whether what writing locks can be had.  For exposures alone nothing was
 * reserved: they are not worth that, and rather dropped than the commit failed.
 */
static bool
has_places(void)
{
	if (goals_recorded || nprogress > 0)
		return true;
	if (!heaps_reserve(false))
		return false;
	/* the transaction's id needs one of them */
	if (!TransactionIdIsValid(GetTopTransactionIdIfAny()))
		(void) heaps_unreserve();
	return true;
}

void
buffer_flush(bool prepare)
{
	MemoryContext previous;
	ResourceOwner owner = CurrentResourceOwner;
	Stream *outbox = &streams[STREAM_OUTBOX];
	Stream *memory = &streams[STREAM_MEMORY];
	bool writable = !XactReadOnly && !RecoveryInProgress();

	if (likely(!recording))
		return;
	/* its place may be another database's by now: nobody serves this one */
	if (state != NULL && state->database != MyDatabaseId)
		state = NULL;
	previous = MemoryContextSwitchTo(context);
	/* in a procedure the present one is its portal's */
	CurrentResourceOwner = TopTransactionResourceOwner;

	if (writable && !prepare &&
		(can_leave_to_worker(outbox) ||
		 (!stream_is_empty(outbox) && !has_places())))
		writable = false;
	if (writable && (!stream_is_empty(outbox) || nprogress > 0 ||
					 (prepare && !stream_is_empty(memory))))
	{
		choose_commit();
		written = write_all(prepare);
	}
	if (!writable && !stream_is_empty(outbox))
	{
		if (shared_available())
			list_for_queue(outbox);
		else
			ereport(WARNING,
					(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
					 errmsg("events of a transaction that was made read-only "
							"are lost"),
					 errhint("Add absmartly to \"shared_preload_libraries\" "
							 "to have them kept in memory.")));
	}
	if (!(prepare && writable) && !stream_is_empty(memory))
		list_for_queue(memory);

	for (int kind = 0; kind < STREAM_COUNT; kind++)
		if (streams[kind].file != NULL)
		{
			BufFileClose(streams[kind].file);
			streams[kind].file = NULL;
		}

	/* nothing could tell whether it is going to commit */
	if (prepare && nto_queue > 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a read-only transaction that has "
						"recorded events")));
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(previous);
}

/* Allocates nothing, raises nothing. */
static void
publish_marks(void)
{
	TimestampTz now;

	if (nexposed == 0 || exposures_dropped)
		return;
	now = GetCurrentTimestamp();
	for (uint32 i = 0; i < nexposed; i++)
		dedup_mark(exposed[i], now);
}

static void
announce_drops(void)
{
	static TimestampTz announced_at = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (TimestampDifferenceExceeds(announced_at, now, ANNOUNCE_MS))
	{
		announced_at = now;
		/* it shall look whether there is room by now */
		shared_events_undone(state);
		shared_wake_worker(state);
	}
}

void
buffer_undone(void)
{
	if (recording && written && state != NULL)
		shared_events_undone(state);
}

void
buffer_hand_over(void)
{
	if (likely(!recording))
		return;
	if (state != NULL)
	{
		const EventOrigin *origin =
			nto_queue > 0 ? record_current_origin() : NULL;
		bool first = false;

		for (int i = 0; i < nto_queue; i++)
		{
			const EventPayload *payload = &to_queue[i];

			if (queue_put(state, origin, payload, &first))
			{
				count_written(payload);
				continue;
			}
			shared_count(COUNTER_EXPOSURES_DROPPED, payload->exposures);
			shared_count(COUNTER_GOALS_DROPPED, payload->goals);
			exposures_dropped |= payload->exposures > 0;
			goals_dropped |= payload->goals > 0;
		}
		if (unlikely(context_sequence_written > 0))
			context_slot_commit(last_context, context_sequence_written);
		shared_count(COUNTER_EXPOSURES_QUEUED, exposures_written);
		shared_count(COUNTER_GOALS_QUEUED, goals_written);
		shared_count(COUNTER_EXPOSURES_DEDUPLICATED, ndeduplicated);
		for (int lane = 0; lane < LANE_COUNT; lane++)
			if (contexts_written[lane] > 0)
				shared_events_committed(state, (EventLane) lane,
										contexts_written[lane]);
		if (first)
			shared_wake_worker(state);
		if (exposures_dropped || goals_dropped)
			announce_drops();
	}
	publish_marks();
}

uint64
buffer_context_committed(uint64 key, uint64 *sequence)
{
	bool mine = recording && last_context == key;

	*sequence = mine ? context_sequence_written : 0;
	return mine ? context_events_written : 0;
}
