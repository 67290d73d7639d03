/*
 * events.c
 *		The events of a context.
 *
 * The transaction's buffer has the events themselves.  Here is what a context
 * must take back with a rollback: which assignments it has exposed, and how
 * much is pending.  As in the buffer, nothing is done when a subtransaction
 * starts; its first event leaves a mark.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xact.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "context/context.h"
#include "context/events.h"
#include "data/context_slot.h"
#include "events/buffer.h"
#include "events/heaps.h"
#include "events/logger.h"
#include "events/marks.h"
#include "events/outbox.h"
#include "events/queue.h"
#include "settings.h"
#include "sql/recording.h"
#include "sql/row_json.h"
#include "sql/text.h"

/* An assignment that this transaction has exposed. */
typedef struct Exposed
{
	ContextEntry *entry;
	uint64 serial; /* of the assignment: it may be another one by now */
} Exposed;

/* What a subtransaction returns to when it is rolled back. */
typedef struct Mark
{
	int level;
	int nexposed;
	int64 uncommitted;
} Mark;

/* All of this is about context_mine and the present transaction. */
static Exposed *exposed = NULL;
static int nexposed = 0;
static int max_exposed = 0;
static Mark *marks = NULL;
static int nmarks = 0;
static int max_marks = 0;

static bool may_be_pending(const Context *context);

/*
 * What a rollback takes back
 */

void
context_events_reset(void)
{
	exposed = NULL;
	nexposed = 0;
	max_exposed = 0;
	marks = NULL;
	nmarks = 0;
	max_marks = 0;
}

/* Makes room for what an event leaves here; the first one leaves a mark. */
static void
prepare_event(Context *context)
{
	int level = GetCurrentTransactionNestLevel();

	exposed =
		context_grow(context, exposed, nexposed, &max_exposed, sizeof(Exposed));
	if (!marks_wanted(level,
					  nmarks > 0 ? marks[nmarks - 1].level : MARKS_TOP_LEVEL))
		return;
	marks = context_grow(context, marks, nmarks, &max_marks, sizeof(Mark));
	marks[nmarks++] = (Mark){level, nexposed, context->uncommitted};
}

static void
unexpose(int keep)
{
	while (nexposed > keep)
	{
		Exposed *last = &exposed[--nexposed];

		if (last->entry->serial == last->serial)
			last->entry->exposed = false;
	}
}

void
context_subtransaction_end(SubXactEvent event)
{
	int level;
	Mark *mark;

	if (event != SUBXACT_EVENT_ABORT_SUB && event != SUBXACT_EVENT_COMMIT_SUB)
		return;
	/* the record that has the header may be among what is rolled back */
	if (event == SUBXACT_EVENT_ABORT_SUB && context_mine != NULL)
		context_mine->header_recorded = 0;
	if (nmarks == 0)
		return;
	level = GetCurrentTransactionNestLevel();
	mark = &marks[nmarks - 1];
	if (mark->level < level)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		unexpose(mark->nexposed);
		context_mine->uncommitted = mark->uncommitted;
		nmarks--;
	}
	else if (marks_merge(level, nmarks > 1 ? marks[nmarks - 2].level
										   : MARKS_TOP_LEVEL))
		nmarks--;
	else
		mark->level = level - 1;
}

/*
 * The header: units and attributes as they are sent
 */

/* Bytes of a header's texts, about. */
static size_t
header_size(const Context *context)
{
	size_t size = 0;

	for (int i = 0; i < context->nunits; i++)
		size += context->units[i].type.length + ENCODING_UNIT_BYTES;
	for (int i = 0; i < context->nattributes; i++)
		size += context->attributes[i].name.length +
				context->attributes[i].json.length;
	return size;
}

