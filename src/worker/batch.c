/*
 * batch.c
 *		Batches: what is sent to the collector in one request.
 *
 * Reading takes the memory queue first, then the outbox, and turns events
 * into text as it goes.  It stops between two items, whenever a batch is full,
 * and goes on there with the next one.
 *
 * What session contexts have recorded comes at the end of a pass, or when it
 * takes too much memory: for each of them one item of all its records, in their
 * order, with the newest of the headers (units and attributes) in them.  Where
 * that is too large for a batch, it is cut between two records if possible, and
 * each part is a source of its own.
 */
#include "postgres.h"

#include "lib/ilist.h"
#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "data/context_slot.h"
#include "events/encoding.h"
#include "events/outbox.h"
#include "events/queue.h"
#include "worker/batch.h"
#include "worker/contexts.h"
#include "worker/render.h"
#include "worker/source.h"

#define BODY_START "{\"requests\":["
#define BODY_END "]}"
#define START_LENGTH ((int) sizeof(BODY_START) - 1)

#define FIRST_ITEMS 16
#define FEW_RECORDS 8
/* of the payload of a dead letter, if its event does not need more */
#define LETTER_SIZE ((uint32) 4 * 1024)
/* of what encoder_set_delay() writes */
#define DELAY_BOUND ((Size) 16)
/* of records that are set aside */
#define MAX_ASIDE_BYTES ((Size) 8 * 1024 * 1024)
/* what one takes beside its payload, about */
#define RECORD_OVERHEAD ((Size) 128)

/* Records of a session context and an origin that were set aside. */
typedef struct AsideKey
{
	uint64 context;
	const EventOrigin *origin;
} AsideKey;

typedef struct Aside
{
	AsideKey key; /* first: the hash table's */
	dlist_node node; /* in the order of their coming */
	EventRecord **records; /* few, or what has more room */
	int nrecords;
	int max_records;
	EventRecord *few[FEW_RECORDS];
} Aside;

/* How many records of a context are there. */
typedef struct ContextCount
{
	uint64 context; /* first: the hash table's */
	int records; /* 0: one was to come, and did not */
} ContextCount;

/* An entry of the memory queue that a context holds; it is taken. */
typedef struct HeldEntry
{
	uint64 context;
	uint64 sequence;
	int64 id;
	int32 entry;
} HeldEntry;

/* An event of a source that the collector has refused for good. */
typedef struct Refused
{
	uint32 number;
	char *words;
} Refused;

static MemoryContext batch_context = NULL;
static bool in_recovery;
static dlist_head live = DLIST_STATIC_INIT(live);
static dlist_head done = DLIST_STATIC_INIT(done);
static dlist_head to_park = DLIST_STATIC_INIT(to_park); /* before that */
static int noutbox_done = 0; /* records of the outbox in done */

/* what an error must not leave behind: on its way into one of the lists */
static EventRecord *loose_record = NULL;
static BatchSource *loose_source = NULL;

/* How far the reading of a lane is. */
typedef struct Intake
{
	Decoder decoder;
	BatchSource *source; /* that is read; NULL: between two */
	int at; /* the record of it that the decoder is at */
	bool record_open; /* there is one */
	uint32 event_number; /* in it, of the next one */
	bool untouched; /* nothing of it was read */
	bool queue_more;
	bool outbox_more;

	/* session contexts */
	HTAB *asides;
	dlist_head aside_order;
	Size aside_bytes;
	bool aside_due; /* they are read now */
	Decoder header_decoder; /* at the header of the source */
} Intake;

/* reading */
static Intake intakes[LANE_COUNT];
static Intake *intake = &intakes[LANE_LIVE]; /* of the batch that is filled */
static EventLane lane = LANE_LIVE; /* its lane */
static Render render;
static bool item_open = false; /* the batch's last item is not complete */
static bool outbox_open = false;
static bool flush_needed = false;
static bool stopped = false; /* no other source is begun with */
static HTAB *counts = NULL; /* ContextCount */
static List *held_entries = NIL; /* HeldEntry */

static Encoder encoder;

