/*
 * batch.c
 *		Batches: what is sent to the collector in one request.
 *
 * Reading takes the memory queue first, then the outbox, and turns events
 * into text as it goes.  It stops between two items, whenever a batch is full,
 * and goes on there with the next one.
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "events/encoding.h"
#include "events/outbox.h"
#include "events/queue.h"
#include "worker/batch.h"
#include "worker/render.h"

#define BODY_START "{\"requests\":["
#define BODY_END "]}"
#define START_LENGTH ((int) sizeof(BODY_START) - 1)

#define FIRST_ITEMS 16
/* of the payloads of dead letters, as long as no event needs more */
#define LETTER_SIZE ((uint32) 64 * 1024)

struct BatchSource
{
	dlist_node node; /* in live, or in done */
	EventRecord *record;
	uint32 undone; /* items, and 1 while it is read */
	bool damaged; /* could not be read to its end */
	bool give_back; /* is to be read again */
};

/* An item that the collector has refused for good. */
typedef struct Refused
{
	dlist_node node;
	BatchSource *source;
	uint32 first_event;
	uint32 nevents;
	char *words;
} Refused;

static MemoryContext batch_context = NULL;
static bool in_recovery;
static dlist_head live = DLIST_STATIC_INIT(live);
static dlist_head done = DLIST_STATIC_INIT(done);
static dlist_head refused = DLIST_STATIC_INIT(refused);
static int noutbox_done = 0; /* records of the outbox in done */

/* reading */
static Decoder decoder;
static Render render;
static BatchSource *reading = NULL; /* NULL: between two records */
static uint32 event_number; /* in it, of the next one */
static bool untouched; /* nothing of it was read */
static bool item_open = false; /* the batch's last item is not complete */
static bool queue_more = false;
static bool outbox_more = false;
static bool outbox_open = false;
static bool flush_needed = false;

/* dead letters */
static Decoder letter_decoder;
static Encoder encoder;

void
batch_start(bool recovery)
{
	if (batch_context == NULL)
	{
		MemoryContext caller;

		batch_context = AllocSetContextCreate(
			TopMemoryContext, "absmartly delivery", ALLOCSET_DEFAULT_SIZES);
		caller = MemoryContextSwitchTo(batch_context);
		render_init(&render, NULL);
		MemoryContextSwitchTo(caller);
	}
	in_recovery = recovery;
	queue_more = false;
	outbox_more = false;
}

void
batch_pass(void)
{
	if (!in_recovery)
	{
		outbox_pass_begin();
		outbox_more = true;
	}
	/* elsewhere it has been moved to the outbox */
	queue_more = in_recovery;
}

bool
batch_more(void)
{
	return reading != NULL || queue_more || outbox_more;
}

void
batch_flush(void)
{
	if (flush_needed)
		outbox_flush();
	flush_needed = false;
}