static void
build_header(Context *context)
{
	EventContext *header = &context->header;
	EventUnit *units;
	EventAttribute *attributes;
	uint32 count = 0;

	context->header_built = 0;
	if (context->header_memory == NULL)
		context->header_memory = AllocSetContextCreate(
			context->memory, "absmartly header", ALLOCSET_SMALL_SIZES);
	MemoryContextReset(context->header_memory);
	units = MemoryContextAlloc(context->header_memory,
							   Max(context->nunits, 1) * sizeof(EventUnit));
	for (int i = 0; i < context->nunits; i++)
	{
		units[i].type = context->units[i].type;
		memcpy(units[i].hash, context->units[i].digest, ENCODING_UNIT_BYTES);
	}
	attributes = MemoryContextAlloc(
		context->header_memory,
		(RECORDING_SYSTEM_ATTRIBUTES + context->nattributes) *
			sizeof(EventAttribute));
	if (context->options.system_attributes)
	{
		MemoryContext previous = MemoryContextSwitchTo(context->header_memory);

		count = recording_system_attributes(attributes);
		for (uint32 i = 0; i < count; i++)
			attributes[i].set_at = ENCODING_AT_PUBLISH;
		MemoryContextSwitchTo(previous);
	}
	for (int i = 0; i < context->nattributes; i++)
	{
		EventAttribute *attribute = &attributes[count++];

		attribute->name = context->attributes[i].name;
		attribute->value = context->attributes[i].json;
		attribute->set_at = context->attributes[i].set_at;
	}
	memset(header, 0, sizeof(*header));
	header->units = units;
	header->nunits = (uint32) context->nunits;
	header->attributes = attributes;
	header->nattributes = count;
	header->own_times = true;
	header->identity = context->header_version;
	header->historic = context->options.historic;
	context->header_built = context->header_version;
}

static const EventContext *
header(Context *context)
{
	if (unlikely(context->header_built != context->header_version))
		build_header(context);
	return &context->header;
}

/*
 * The header is written by the transaction that has changed it, with its events
 * or alone.  What can fail of that fails here.
 */
void
context_prepare_header(const Context *context, size_t added)
{
	size_t size = header_size(context) + added;

	if (!buffer_event_fits(size))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("units and attributes of the context are too large"),
				 errdetail("They would have %zu bytes, "
						   "\"absmartly.max_event_size\" is %d kB.",
						   size, settings_max_event_size)));
	if (context == context_mine && !context->failed && may_be_pending(context))
		buffer_prepare();
}

/* Whether what waits would be sent with other units or attributes. */
static bool
header_is_due(const Context *context)
{
	uint64 left = context->header_recorded != 0 ? context->header_recorded
												: context->header_left;

	return !context->failed && left != context->header_version &&
		   may_be_pending(context);
}

void
context_leave_header(Context *context)
{
	uint64 sequence;

	if (context->header_left == context->header_version)
		return;
	sequence = buffer_leave_context(context->key, header(context));
	if (sequence == 0)
		return;
	context->header_left = context->header_version;
	context->last_sequence = sequence;
}

/*
 * Telling the event logger
 */

static void
append_member(StringInfo json, const char *name)
{
	if (json->data[json->len - 1] != '{')
		appendStringInfoChar(json, ',');
	appendStringInfo(json, "\"%s\":", name);
}

static void
append_text_member(StringInfo json, const char *name, EngineText text)
{
	append_member(json, name);
	if (text.data == NULL)
		appendStringInfoString(json, "null");
	else
		json_append_string(json, text);
}

static void
append_integer_member(StringInfo json, const char *name, int64 value)
{
	append_member(json, name);
	appendStringInfo(json, INT64_FORMAT, value);
}

static void
log_exposure(const Context *context, const EventExposure *exposure)
{
	static const struct
	{
		const char *name;
		uint32 flag;
	} flags[] = {{"assigned", ASSIGN_ASSIGNED},
				 {"eligible", ASSIGN_ELIGIBLE},
				 {"overridden", ASSIGN_OVERRIDDEN},
				 {"fullOn", ASSIGN_FULL_ON},
				 {"custom", ASSIGN_CUSTOM},
				 {"audienceMismatch", ASSIGN_AUDIENCE_MISMATCH},
				 {"ruleOverride", ASSIGN_RULE_OVERRIDE},
				 {"heldOut", ASSIGN_HELD_OUT}};
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	append_integer_member(&json, "id", exposure->id);
	append_text_member(&json, "name", exposure->name);
	append_text_member(&json, "unit", exposure->unit_type);
	append_integer_member(&json, "variant", exposure->variant);
	append_integer_member(&json, "exposedAt", exposure->exposed_at);
	for (int i = 0; i < (int) lengthof(flags); i++)
	{
		append_member(&json, flags[i].name);
		appendStringInfoString(
			&json, exposure->flags & flags[i].flag ? "true" : "false");
	}
	append_integer_member(&json, "holdoutId", exposure->holdout_id);
	appendStringInfoChar(&json, '}');
	logger_emit(context->key, "exposure", json.data, (size_t) json.len);
	pfree(json.data);
}

