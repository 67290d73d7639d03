/*
 * chunks.h
 *		Putting together records of several rows, for who only looks.
 *
 * The rows may come in any order: VACUUM FULL and a scan that joins another one
 * may begin in the midst of a heap.
 */
#ifndef ABSMARTLY_EVENTS_CHUNKS_H
#define ABSMARTLY_EVENTS_CHUNKS_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "events/heaps.h"

/*
 * Adds a row of several to what there is of its record in the list, of which
 * *payload is its part.  True: the record is whole, and *payload all of it, in
 * memory of the caller's.
 */
extern bool chunks_add(List **partial, const HeapRow *row, EngineText *payload);

/* Forgets what did not become whole. */
extern void chunks_free(List **partial);

#endif /* ABSMARTLY_EVENTS_CHUNKS_H */
