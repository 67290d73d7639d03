/*
 * chunks.c
 *		Putting together records of several rows, for who only looks.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "events/chunks.h"

/* A record of which not all chunks have been seen. */
typedef struct PartialRecord
{
	int64 id;
	int found; /* chunks */
	int chunks;
	EngineText *payloads; /* copies; without data: not found yet */
} PartialRecord;

static PartialRecord *
find_partial(List **list, const HeapRow *row)
{
	PartialRecord *partial;
	ListCell *cell;

	foreach (cell, *list)
	{
		partial = lfirst(cell);
		if (partial->id == row->record)
			return partial;
	}
	partial = palloc0(sizeof(PartialRecord));
	partial->id = row->record;
	partial->chunks = row->chunks;
	partial->payloads = palloc0(row->chunks * sizeof(EngineText));
	*list = lappend(*list, partial);
	return partial;
}

static void
free_partial(PartialRecord *partial)
{
	for (int i = 0; i < partial->chunks; i++)
		if (partial->payloads[i].data != NULL)
			pfree(unconstify(char *, partial->payloads[i].data));
	pfree(partial->payloads);
	pfree(partial);
}

static EngineText
whole_payload(const PartialRecord *partial)
{
	size_t length = 0;
	char *data;

	for (int i = 0; i < partial->chunks; i++)
		length += partial->payloads[i].length;
	data = MemoryContextAllocHuge(CurrentMemoryContext, length);
	length = 0;
	for (int i = 0; i < partial->chunks; i++)
	{
		memcpy(data + length, partial->payloads[i].data,
			   partial->payloads[i].length);
		length += partial->payloads[i].length;
	}
	return (EngineText){data, length};
}

bool
chunks_add(List **partial, const HeapRow *row, EngineText *payload)
{
	PartialRecord *record = find_partial(partial, row);
	char *copy;

	if (row->chunk >= record->chunks ||
		record->payloads[row->chunk].data != NULL)
		return false;
	copy = palloc(payload->length);
	memcpy(copy, payload->data, payload->length);
	record->payloads[row->chunk] = (EngineText){copy, payload->length};
	if (++record->found < record->chunks)
		return false;
	*partial = list_delete_ptr(*partial, record);
	*payload = whole_payload(record);
	free_partial(record);
	return true;
}

void
chunks_free(List **partial)
{
	ListCell *cell;

	foreach (cell, *partial)
		free_partial(lfirst(cell));
	list_free(*partial);
	*partial = NIL;
}