Batch *
batch_create(uint64 serial)
{
	MemoryContext context = AllocSetContextCreate(
		batch_context, "absmartly batch", ALLOCSET_DEFAULT_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(context);
	Batch *batch = palloc0(sizeof(Batch));

	batch->context = context;
	batch->serial = serial;
	batch->max_items = FIRST_ITEMS;
	batch->items = palloc(batch->max_items * sizeof(BatchItem));
	initStringInfo(&batch->body);
	appendStringInfoString(&batch->body, BODY_START);
	MemoryContextSwitchTo(caller);
	return batch;
}

/* One of a record's items, or its reading, is done. */
static void
finish_one(BatchSource *source)
{
	if (--source->undone > 0)
		return;
	dlist_delete(&source->node);
	dlist_push_tail(&done, &source->node);
	if (source->record->place != RECORD_MEMORY)
		noutbox_done++;
}

static void
free_source(BatchSource *source)
{
	dlist_delete(&source->node);
	pfree(source->record);
	pfree(source);
}

/* The next record of the pass, NULL if there is none now. */
static EventRecord *
next_record(DatabaseState *state, bool *blocked)
{
	EventRecord *record = NULL;

	if (queue_more)
	{
		record = queue_take(state);
		if (record != NULL)
			return record;
		queue_more = false;
	}
	if (outbox_more)
	{
		bool end = false;

		if (!outbox_open)
		{
			outbox_open = outbox_read_begin();
			MemoryContextSwitchTo(batch_context);
			*blocked = !outbox_open;
			if (!outbox_open)
				return NULL;
		}
		record = outbox_read(&end);
		if (record == NULL && end)
			outbox_more = false;
		if (record != NULL && record->payload.goals > 0)
			flush_needed = true;
	}
	return record;
}

/* Starts with the next record; false if there is none now. */
static bool
begin_source(DatabaseState *state, bool *blocked)
{
	EventRecord *record = next_record(state, blocked);
	BatchSource *source;

	if (record == NULL)
		return false;
	source = palloc(sizeof(BatchSource));
	source->record = record;
	source->undone = 1;
	source->give_back = false;
	source->damaged =
		!decoder_begin(&decoder, record->payload.data, record->payload.length);
	dlist_push_tail(&live, &source->node);
	reading = source;
	event_number = 0;
	untouched = true;
	return true;
}

static void
end_source(void)
{
	BatchSource *source = reading;

	reading = NULL;
	finish_one(source);
}

static void
begin_item(Batch *batch)
{
	BatchItem *item;

	if (batch->nitems == batch->max_items)
	{
		batch->max_items *= 2;
		batch->items =
			repalloc(batch->items, batch->max_items * sizeof(BatchItem));
	}
	if (batch->nitems > 0)
		appendStringInfoChar(&batch->body, ',');

	item = &batch->items[batch->nitems];
	item->source = reading;
	item->offset = batch->body.len;
	item->first_event = event_number;
	item->exposures = 0;
	item->goals = 0;
	item_open = true;
	render_begin(&render, &decoder.context);
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
 * Reads on in the record; false if the batch is full before the record's end.
 * A context whose events are more than a batch makes several items.
 */
static bool
read_source(Batch *batch, size_t max_bytes)
{
	untouched = false;
	while (!reading->damaged)
	{
		BatchItem *item;
		EventKind kind = decoder_next(&decoder);

		switch (kind)
		{
			case EVENT_CONTEXT:
				end_item(batch);
				if (is_full(batch, max_bytes))
					return false;
				continue;
			case EVENT_EXPOSURE:
			case EVENT_GOAL:
				break;
			case EVENT_END:
				end_item(batch);
				return true;
			case EVENT_MALFORMED:
				reading->damaged = true;
				continue;
		}

		if (!item_open)
			begin_item(batch);
		item = &batch->items[batch->nitems];
		if (kind == EVENT_GOAL)
		{
			item->goals++;
			render_goal(&render, &decoder.goal);
		}
		else
		{
			item->exposures++;
			render_exposure(&render, &decoder.exposure);
		}
		event_number++;

		if ((size_t) (batch->body.len + render.goals.len) >= max_bytes)
		{
			end_item(batch);
			return false;
		}
	}
	end_item(batch);
	return true;
}

/* What a record is sent under. */
static const EventOrigin *
origin_of(const EventRecord *record)
{
	return record_complete_origin(record->origin);
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

/* Whether the record may go into the batch; whole ones are preferred. */
static bool
may_join(const Batch *batch, size_t max_bytes)
{
	const EventRecord *record = reading->record;

	if (batch->nitems == 0)
		return true;
	if (is_full(batch, max_bytes) ||
		!same_origin(batch->origin, origin_of(record)))
		return false;
	return !untouched || record->payload.contexts + (uint32) batch->nitems <=
							 (uint32) settings_batch_size;
}

BatchRead
batch_fill(DatabaseState *state, Batch *batch, size_t max_bytes)
{
	MemoryContext caller = MemoryContextSwitchTo(batch_context);
	BatchRead result = BATCH_FULL;
	bool blocked = false;

	render.text = &batch->body;
	for (;;)
	{
		if (reading == NULL && !begin_source(state, &blocked))
		{
			result = blocked ? BATCH_BLOCKED : BATCH_NO_MORE;
			break;
		}
		if (!may_join(batch, max_bytes))
			break;
		if (batch->nitems == 0)
			batch->origin = origin_of(reading->record);
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

void
batch_recover(Batch *batch)
{
	outbox_open = false;
	if (item_open)
	{
		batch->body.len = (int) batch->items[batch->nitems].offset;
		item_open = false;
	}
	if (reading != NULL)
	{
		reading->give_back = true;
		end_source();
	}
	queue_more = false;
	outbox_more = false;
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
	Batch *moved = batch_create(batch->serial);
	const BatchItem *first = &batch->items[from];
	const BatchItem *last = &batch->items[to - 1];

	moved->origin = batch->origin;
	appendBinaryStringInfo(&moved->body, batch->body.data + first->offset,
						   (int) (last->offset + last->length - first->offset));
	moved->nitems = to - from;
	if (moved->nitems > moved->max_items)
	{
		moved->max_items = moved->nitems;
		moved->items =
			repalloc(moved->items, moved->max_items * sizeof(BatchItem));
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

Batch *
batch_split(Batch *batch)
{
	int middle = batch->first + (batch_count(batch) + 1) / 2;
	Batch *half = move_items(batch, middle, batch->nitems);

	batch->nitems = middle;
	return half;
}

void
batch_done(Batch *batch)
{
	for (int i = batch->first; i < batch->nitems; i++)
		finish_one(batch->items[i].source);
}

void
batch_refuse(Batch *batch, int item, const char *words)
{
	BatchItem *which = &batch->items[item];
	Refused *entry = MemoryContextAlloc(batch_context, sizeof(Refused));

	entry->source = which->source;
	entry->first_event = which->first_event;
	entry->nevents = which->exposures + which->goals;
	entry->words = MemoryContextStrdup(batch_context, words);
	dlist_push_tail(&refused, &entry->node);
	which->source = NULL;
}

bool
batch_is_refused(const Batch *batch, int item)
{
	return batch->items[item].source == NULL;
}

void
batch_compact(Batch *batch)
{
	uint32 offset = START_LENGTH;
	int kept = 0;

	for (int i = batch->first; i < batch->nitems; i++)
	{
		BatchItem item = batch->items[i];

		if (item.source == NULL)
			continue;
		if (kept > 0)
			batch->body.data[offset++] = ',';
		memmove(batch->body.data + offset, batch->body.data + item.offset,
				item.length);
		item.offset = offset;
		offset += item.length;
		batch->items[kept++] = item;
	}
	batch->first = 0;
	batch->nitems = kept;
	batch->body.len = (int) offset;
}

void
batch_free(Batch *batch)
{
	collector_forget_key(&batch->key);
	MemoryContextDelete(batch->context);
}

bool
batch_have_refused(void)
{
	return !dlist_is_empty(&refused);
}

/* Keeps what was encoded, if anything was. */
static void
park_encoded(const Refused *letter)
{
	const EventRecord *record = letter->source->record;
	EventPayload payload = {.data = encoder.data,
							.length = encoder.at.length,
							.contexts = encoder.at.contexts,
							.exposures = encoder.at.exposures,
							.goals = encoder.at.goals};

	if (payload.exposures + payload.goals > 0)
		outbox_park(record->origin, record->created, &payload, OUTBOX_DEAD,
					letter->words);
}

static bool
encode_event(EventKind kind)
{
	return kind == EVENT_GOAL
			   ? encoder_add_goal(&encoder, &letter_decoder.context,
								  &letter_decoder.goal)
			   : encoder_add_exposure(&encoder, &letter_decoder.context,
									  &letter_decoder.exposure);
}

/* Makes dead letters of an item's events, which are in its record still. */
static void
park_letter(const Refused *letter)
{
	const EventPayload *payload = &letter->source->record->payload;
	uint32 capacity = LETTER_SIZE;
	char *data = palloc(capacity);
	uint32 number = 0;

	if (!decoder_begin(&letter_decoder, payload->data, payload->length))
		return;
	encoder_begin(&encoder, data, capacity);
	while (number < letter->first_event + letter->nevents)
	{
		EventKind kind = decoder_next(&letter_decoder);

		if (kind == EVENT_END || kind == EVENT_MALFORMED)
			break;
		if (kind == EVENT_CONTEXT || number++ < letter->first_event)
			continue;
		if (!encode_event(kind))
		{
			size_t bound =
				kind == EVENT_GOAL
					? encoder_goal_bound(&letter_decoder.context,
										 &letter_decoder.goal)
					: encoder_exposure_bound(&letter_decoder.context,
											 &letter_decoder.exposure);

			park_encoded(letter);
			if (bound > capacity)
			{
				capacity = (uint32) bound;
				data = repalloc(data, capacity);
			}
			encoder_begin(&encoder, data, capacity);
			if (!encode_event(kind))
				elog(ERROR, "could not encode an event for the dead letters");
		}
	}
	park_encoded(letter);
	pfree(data);
}

void
batch_park_refused(void)
{
	while (!dlist_is_empty(&refused))
	{
		Refused *letter = dlist_head_element(Refused, node, &refused);

		/* a standby has no place for them */
		if (!in_recovery)
			park_letter(letter);
		dlist_delete(&letter->node);
		finish_one(letter->source);
		pfree(letter->words);
		pfree(letter);
	}
}

bool
batch_have_done(void)
{
	return !dlist_is_empty(&done);
}

/* Gives a record back, to be read again. */
static void
release_source(DatabaseState *state, BatchSource *source)
{
	if (source->record->place == RECORD_MEMORY)
		queue_release(state, source->record);
	else
		outbox_release(source->record);
	free_source(source);
}

/* Handles the records that are done but not simply delivered. */
static void
settle_special(DatabaseState *state)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &done)
	{
		BatchSource *source = dlist_container(BatchSource, node, iter.cur);
		EventRecord *record = source->record;

		if (source->give_back)
		{
			if (record->place != RECORD_MEMORY)
				noutbox_done--;
			release_source(state, source);
			continue;
		}
		if (source->damaged)
		{
			ereport(WARNING,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("absmartly: a record of events is damaged"),
					 errdetail("What could be read of it was sent.")));
			if (!in_recovery)
				outbox_park(record->origin, record->created, &record->payload,
							OUTBOX_UNREADABLE, "the record is damaged");
			source->damaged = false;
		}
		if (record->place == RECORD_MEMORY)
		{
			queue_remove(state, record);
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
		records[nrecords++] =
			dlist_container(BatchSource, node, iter.cur)->record;
	}
	outbox_acknowledge(records, nrecords, flush);
	dlist_foreach_modify(each, &done)
	{
		free_source(dlist_container(BatchSource, node, each.cur));
	}
	noutbox_done = 0;
	pfree(records);
}

void
batch_release_all(DatabaseState *state)
{
	while (!dlist_is_empty(&refused))
	{
		Refused *letter = dlist_head_element(Refused, node, &refused);

		dlist_delete(&letter->node);
		pfree(letter->words);
		pfree(letter);
	}
	while (!dlist_is_empty(&live))
		release_source(state, dlist_head_element(BatchSource, node, &live));
	while (!dlist_is_empty(&done))
		release_source(state, dlist_head_element(BatchSource, node, &done));
	noutbox_done = 0;
	reading = NULL;
	item_open = false;
	queue_more = false;
	outbox_more = false;
}