static void
log_goal(const Context *context, const EventGoal *goal)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	append_text_member(&json, "name", goal->name);
	append_member(&json, "properties");
	if (goal->properties.data == NULL)
		appendStringInfoString(&json, "null");
	else
		appendBinaryStringInfo(&json, goal->properties.data,
							   (int) goal->properties.length);
	append_integer_member(&json, "achievedAt", goal->achieved_at);
	appendStringInfoChar(&json, '}');
	logger_emit(context->key, "goal", json.data, (size_t) json.len);
	pfree(json.data);
}

void
context_log_data(const Context *context, const char *event)
{
	uint64 key = context->key;
	EngineText raw;

	if (!logger_wanted())
		return;
	/* what waits is told first, and that is the user's code */
	logger_flush();
	context = context_of_key(key);
	if (context == NULL || context->snapshot == NULL)
		return;
	raw = snapshot_text(context->snapshot, context->snapshot->raw);
	logger_emit(key, event, raw.data, raw.length);
}

void
context_log_error(const Context *context, const char *message)
{
	if (logger_wanted())
		logger_emit_error(context->key, message);
}

void
context_log_plain(const Context *context, const char *event)
{
	if (logger_wanted())
		logger_emit(context->key, event, "null", strlen("null"));
}

/*
 * Recording
 */

void
context_expose(Context *context, ContextEntry *entry)
{
	const Assignment *assignment = &entry->assignment;
	EventExposure exposure;

	if (entry->exposed)
		return;
	exposure.id = entry->id;
	exposure.name = entry->name;
	exposure.unit_type = entry->unit_type;
	exposure.variant = assignment->variant;
	exposure.flags = assignment->flags;
	exposure.has_holdouts =
		context->snapshot != NULL && context->snapshot->has_holdouts;
	exposure.holdout_id = assignment->holdout_id;
	exposure.exposed_at = buffer_time_ms(GetCurrentTimestamp());

	prepare_event(context);
	if (!context->failed)
	{
		if (!buffer_context_exposure(context->key, header(context), &exposure))
			return;
		context->header_recorded = context->header_version;
	}
	context->uncommitted++;
	entry->exposed = true;
	exposed[nexposed++] = (Exposed){entry, entry->serial};
	if (unlikely(logger_wanted()))
		log_exposure(context, &exposure);
}

void
context_track(Context *context, EngineText name, EngineText properties,
			  int64 achieved_at)
{
	EventGoal goal = {
		.name = name, .properties = properties, .achieved_at = achieved_at};

	prepare_event(context);
	if (!context->failed)
	{
		if (!buffer_context_goal(context->key, header(context), &goal))
			return;
		context->header_recorded = context->header_version;
	}
	context->uncommitted++;
	if (unlikely(logger_wanted()))
		log_goal(context, &goal);
}

/*
 * Counting
 */

/* Events of a context that wait, by looking at all that waits. */
typedef struct Recount
{
	uint64 key;
	int64 events;
} Recount;

static bool
count_row(void *argument, const HeapRow *row, const HeapTupleData *tuple)
{
	Recount *recount = argument;

	if ((row->status == OUTBOX_WAITING || row->status == OUTBOX_PREPARED ||
		 row->status == OUTBOX_HELD) &&
		row->chunk == 0 && (uint64) row->context == recount->key)
		recount->events += row->exposures + row->goals;
	return false;
}

static int64
count_what_waits(uint64 key)
{
	Recount recount = {key, 0};
	HeapWalk walk = {.visit = count_row, .argument = &recount};
	DatabaseState *state = shared_my_database();

	if (heaps_find())
		for (int place = 0; place < HEAPS_COUNT; place++)
		{
			Relation relation;

			/* what a context records is live, or was parked */
			if (place != RECORD_PARKED && RECORD_LANE(place) != LANE_LIVE)
				continue;
			relation = heaps_open(place, AccessShareLock, true);

			if (relation == NULL)
				continue;
			heaps_walk(relation, &walk);
			relation_close(relation, AccessShareLock);
		}
	if (state != NULL)
	{
		ListCell *cell;

		foreach (cell, queue_list(state, NULL))
		{
			const EventRecord *record = lfirst(cell);

			if (record->payload.context == key)
				recount.events +=
					record->payload.exposures + record->payload.goals;
		}
	}
	return recount.events;
}

