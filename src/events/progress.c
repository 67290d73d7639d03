/*
 * progress.c
 *		How far backfills have got.
 *
 * The records lie in the outbox's parked heap, in as many rows as their texts
 * need.  A row's context and sequence are the backfill's key, its endpoint is
 * the number of rows that are done, and its contexts tell whether it is
 * finished: so rows can be told apart without their texts.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/relation.h"
#include "access/tableam.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "engine/hash.h"
#include "events/chunks.h"
#include "events/heaps.h"
#include "events/outbox.h"
#include "events/progress.h"

/* in a payload, before name, source and position */
typedef struct ProgressHeader
{
	uint32 version;
	Oid role;
	TimestampTz started_at;
	uint32 name_length;
	uint32 source_length;
	uint32 position_length;
	uint32 has_position;
} ProgressHeader;

#define PROGRESS_VERSION 1

/* of a note: the key's digits, and what follows them of the name */
#define KEY_DIGITS (2 * sizeof(ProgressKey))
#define NOTED_NAME (PROGRESS_NOTE_SIZE - KEY_DIGITS - 2)

void
progress_identify(BackfillProgress *progress, Oid role, const char *name)
{
	char *identity = psprintf("%u %s", role, name);

	progress->role = role;
	progress->name = name;
	unit_digest(identity, strlen(identity), progress->key.bytes);
	pfree(identity);
}

static void
key_digits(const ProgressKey *key, char digits[KEY_DIGITS])
{
	static const char hex[] = "0123456789abcdef";

	for (size_t i = 0; i < sizeof(key->bytes); i++)
	{
		*digits++ = hex[key->bytes[i] >> 4];
		*digits++ = hex[key->bytes[i] & 0x0F];
	}
}

void
progress_note(const BackfillProgress *progress, char note[PROGRESS_NOTE_SIZE])
{
	int length =
		pg_mbcliplen(progress->name, (int) strlen(progress->name), NOTED_NAME);

	key_digits(&progress->key, note);
	note[KEY_DIGITS] = ' ';
	memcpy(note + KEY_DIGITS + 1, progress->name, length);
	note[KEY_DIGITS + 1 + length] = '\0';
}

bool
progress_noted(const ProgressKey *key, const char *note, size_t length)
{
	char digits[KEY_DIGITS];

	if (length <= KEY_DIGITS || note[KEY_DIGITS] != ' ')
		return false;
	key_digits(key, digits);
	return memcmp(note, digits, KEY_DIGITS) == 0;
}

void
progress_lock(const ProgressKey *key, LOCKTAG *lock)
{
	const int kind = 3; /* SQL's advisory locks are 1 and 2 */
	uint32 parts[2];

	memcpy(parts, key->bytes, sizeof(parts));
	SET_LOCKTAG_ADVISORY(*lock, MyDatabaseId, parts[0], parts[1], kind);
}

/*
 * Writing
 */

void
progress_write(const BackfillProgress *progress, TimestampTz created)
{
	Relation relation = outbox_open_waiting(RECORD_PARKED);
	const char *position = progress->position ? progress->position : "";
	ProgressHeader header = {
		.version = PROGRESS_VERSION,
		.role = progress->role,
		.started_at = progress->started_at,
		.name_length = (uint32) strlen(progress->name),
		.source_length = (uint32) strlen(progress->source),
		.position_length = (uint32) strlen(position),
		.has_position = progress->position != NULL,
	};
	EventPayload payload = {.contexts = progress->finished ? 1 : 0};
	HeapRecord record = {.status = OUTBOX_PROGRESS,
						 .database = MyDatabaseId,
						 .endpoint = progress->rows,
						 .created = created,
						 .origin = record_current_origin(),
						 .note = "",
						 .payload = &payload};
	StringInfoData data;

	if (relation == NULL)
		return;
	initStringInfo(&data);
	appendBinaryStringInfo(&data, (const char *) &header, sizeof(header));
	appendStringInfoString(&data, progress->name);
	appendStringInfoString(&data, progress->source);
	appendStringInfoString(&data, position);
	payload.data = data.data;
	payload.length = (uint32) data.len;
	memcpy(&payload.context, progress->key.bytes, sizeof(payload.context));
	memcpy(&payload.sequence, progress->key.bytes + sizeof(payload.context),
		   sizeof(payload.sequence));
	heaps_insert(relation, &record, NULL, NULL);
	relation_close(relation, NoLock);
	pfree(data.data);
}

/*
 * Reading
 */

static void
row_key(const HeapRow *row, ProgressKey *key)
{
	memcpy(key->bytes, &row->context, sizeof(row->context));
	memcpy(key->bytes + sizeof(row->context), &row->sequence,
		   sizeof(row->sequence));
}