static HTAB *
make_table(MemoryContext memory, const char *name, Size key_size,
		   Size entry_size)
{
	HASHCTL control = {
		.keysize = key_size, .entrysize = entry_size, .hcxt = memory};

	return hash_create(name, 64, &control,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Forgets everything, in whatever state an error has left it. */
static void
forget_everything(void)
{
	MemoryContext memory = batch_context;

	batch_context = NULL;
	counts = NULL;
	/* the queue has them again */
	held_entries = NIL;
	dlist_init(&live);
	dlist_init(&done);
	dlist_init(&to_park);
	noutbox_done = 0;
	loose_record = NULL;
	loose_source = NULL;
	item_open = false;
	outbox_open = false;
	for (int i = 0; i < LANE_COUNT; i++)
	{
		memset(&intakes[i], 0, sizeof(Intake));
		dlist_init(&intakes[i].aside_order);
	}
	if (memory != NULL)
		MemoryContextDelete(memory);
}

void
batch_start(bool recovery)
{
	MemoryContext memory;
	MemoryContext caller;

	forget_everything();
	in_recovery = recovery;

	/* it is the caller's until all is in it */
	memory = AllocSetContextCreate(CurrentMemoryContext, "absmartly delivery",
								   ALLOCSET_DEFAULT_SIZES);
	caller = MemoryContextSwitchTo(memory);
	render_init(&render, NULL);
	for (int i = 0; i < LANE_COUNT; i++)
		intakes[i].asides = make_table(memory, "absmartly contexts set aside",
									   sizeof(AsideKey), sizeof(Aside));
	counts = make_table(memory, "absmartly records of contexts", sizeof(uint64),
						sizeof(ContextCount));
	MemoryContextSwitchTo(caller);
	MemoryContextSetParent(memory, TopMemoryContext);
	batch_context = memory;
}

/* Lets go of what waits in memory, as far as it is not held any more. */
static void
release_held_entries(DatabaseState *state)
{
	ListCell *cell;

	foreach (cell, held_entries)
	{
		HeldEntry *held = lfirst(cell);
		EventRecord record = {
			.place = RECORD_MEMORY, .id = held->id, .entry = held->entry};
		TimestampTz until;

		if (contexts_hold_in_pass(held->context, held->sequence, false, &until))
			continue;
		queue_release(state, &record);
		held_entries = foreach_delete_current(held_entries, cell);
		pfree(held);
	}
}

/* Turns to a lane. */
static void
turn_to_lane(EventLane to)
{
	lane = to;
	intake = &intakes[to];
}

void
batch_pass(DatabaseState *state, EventLane of_lane)
{
	turn_to_lane(of_lane);
	if (!in_recovery)
	{
		outbox_pass_begin(lane);
		intake->outbox_more = true;
	}
	else if (lane == LANE_LIVE)
		release_held_entries(state);
	/* elsewhere it has been moved to the outbox */
	intake->queue_more = in_recovery;
}

bool
batch_more(EventLane of_lane)
{
	Intake *its = &intakes[of_lane];

	return its->source != NULL || its->queue_more || its->outbox_more ||
		   !dlist_is_empty(&its->aside_order);
}

void
batch_stop_reading(bool stop)
{
	stopped = stop;
}

bool
batch_reading(EventLane of_lane)
{
	return intakes[of_lane].source != NULL;
}

bool
batch_has_context(uint64 context)
{
	const ContextCount *count = hash_search(counts, &context, HASH_FIND, NULL);

	return count != NULL && count->records > 0;
}

bool
batch_has_undone(uint64 context)
{
	dlist_iter iter;

	dlist_foreach(iter, &live)
	{
		if (dlist_container(BatchSource, node, iter.cur)->context == context)
			return true;
	}
	for (int i = 0; i < LANE_COUNT; i++)
		dlist_foreach(iter, &intakes[i].aside_order)
		{
			if (dlist_container(Aside, node, iter.cur)->key.context == context)
				return true;
		}
	return false;
}

void
batch_flush(void)
{
	if (flush_needed)
		outbox_flush();
	flush_needed = false;
}

Batch *
batch_create(uint64 serial, EventLane of_lane)
{
	MemoryContext context = AllocSetContextCreate(
		batch_context, "absmartly batch", ALLOCSET_DEFAULT_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(context);
	Batch *batch = palloc0(sizeof(Batch));

	batch->context = context;
	batch->serial = serial;
	batch->lane = of_lane;
	batch->max_items = FIRST_ITEMS;
	batch->items = palloc(batch->max_items * sizeof(BatchItem));
	initStringInfo(&batch->body);
	appendStringInfoString(&batch->body, BODY_START);
	MemoryContextSwitchTo(caller);
	return batch;
}

/* A source is to be acknowledged, or given back. */
static void
set_done(BatchSource *source)
{
	dlist_delete(&source->node);
	dlist_push_tail(&done, &source->node);
	if (source->records[0].record->place != RECORD_MEMORY)
		noutbox_done += source->nrecords;
}

/*
 * Whether a source becomes other records: dead letters, and what is left of one
 * that is given back.  A standby has no place for these.
 */
static bool
has_to_be_parked(const BatchSource *source)
{
	return !in_recovery && (source->letters != NIL ||
							(source->give_back && source->settled != NULL));
}

/* One of a record's items, or its reading, is done. */
static void
finish_one(BatchSource *source)
{
	if (--source->undone > 0)
		return;
	if (has_to_be_parked(source))
	{
		dlist_delete(&source->node);
		dlist_push_tail(&to_park, &source->node);
	}
	else
		set_done(source);
}

/* A record of a session context is not there any more. */
static void
uncount_record(uint64 context)
{
	ContextCount *count = hash_search(counts, &context, HASH_FIND, NULL);

	if (count != NULL && --count->records <= 0)
		(void) hash_search(counts, &context, HASH_REMOVE, NULL);
}

static void
free_letters(BatchSource *source)
{
	ListCell *cell;

	foreach (cell, source->letters)
		pfree(((Refused *) lfirst(cell))->words);
	list_free_deep(source->letters);
	source->letters = NIL;
}

static void
free_source(BatchSource *source)
{
	dlist_delete(&source->node);
	for (int i = 0; i < source->nrecords; i++)
	{
		if (source->context != 0)
			uncount_record(source->context);
		pfree(source->records[i].record);
	}
	if (source->records != &source->only)
		pfree(source->records);
	if (source->header != NULL)
		pfree(source->header);
	free_letters(source);
	bms_free(source->settled);
	pfree(source);
}

/* Gives a record back, to be read again. */
static void
release_record(DatabaseState *state, EventRecord *record)
{
	if (record->place == RECORD_MEMORY)
		queue_release(state, record);
	else
		outbox_release(record);
}

/* The events of a source wait no more: its context is told. */
static void
settle_source(const BatchSource *source)
{
	uint64 events = 0;

	if (source->context == 0)
		return;
	for (int i = 0; i < source->nrecords; i++)
	{
		const EventPayload *payload = &source->records[i].record->payload;

		if (!payload->prepared && !source->records[i].repeated)
			events += payload->exposures + payload->goals;
	}
	if (events > source->pending)
		context_slot_settle(source->context, events - source->pending);
}

/*
 * On a standby a record of the memory queue may have to wait: it stays there,
 * taken, so that others are not kept up.
 */
static bool
keep_in_queue(EventRecord *record)
{
	const EventPayload *payload = &record->payload;
	TimestampTz until;
	HeldEntry *held;

	if (payload->context == 0 ||
		!contexts_hold_in_pass(payload->context, payload->sequence, false,
							   &until))
		return false;
	held = palloc(sizeof(HeldEntry));
	*held = (HeldEntry){payload->context, payload->sequence, record->id,
						record->entry};
	held_entries = lappend(held_entries, held);
	loose_record = NULL;
	pfree(record);
	return true;
}

/* The next record of the pass, NULL if there is none now.  It is loose. */
static EventRecord *
next_record(DatabaseState *state, bool *blocked)
{
	EventRecord *record = NULL;

	if (intake->queue_more)
	{
		do
			loose_record = record = queue_take(state, lane);
		while (record != NULL && keep_in_queue(record));
		if (record != NULL)
			return record;
		intake->queue_more = false;
	}
	if (intake->outbox_more)
	{
		bool end = false;

		if (!outbox_open)
		{
			outbox_open = outbox_read_begin(lane);
			MemoryContextSwitchTo(batch_context);
			*blocked = !outbox_open;
			if (!outbox_open)
				return NULL;
		}
		loose_record = record = outbox_read(&end);
		if (record == NULL && end)
			intake->outbox_more = false;
		if (record != NULL && record->payload.goals > 0)
			flush_needed = true;
	}
	return record;
}

/*
 * Records and sources
 */

/* What a record is sent under. */
static const EventOrigin *
origin_of(const EventRecord *record)
{
	return record_complete_origin(record->origin);
}

/*
 * The same for a record of a session context.  Those that look the same to the
 * collector are one.
 */
static const EventOrigin *
origin_in_context(const EventRecord *record)
{
	EventOrigin origin = *origin_of(record);

	origin.known = true;
	origin.endpoint = 0;
	return record_intern_origin(&origin);
}

/* Goes to the next record of the source that can be read, if there is one. */
static void
open_next_record(void)
{
	intake->record_open = false;
	if (intake->source->discarded)
		return;
	while (!intake->record_open && ++intake->at < intake->source->nrecords)
	{
		SourceRecord *next = &intake->source->records[intake->at];
		const EventPayload *payload = &next->record->payload;

		if (next->repeated)
			continue;
		intake->record_open =
			decoder_begin(&intake->decoder, payload->data, payload->length);
		next->damaged = !intake->record_open;
	}
}

/* Starts reading a source, or starts anew. */
static void
begin_reading(BatchSource *source)
{
	intake->source = source;
	intake->at = -1;
	intake->event_number = 0;
	intake->untouched = true;
	if (source->header != NULL)
	{
		(void) decoder_begin(&intake->header_decoder, source->header,
							 source->header_length);
		(void) decoder_next(&intake->header_decoder);
	}
	open_next_record();
}

/* A source of a record that is not of a session context. */
static void
begin_record(EventRecord *record)
{
	const EventOrigin *origin = origin_of(record);
	BatchSource *source = palloc0(sizeof(BatchSource));

	source->only.record = record;
	source->records = &source->only;
	source->nrecords = 1;
	source->origin = origin;
	source->undone = 1;
	dlist_push_tail(&live, &source->node);
	loose_record = NULL;
	begin_reading(source);
}

/* Makes room for one more record. */
static void
grow_aside(Aside *aside)
{
	int most = aside->max_records * 2;
	EventRecord **records;

	if (aside->nrecords < aside->max_records)
		return;
	records = palloc(most * sizeof(EventRecord *));
	memcpy(records, aside->records, aside->nrecords * sizeof(EventRecord *));
	if (aside->records != aside->few)
		pfree(aside->records);
	aside->records = records;
	aside->max_records = most;
}

/*
 * Sets a record of a session context aside.  Nothing fails once there is
 * something that an error would leave without its record.
 */
static void
set_aside(EventRecord *record)
{
	AsideKey key;
	Aside *aside;
	ContextCount *count;
	bool found;

	memset(&key, 0, sizeof(key));
	key.context = record->payload.context;
	key.origin = origin_in_context(record);
	count = hash_search(counts, &key.context, HASH_ENTER, &found);
	if (!found)
		count->records = 0;
	aside = hash_search(intake->asides, &key, HASH_ENTER, &found);
	if (!found)
	{
		aside->nrecords = 0;
		aside->max_records = FEW_RECORDS;
		aside->records = aside->few;
		dlist_push_tail(&intake->aside_order, &aside->node);
	}
	else
		grow_aside(aside);
	count->records++;
	aside->records[aside->nrecords++] = record;
	intake->aside_bytes += record->payload.length + RECORD_OVERHEAD;
	loose_record = NULL;
}

static void
forget_aside(Aside *aside)
{
	AsideKey key = aside->key;

	for (int i = 0; i < aside->nrecords; i++)
		intake->aside_bytes -=
			aside->records[i]->payload.length + RECORD_OVERHEAD;
	dlist_delete(&aside->node);
	if (aside->records != aside->few)
		pfree(aside->records);
	(void) hash_search(intake->asides, &key, HASH_REMOVE, NULL);
}

static int
compare_records(const void *left, const void *right)
{
	const EventRecord *a = *(EventRecord *const *) left;
	const EventRecord *b = *(EventRecord *const *) right;

	if (a->payload.sequence != b->payload.sequence)
		return a->payload.sequence < b->payload.sequence ? -1 : 1;
	return 0;
}

/* Reads so many contexts of a record; gives how many there are. */
static uint32
read_contexts(const EventRecord *record, uint32 most)
{
	const EventPayload *payload = &record->payload;
	uint32 contexts = 0;
	EventKind kind;

	if (!decoder_begin(&intake->header_decoder, payload->data, payload->length))
		return 0;
	while (contexts < most &&
		   (kind = decoder_next(&intake->header_decoder)) != EVENT_END &&
		   kind != EVENT_MALFORMED)
		if (kind == EVENT_CONTEXT)
			contexts++;
	return contexts;
}

/* Makes a header of the last context in the records. */
static void
make_header(BatchSource *source)
{
	static const EventContext nothing = {0};
	const EventContext *newest = &nothing;
	uint32 capacity;

	for (int i = source->nrecords - 1; i >= 0 && newest == &nothing; i--)
	{
		uint32 contexts =
			read_contexts(source->records[i].record, PG_UINT32_MAX);

		if (contexts == 0)
			continue;
		(void) read_contexts(source->records[i].record, contexts);
		newest = &intake->header_decoder.context;
	}
	capacity = (uint32) Max(encoder_context_bound(newest), 64);
	source->header = palloc(capacity);
	encoder_begin(&encoder, source->header, capacity);
	if (!encoder_add_context(&encoder, newest))
		elog(ERROR, "could not encode the header of a context");
	source->header_length = encoder.at.length;
}

/*
 * A source with place for so many records of a session context.  It is loose.
 */
static BatchSource *
make_context_source(int count, const AsideKey *key)
{
	BatchSource *source = palloc0(sizeof(BatchSource));

	loose_source = source;
	source->records = palloc0(count * sizeof(SourceRecord));
	source->nrecords = count;
	source->context = key->context;
	source->origin = key->origin;
	source->undone = 1;
	return source;
}

static void
begin_context(void)
{
	Aside *aside = dlist_head_element(Aside, node, &intake->aside_order);
	int count = aside->nrecords;
	BatchSource *source = make_context_source(count, &aside->key);
	SourceRecord *records = source->records;

	qsort(aside->records, count, sizeof(EventRecord *), compare_records);
	for (int i = 0; i < count; i++)
	{
		records[i].record = aside->records[i];
		records[i].repeated = i > 0 && compare_records(&aside->records[i - 1],
													   &aside->records[i]) == 0;
	}
	source->discarded = contexts_discard(source->context);
	make_header(source);
	forget_aside(aside);
	dlist_push_tail(&live, &source->node);
	loose_source = NULL;
	begin_reading(source);
}

/* Starts with the next source; false if there is none now. */
static bool
begin_source(DatabaseState *state, bool *blocked)
{
	for (;;)
	{
		EventRecord *record;

		if (stopped)
			return false;
		if (dlist_is_empty(&intake->aside_order))
			intake->aside_due = false;
		if (intake->aside_due)
		{
			begin_context();
			return true;
		}
		record = next_record(state, blocked);
		if (record == NULL)
		{
			if (*blocked || intake->queue_more || intake->outbox_more ||
				dlist_is_empty(&intake->aside_order))
				return false;
			intake->aside_due = true;
		}
		else if (record->payload.context == 0)
		{
			begin_record(record);
			return true;
		}
		else
		{
			set_aside(record);
			intake->aside_due = intake->aside_bytes >= MAX_ASIDE_BYTES;
		}
	}
}

static void
end_source(void)
{
	BatchSource *source = intake->source;

	intake->source = NULL;
	finish_one(source);
}

static void
begin_item(Batch *batch)
{
	BatchItem *item;

	if (batch->nitems == batch->max_items)
	{
		batch->items =
			repalloc(batch->items, batch->max_items * 2 * sizeof(BatchItem));
		batch->max_items *= 2;
	}
	if (batch->nitems > 0)
		appendStringInfoChar(&batch->body, ',');

	item = &batch->items[batch->nitems];
	item->source = intake->source;
	item->context = intake->source->context;
	item->offset = batch->body.len;
	item->first_event = intake->event_number;
	item->changed = false;
	item->exposures = 0;
	item->goals = 0;
	batch->has_contexts |= intake->source->context != 0;
	item_open = true;
	render_begin(&render, intake->source->header != NULL
							  ? &intake->header_decoder.context
							  : &intake->decoder.context);
}

/* Completes the item that was begun, if one was. */
static void
end_item(Batch *batch)
{
	BatchItem *item = &batch->items[batch->nitems];

	if (!item_open)
		return;
	render_end(&render);
	item->length = batch->body.len - item->offset;
	item->end_event = intake->event_number;
	item->source->undone++;
	batch->nitems++;
	item_open = false;
}

static bool
is_full(const Batch *batch, size_t max_bytes)
{
	return batch->nitems >= settings_batch_size ||
		   (size_t) batch->body.len >= max_bytes;
}

/*
 * What has been read of the context that is the batch's last item is more than
 * the batch can take beside others: it becomes the first one of the next.
 */
static void
cancel_item(Batch *batch)
{
	batch->body.len = (int) batch->items[batch->nitems].offset - 1;
	batch->body.data[batch->body.len] = '\0';
	item_open = false;
	begin_reading(intake->source);
}

/* The rest of a context becomes a source of its own. */
static void
split_source(void)
{
	BatchSource *source = intake->source;
	AsideKey key = {source->context, source->origin};
	int kept = intake->at + 1;
	int left = source->nrecords - kept;
	BatchSource *rest = make_context_source(left, &key);

	memcpy(rest->records, &source->records[kept], left * sizeof(SourceRecord));
	rest->header = palloc(source->header_length);
	memcpy(rest->header, source->header, source->header_length);
	rest->header_length = source->header_length;
	source->nrecords = kept;
	dlist_push_tail(&live, &rest->node);
	loose_source = NULL;
	finish_one(source);
	begin_reading(rest);
}

/* A record of the source has come to its end. */
static void
end_record(Batch *batch)
{
	/* some of it has made an item already, which was too large for more */
	if (intake->source->undone > 1 && intake->at + 1 < intake->source->nrecords)
	{
		end_item(batch);
		split_source();
	}
	else
		open_next_record();
}

/*
 * Reads on in the source; false if the batch is full before its end.  A context
 * whose events are more than a batch makes several items.
 */
static bool
read_source(Batch *batch, size_t max_bytes)
{
	intake->untouched = false;
	while (intake->record_open)
	{
		BatchItem *item;
		EventKind kind = decoder_next(&intake->decoder);

		if (kind == EVENT_CONTEXT)
		{
			if (intake->source->header != NULL)
				continue;
			end_item(batch);
			if (is_full(batch, max_bytes))
				return false;
			continue;
		}
		if (kind == EVENT_END || kind == EVENT_MALFORMED)
		{
			intake->source->records[intake->at].damaged =
				kind == EVENT_MALFORMED;
			end_record(batch);
			/* it may be another source now */
			if (intake->untouched && is_full(batch, max_bytes))
				return false;
			intake->untouched = false;
			continue;
		}

		if (!item_open)
			begin_item(batch);
		item = &batch->items[batch->nitems];
		if (kind == EVENT_GOAL)
		{
			item->goals++;
			render_goal(&render, &intake->decoder.goal);
		}
		else
		{
			item->exposures++;
			render_exposure(&render, &intake->decoder.exposure);
		}
		intake->event_number++;

		if ((size_t) (batch->body.len + render.goals.len) >= max_bytes)
		{
			if (intake->source->context != 0 && batch->nitems > 0 &&
				item->first_event == 0)
				cancel_item(batch);
			else
				end_item(batch);
			return false;
		}
	}
	end_item(batch);
	return true;
}

/* Whether two origins look the same to the collector. */
static bool
same_origin(const EventOrigin *left, const EventOrigin *right)
{
	return left == right ||
		   (strcmp(left->application, right->application) == 0 &&
			strcmp(left->application_version, right->application_version) ==
				0 &&
			strcmp(left->environment, right->environment) == 0);
}

/* Whether the source may go into the batch; whole ones are preferred. */
static bool
may_join(const Batch *batch, size_t max_bytes)
{
	uint32 items = intake->source->context != 0
					   ? 1
					   : intake->source->records[0].record->payload.contexts;

	if (batch->nitems == 0)
		return true;
	if (is_full(batch, max_bytes) ||
		!same_origin(batch->origin, intake->source->origin))
		return false;
	return !intake->untouched ||
		   items + (uint32) batch->nitems <= (uint32) settings_batch_size;
}

BatchRead
batch_fill(DatabaseState *state, Batch *batch, size_t max_bytes)
{
	MemoryContext caller = MemoryContextSwitchTo(batch_context);
	BatchRead result = BATCH_FULL;
	bool blocked = false;

	turn_to_lane(batch->lane);
	render.text = &batch->body;
	for (;;)
	{
		if (intake->source == NULL && !begin_source(state, &blocked))
		{
			result = blocked ? BATCH_BLOCKED : BATCH_NO_MORE;
			break;
		}
		if (!may_join(batch, max_bytes))
			break;
		if (batch->nitems == 0)
			batch->origin = intake->source->origin;
		if (!read_source(batch, max_bytes))
			break;
		end_source();
	}
	if (outbox_open)
	{
		outbox_open = false;
		outbox_read_end();
	}
	MemoryContextSwitchTo(caller);
	return result;
}

/* Gives back what was on its way into one of the lists. */
static void
release_loose(DatabaseState *state)
{
	EventRecord *record = loose_record;
	BatchSource *source = loose_source;

	if (source != NULL)
	{
		/* its records are elsewhere still */
		loose_source = NULL;
		if (source->records != NULL)
			pfree(source->records);
		if (source->header != NULL)
			pfree(source->header);
		pfree(source);
	}
	if (record != NULL)
	{
		const uint64 *context = &record->payload.context;
		const ContextCount *count =
			hash_search(counts, context, HASH_FIND, NULL);

		if (count != NULL && count->records == 0)
			(void) hash_search(counts, context, HASH_REMOVE, NULL);
		release_record(state, record);
		loose_record = NULL;
		pfree(record);
	}
}

void
batch_recover(DatabaseState *state, EventLane of_lane, Batch *batch)
{
	turn_to_lane(of_lane);
	outbox_open = false;
	intake->queue_more = false;
	intake->outbox_more = false;
	if (batch != NULL && item_open)
		batch->body.len = (int) batch->items[batch->nitems].offset;
	item_open = false;
	if (intake->source != NULL)
	{
		intake->source->give_back = true;
		end_source();
	}
	if (!in_recovery)
		outbox_read_failed(lane);
	release_loose(state);
}

const char *
batch_item_text(const Batch *batch, int item)
{
	return batch->body.data + batch->items[item].offset;
}

/*
 * The frame of a batch is written around what is left in it: over the comma
 * or the text of what has left it.
 */
const char *
batch_body(Batch *batch, size_t *length)
{
	int64 now = render_now();
	const BatchItem *first = &batch->items[batch->first];
	const BatchItem *last = &batch->items[batch->nitems - 1];
	char *start;

	for (int i = batch->first; i < batch->nitems; i++)
		render_set_time(batch->body.data + batch->items[i].offset, now);
	if (first == last)
	{
		*length = first->length;
		return batch->body.data + first->offset;
	}

	batch->body.len = (int) (last->offset + last->length);
	appendStringInfoString(&batch->body, BODY_END);
	start = batch->body.data + first->offset - START_LENGTH;
	memcpy(start, BODY_START, START_LENGTH);
	*length = (size_t) (batch->body.data + batch->body.len - start);
	return start;
}

/* A new batch of some items of another one, which it takes from it. */
static Batch *
move_items(const Batch *batch, int from, int to)
{
	Batch *moved = batch_create(batch->serial, batch->lane);
	const BatchItem *first = &batch->items[from];
	const BatchItem *last = &batch->items[to - 1];

	moved->origin = batch->origin;
	moved->has_contexts = batch->has_contexts;
	appendBinaryStringInfo(&moved->body, batch->body.data + first->offset,
						   (int) (last->offset + last->length - first->offset));
	moved->nitems = to - from;
	if (moved->nitems > moved->max_items)
	{
		moved->items =
			repalloc(moved->items, moved->nitems * sizeof(BatchItem));
		moved->max_items = moved->nitems;
	}
	for (int i = from; i < to; i++)
	{
		moved->items[i - from] = batch->items[i];
		moved->items[i - from].offset -= first->offset - START_LENGTH;
	}
	return moved;
}

Batch *
batch_carve(Batch *batch)
{
	Batch *carved = move_items(batch, batch->first, batch->first + 1);

	batch->first++;
	return carved;
}

uint32
batch_events(const Batch *batch)
{
	uint32 events = 0;

	for (int i = batch->first; i < batch->nitems; i++)
		events += batch->items[i].exposures + batch->items[i].goals;
	return events;
}

/*
 * Writes an item anew, at the end of the batch: as many of its events as that,
 * and without those that were refused.  It ends after them.
 */
static void
write_item(Batch *batch, BatchItem *item, uint32 most)
{
	const BatchSource *source = item->source;
	uint32 end = item->end_event;
	uint32 events = 0;
	SourceWalk walk;
	bool more;

	item->exposures = 0;
	item->goals = 0;
	item->offset = batch->body.len;
	render.text = &batch->body;
	source_walk(&walk, source);
	for (more = source_seek(&walk, item->first_event);
		 more && walk.number < end && events < most; more = source_next(&walk))
	{
		if (bms_is_member((int) walk.number, source->settled))
			continue;
		if (events++ == 0)
			render_begin(&render, walk.context);
		if (walk.goal != NULL)
		{
			item->goals++;
			render_goal(&render, walk.goal);
		}
		else
		{
			item->exposures++;
			render_exposure(&render, walk.exposure);
		}
		item->end_event = walk.number + 1;
	}
	if (events > 0)
		render_end(&render);
	item->length = batch->body.len - item->offset;
}

/* Takes the second half of the events of a batch's only item from it. */
static Batch *
split_item(Batch *batch)
{
	Batch *half = batch_create(batch->serial, batch->lane);
	BatchItem *item = &batch->items[batch->first];
	uint32 events = batch_events(batch);

	half->origin = batch->origin;
	half->has_contexts = batch->has_contexts;
	half->items[0] = *item;
	half->nitems = 1;

	batch->body.len = START_LENGTH;
	write_item(batch, item, (events + 1) / 2);
	half->items[0].first_event = item->end_event;
	write_item(half, &half->items[0], events);
	item->source->undone++;
	return half;
}

Batch *
batch_split(Batch *batch)
{
	int middle = batch->first + (batch_count(batch) + 1) / 2;
	Batch *half;

	if (batch_count(batch) == 1)
		return split_item(batch);
	half = move_items(batch, middle, batch->nitems);
	batch->nitems = middle;
	return half;
}

void
batch_done(Batch *batch)
{
	MemoryContext caller = MemoryContextSwitchTo(batch_context);

	for (int i = batch->first; i < batch->nitems; i++)
	{
		const BatchItem *item = &batch->items[i];
		BatchSource *source = item->source;

		source->settled =
			bms_add_range(source->settled, (int) item->first_event,
						  (int) item->end_event - 1);
		finish_one(source);
	}
	MemoryContextSwitchTo(caller);
}

void
batch_list_events(const Batch *batch, int item, BatchList *list)
{
	const BatchItem *which = &batch->items[item];
	SourceWalk walk;
	bool more;

	list->nexposures = 0;
	list->ngoals = 0;
	list->exposures = palloc(which->exposures * sizeof(uint32));
	list->goals = palloc(which->goals * sizeof(uint32));
	source_walk(&walk, which->source);
	for (more = source_seek(&walk, which->first_event);
		 more && walk.number < which->end_event; more = source_next(&walk))
	{
		if (bms_is_member((int) walk.number, which->source->settled))
			continue;
		if (walk.goal != NULL && list->ngoals < which->goals)
			list->goals[list->ngoals++] = walk.number;
		else if (walk.goal == NULL && list->nexposures < which->exposures)
			list->exposures[list->nexposures++] = walk.number;
	}
}

bool
batch_refuse(Batch *batch, int item, uint32 number, bool goal,
			 const char *words)
{
	BatchItem *which = &batch->items[item];
	BatchSource *source = which->source;
	MemoryContext caller;
	Refused *letter;

	if (bms_is_member((int) number, source->settled))
		return false;
	caller = MemoryContextSwitchTo(batch_context);
	letter = palloc(sizeof(Refused));
	letter->number = number;
	letter->words = pstrdup(words);
	source->letters = lappend(source->letters, letter);
	source->settled = bms_add_member(source->settled, (int) number);
	MemoryContextSwitchTo(caller);

	if (goal)
		which->goals--;
	else
		which->exposures--;
	which->changed = true;
	return true;
}

void
batch_compact(Batch *batch)
{
	StringInfoData before = batch->body;
	MemoryContext caller = MemoryContextSwitchTo(batch->context);
	int kept = 0;

	initStringInfo(&batch->body);
	MemoryContextSwitchTo(caller);
	appendStringInfoString(&batch->body, BODY_START);
	for (int i = batch->first; i < batch->nitems; i++)
	{
		BatchItem *item = &batch->items[i];

		if (item->source == NULL)
			continue;
		if (item->exposures + item->goals == 0)
		{
			finish_one(item->source);
			continue;
		}
		if (kept > 0)
			appendStringInfoChar(&batch->body, ',');
		if (item->changed)
			write_item(batch, item, PG_UINT32_MAX);
		else
		{
			int offset = batch->body.len;

			appendBinaryStringInfo(&batch->body, before.data + item->offset,
								   (int) item->length);
			item->offset = offset;
		}
		item->changed = false;
		batch->items[kept++] = *item;
	}
	batch->first = 0;
	batch->nitems = kept;
	pfree(before.data);
}

void
batch_drop_held(Batch *batch)
{
	bool dropped = false;

	if (!batch->has_contexts)
		return;
	for (int i = batch->first; i < batch->nitems; i++)
	{
		BatchItem *item = &batch->items[i];
		BatchSource *source = item->source;
		const EventRecord *last;

		if (item->context == 0 || source->settled != NULL)
			continue;
		/* some of it is elsewhere, and may be on its way */
		if (source->undone > 1)
			continue;
		last = source->records[source->nrecords - 1].record;
		if (!contexts_hold(item->context, last->payload.sequence))
			continue;
		source->give_back = true;
		finish_one(source);
		item->source = NULL;
		dropped = true;
	}
	if (dropped)
		batch_compact(batch);
}

void
batch_free(Batch *batch)
{
	collector_forget_key(&batch->key);
	MemoryContextDelete(batch->context);
}

bool
batch_have_to_park(void)
{
	return !dlist_is_empty(&to_park);
}

/*
 * Makes a dead letter of the event that a walk is at.  It is of no session
 * context: its event is pending no more.
 */
static void
park_event(const SourceWalk *walk, const char *words)
{
	const EventRecord *record = walk->source->records[walk->record].record;
	uint32 capacity = (uint32) Max(source_bound(walk), LETTER_SIZE);
	char *data = palloc(capacity);
	EventPayload payload;

	encoder_begin(&encoder, data, capacity);
	if (!source_encode(walk, &encoder))
		elog(ERROR, "could not encode an event for the dead letters");
	payload = (EventPayload){.data = data,
							 .length = encoder.at.length,
							 .contexts = encoder.at.contexts,
							 .exposures = encoder.at.exposures,
							 .goals = encoder.at.goals};
	outbox_park_row(record->origin,
					TimestampTzPlusMilliseconds(record->created, walk->delay),
					&payload, OUTBOX_DEAD, words);
	pfree(data);
}

static void
warn_of_damage(void)
{
	ereport(WARNING, (errcode(ERRCODE_DATA_CORRUPTED),
					  errmsg("absmartly: a record of events is damaged"),
					  errdetail("What could be read of it was sent.")));
}

/*
 * A record of which something is parked goes with that, in one transaction: so
 * a crash does not leave both.  What of it could not be read is parked, too.
 */
static void
park_record(const SourceRecord *source)
{
	const EventRecord *record = source->record;

	if (source->damaged)
	{
		EventPayload payload = record->payload;

		warn_of_damage();
		/* its events are pending no more */
		payload.context = 0;
		payload.sequence = 0;
		outbox_park_row(record->origin, record->created, &payload,
						OUTBOX_UNREADABLE, "the record is damaged");
	}
	outbox_park_original(record);
}

static int
compare_letters(const ListCell *left, const ListCell *right)
{
	uint32 a = ((const Refused *) lfirst(left))->number;
	uint32 b = ((const Refused *) lfirst(right))->number;

	return a < b ? -1 : a > b ? 1 : 0;
}

/*
 * Makes dead letters, a row of each.  The events are in their records still:
 * one walk finds those of a source.
 */
static void
park_letters(BatchSource *source)
{
	SourceWalk walk;
	ListCell *cell;

	list_sort(source->letters, compare_letters);
	source_walk(&walk, source);
	foreach (cell, source->letters)
	{
		const Refused *letter = lfirst(cell);

		CHECK_FOR_INTERRUPTS();
		if (source_seek(&walk, letter->number))
			park_event(&walk, letter->words);
	}
}

/* A record of what is left of another one. */
typedef struct Rest
{
	OutboxWriter *writer;
	const EventRecord *of; /* NULL: there is none yet */
	EventRecord record;
	EventOrigin origin;
	uint64 pending; /* events that were written, as their context counts */
} Rest;

static void
begin_rest(Rest *rest, const EventRecord *of)
{
	uint32 capacity = Max(of->payload.length, LETTER_SIZE);

	rest->of = of;
	rest->record = *of;
	/* what waits goes to the endpoint that is in force */
	rest->origin = *of->origin;
	rest->origin.endpoint = record_current_origin()->endpoint;
	rest->record.origin = &rest->origin;
	encoder_begin(&encoder, palloc(capacity), capacity);
}

static void
end_rest(Rest *rest)
{
	EventPayload *payload = &rest->record.payload;

	if (rest->of == NULL)
		return;
	payload->data = encoder.data;
	payload->length = encoder.at.length;
	payload->contexts = encoder.at.contexts;
	payload->exposures = encoder.at.exposures;
	payload->goals = encoder.at.goals;
	(void) outbox_write_note(rest->writer, rest->of->note);
	outbox_write_record(rest->writer, &rest->record);
	if (payload->context != 0 && !payload->prepared)
		rest->pending += payload->exposures + payload->goals;
	pfree(encoder.data);
}

static bool
add_to_rest(const SourceWalk *walk)
{
	Size size = encoder.at.length + DELAY_BOUND + source_bound(walk);

	if (size > encoder.capacity)
		encoder_move(&encoder, repalloc(encoder.data, 2 * size),
					 (uint32) (2 * size));
	return encoder_set_delay(&encoder, walk->delay) &&
		   source_encode(walk, &encoder);
}

/*
 * Writes what is neither delivered nor refused of a source's records: as
 * records like them, and under what it would have been sent under.  Gives how
 * many of these events are pending.
 */
static uint64
write_rest(const BatchSource *source)
{
	const EventRecord *first = source->records[0].record;
	Rest rest = {.writer = outbox_write_begin(first->payload.lane, false)};
	SourceWalk walk;

	if (rest.writer == NULL)
		elog(ERROR, "the outbox is gone");
	source_walk(&walk, source);
	while (source_next(&walk))
	{
		const EventRecord *record = source->records[walk.record].record;

		CHECK_FOR_INTERRUPTS();
		if (bms_is_member((int) walk.number, source->settled))
			continue;
		if (rest.of != record)
		{
			end_rest(&rest);
			begin_rest(&rest, record);
		}
		if (add_to_rest(&walk))
			continue;
		/* too many names; no two records of a context have one number */
		end_rest(&rest);
		begin_rest(&rest, record);
		rest.record.payload.context = 0;
		rest.record.payload.sequence = 0;
		rest.record.payload.prepared = false;
		if (!add_to_rest(&walk))
			elog(ERROR, "could not encode an event that is left of a record");
	}
	end_rest(&rest);
	outbox_write_end(rest.writer);
	return rest.pending;
}

/* All in one transaction: so a crash leaves either what was, or what is. */
void
batch_park(DatabaseState *state)
{
	dlist_iter iter;

	outbox_park_begin();
	dlist_foreach(iter, &to_park)
	{
		BatchSource *source = dlist_container(BatchSource, node, iter.cur);

		park_letters(source);
		if (source->give_back)
			source->pending = write_rest(source);
		for (int i = 0; i < source->nrecords; i++)
			park_record(&source->records[i]);
	}
	outbox_park_end();
	while (!dlist_is_empty(&to_park))
	{
		BatchSource *source = dlist_head_element(BatchSource, node, &to_park);

		for (int i = 0; i < source->nrecords; i++)
			source->records[i].damaged = false;
		if (source->give_back)
			shared_events_committed(state,
									source->records[0].record->payload.lane, 1);
		source->give_back = false;
		free_letters(source);
		set_done(source);
	}
}

bool
batch_have_done(void)
{
	return !dlist_is_empty(&done);
}

/* Gives the records of a source back. */
static void
release_source(DatabaseState *state, BatchSource *source)
{
	/* one after another: an error leaves those that were not given back */
	while (source->nrecords > 0)
	{
		EventRecord *record = source->records[source->nrecords - 1].record;

		release_record(state, record);
		source->nrecords--;
		if (record->place != RECORD_MEMORY)
			noutbox_done--;
		if (source->context != 0)
			uncount_record(source->context);
		pfree(record);
	}
	free_source(source);
}

/* Keeps the records of a source that could not be read. */
static void
park_damaged(BatchSource *source)
{
	MemoryContext caller = CurrentMemoryContext;
	bool any = false;

	for (int i = 0; i < source->nrecords; i++)
		any |= source->records[i].damaged;
	if (!any)
		return;
	if (in_recovery)
		warn_of_damage();
	else
	{
		outbox_park_begin();
		for (int i = 0; i < source->nrecords; i++)
			if (source->records[i].damaged)
				park_record(&source->records[i]);
		outbox_park_end();
		/* a transaction's end leaves another */
		MemoryContextSwitchTo(caller);
	}
	for (int i = 0; i < source->nrecords; i++)
		source->records[i].damaged = false;
}

/* Handles the records that are done but not simply delivered. */
static void
settle_special(DatabaseState *state)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &done)
	{
		BatchSource *source = dlist_container(BatchSource, node, iter.cur);
		bool memory = source->records[0].record->place == RECORD_MEMORY;

		if (source->give_back)
		{
			release_source(state, source);
			continue;
		}
		park_damaged(source);
		if (memory)
		{
			for (int i = 0; i < source->nrecords; i++)
				queue_remove(state, source->records[i].record);
			settle_source(source);
			free_source(source);
		}
	}
}

void
batch_acknowledge(DatabaseState *state, bool flush)
{
	EventRecord **records;
	int nrecords = 0;
	dlist_iter iter;
	dlist_mutable_iter each;

	settle_special(state);
	if (noutbox_done == 0)
		return;
	records = palloc(noutbox_done * sizeof(EventRecord *));
	dlist_foreach(iter, &done)
	{
		const BatchSource *source =
			dlist_container(BatchSource, node, iter.cur);

		for (int i = 0; i < source->nrecords; i++)
			records[nrecords++] = source->records[i].record;
	}
	outbox_acknowledge(records, nrecords, flush);
	dlist_foreach_modify(each, &done)
	{
		BatchSource *source = dlist_container(BatchSource, node, each.cur);

		settle_source(source);
		free_source(source);
	}
	noutbox_done = 0;
	pfree(records);
}

void
batch_give_up(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &live)
	{
		BatchSource *source = dlist_container(BatchSource, node, iter.cur);

		if (source->settled == NULL)
			continue;
		source->give_back = true;
		source->undone = 1;
		finish_one(source);
	}
}