int64
context_pending_committed(const Context *context)
{
	ContextSlot *slot = context_slot_mine();
	int64 delivery;

	if (slot == NULL || context->failed)
		return context->committed;
	/* nobody has counted what a prepared transaction had */
	if (context->recount)
		return count_what_waits(context->key);
	delivery = (int64) pg_atomic_read_u64(&slot->pending);
	return Max(delivery, 0);
}

int64
context_pending(const Context *context)
{
	return context_pending_committed(context) + context->uncommitted;
}

/*
 * Whether events may wait.  They are not looked for in the outbox: that is for
 * nobody who sets an attribute, or commits.
 */
static bool
may_be_pending(const Context *context)
{
	return context->recount || context_pending(context) > 0;
}

void
context_discard_uncommitted(Context *context)
{
	context->uncommitted = 0;
	for (int i = 0; i < nmarks; i++)
		marks[i].uncommitted = 0;
}

/*
 * The ends of transactions
 */

void
context_before_commit(void)
{
	Context *context = context_mine;

	/* nothing is recorded where that would fail: it stays due */
	if (context != NULL && buffer_is_recording() && header_is_due(context) &&
		!(XactReadOnly && !shared_available()))
	{
		buffer_context_header(context->key, header(context));
		context->header_recorded = context->header_version;
	}
}

/* Lets the worker send at once what it would hold. */
static void
hand_over(Context *context, ContextSlot *slot)
{
	pg_atomic_write_u64(&slot->released, context->last_sequence);
	context_slots_changed(shared_my_database());
}

/*
 * With a delay of its own the context's first event sets the time.  What came
 * before has had its own, and does not wait for another one.
 */
static void
set_due(Context *context, ContextSlot *slot, uint64 before)
{
	TimestampTz now = GetCurrentTimestamp();

	if ((TimestampTz) pg_atomic_read_u64(&slot->due) > now)
		return;
	pg_atomic_write_u64(&slot->released, before);
	pg_atomic_write_u64(&slot->due, (uint64) TimestampTzPlusMilliseconds(
										now, context->options.publish_delay));
	context_slots_changed(shared_my_database());
}

static void
forget_transaction(Context *context)
{
	context->uncommitted = 0;
	context->header_recorded = 0;
	context->hand_over = false;
	nexposed = 0;
	nmarks = 0;
}

void
context_after_commit(void)
{
	Context *context = context_mine;
	ContextSlot *slot;
	uint64 before;
	uint64 sequence;
	uint64 events;

	if (context == NULL)
		return;
	before = context->last_sequence;
	events = buffer_context_committed(context->key, &sequence);
	if (sequence > 0)
	{
		context->last_sequence = sequence;
		if (context->header_recorded != 0)
			context->header_left = context->header_recorded;
	}
	slot = context_slot_mine();
	if (slot == NULL || context->failed)
		context->committed +=
			context->failed ? context->uncommitted : (int64) events;
	else if (events > 0)
	{
		bool own_delay =
			context->options.own_delay && context->state == CONTEXT_READY;
		int64 delay = context->options.publish_delay;

		pg_atomic_fetch_add_u64(&slot->pending, (int64) events);
		if (context->hand_over || (own_delay && delay == 0))
			hand_over(context, slot);
		else if (own_delay && delay > 0)
			set_due(context, slot, before);
	}
	forget_transaction(context);
	if (context->options.transaction_scope)
		context_drop();
}

void
context_after_prepare(void)
{
	Context *context = context_mine;
	ContextSlot *slot;
	uint64 sequence;

	if (context == NULL)
		return;
	/* what it has exposed is not undone should it be rolled back */
	if (context->uncommitted > 0)
		context->recount = true;
	/* who publishes after it has been committed publishes that, too */
	(void) buffer_context_committed(context->key, &sequence);
	if (sequence > 0)
		context->last_sequence = sequence;
	slot = context_slot_mine();
	if (context->hand_over && slot != NULL)
		hand_over(context, slot);
	forget_transaction(context);
	if (context->options.transaction_scope)
		context_drop();
}

void
context_after_abort(void)
{
	Context *context = context_mine;

	if (context == NULL)
		return;
	unexpose(0);
	forget_transaction(context);
	if (context->options.transaction_scope)
		context_drop();
}