static bool
same_key(const ProgressKey *a, const ProgressKey *b)
{
	return memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}

/* Whether what is recorded in a row was before that. */
static bool
row_is_before(const HeapRow *row, const BackfillProgress *progress)
{
	if (row->endpoint != progress->rows)
		return row->endpoint < progress->rows;
	return row->contexts == 0 && progress->finished;
}

/* Makes a progress of a record's payload; NULL if it can't be read. */
static BackfillProgress *
decode(const HeapRow *row, const char *data, size_t length)
{
	BackfillProgress *progress;
	ProgressHeader header;

	if (length < sizeof(header))
		return NULL;
	memcpy(&header, data, sizeof(header));
	if (header.version != PROGRESS_VERSION || (uint64) header.name_length +
													  header.source_length +
													  header.position_length !=
												  length - sizeof(header))
		return NULL;
	data += sizeof(header);
	progress = palloc(sizeof(BackfillProgress));
	row_key(row, &progress->key);
	progress->role = header.role;
	progress->name = pnstrdup(data, header.name_length);
	data += header.name_length;
	progress->source = pnstrdup(data, header.source_length);
	data += header.source_length;
	progress->position =
		header.has_position ? pnstrdup(data, header.position_length) : NULL;
	progress->rows = row->endpoint;
	progress->finished = row->contexts != 0;
	progress->started_at = header.started_at;
	progress->changed_at = row->created;
	return progress;
}

/* Adds a record to the list, in which each backfill is as far as it has got. */
static List *
add_progress(List *list, const HeapRow *row, const char *data, size_t length)
{
	BackfillProgress *progress;
	ProgressKey key;
	ListCell *cell;

	row_key(row, &key);
	foreach (cell, list)
	{
		BackfillProgress *known = lfirst(cell);

		if (!same_key(&known->key, &key))
			continue;
		if (row_is_before(row, known))
			return list;
		progress = decode(row, data, length);
		if (progress != NULL)
			lfirst(cell) = progress;
		return list;
	}
	progress = decode(row, data, length);
	return progress != NULL ? lappend(list, progress) : list;
}

static List *
read_progress(const ProgressKey *wanted)
{
	List *list = NIL;
	List *partial = NIL;
	Relation parked;
	TableScanDesc scan;
	HeapTuple tuple;

	outbox_require();
	parked = heaps_open(RECORD_PARKED, AccessShareLock, true);
	if (parked == NULL)
		return NIL;
	scan = table_beginscan(parked, GetActiveSnapshot(), 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		const HeapRow *row = (const HeapRow *) GETSTRUCT(tuple);
		EngineText texts[HEAP_TEXTS];
		ProgressKey key;

		CHECK_FOR_INTERRUPTS();
		if (row->status != OUTBOX_PROGRESS)
			continue;
		row_key(row, &key);
		if (wanted != NULL && !same_key(wanted, &key))
			continue;
		heaps_row_texts(row, texts);
		if (row->chunks == 1 || chunks_add(&partial, row, &texts[HEAP_PAYLOAD]))
			list = add_progress(list, row, texts[HEAP_PAYLOAD].data,
								texts[HEAP_PAYLOAD].length);
	}
	table_endscan(scan);
	chunks_free(&partial);
	relation_close(parked, AccessShareLock);
	return list;
}

List *
progress_list(void)
{
	return read_progress(NULL);
}

BackfillProgress *
progress_find(const ProgressKey *key)
{
	List *list = read_progress(key);

	return list != NIL ? linitial(list) : NULL;
}

/*
 * Forgetting
 */

typedef struct ForgetWork
{
	ProgressKey key;
	const BackfillProgress *before;
} ForgetWork;

static bool
is_forgotten(void *argument, const HeapRow *row, const HeapTupleData *tuple)
{
	const ForgetWork *work = argument;
	ProgressKey key;

	if (row->status != OUTBOX_PROGRESS)
		return false;
	row_key(row, &key);
	return same_key(&key, &work->key) &&
		   (work->before == NULL || row_is_before(row, work->before));
}

static void
set_done(void *argument, HeapRow *row)
{
	row->status = OUTBOX_DONE;
}

void
progress_forget(const ProgressKey *key, const BackfillProgress *before)
{
	ForgetWork work = {*key, before};
	HeapWalk walk = {
		.visit = is_forgotten, .change = set_done, .argument = &work};
	Relation parked;

	outbox_require();
	parked = heaps_open(RECORD_PARKED, RowExclusiveLock, true);
	if (parked == NULL)
		return;
	heaps_walk(parked, &walk);
	relation_close(parked, RowExclusiveLock);
	if (before == NULL || before->finished)
		outbox_parked_changed(1);
}
