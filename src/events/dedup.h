/*
 * dedup.h
 *		Which exposures were queued lately, database-wide (DESIGN 6.1).
 *
 * A table of fixed size in shared memory, in sets of a few entries; the oldest
 * of a set makes room for a new one.  What is forgotten that way is sent again.
 * Without shared memory each session has marks of its own only.
 */
#ifndef ABSMARTLY_EVENTS_DEDUP_H
#define ABSMARTLY_EVENTS_DEDUP_H

#include "postgres.h"

#include "datatype/timestamp.h"

/* For shared.c: the memory that the table needs, and its initialisation. */
extern Size dedup_size(void);
extern void dedup_init(void *place, bool found);

/* Gets the memory that dedup_seen() is going to look at. */
extern void dedup_prefetch(uint64 key);

/*
 * Whether the key was marked within the interval before now.  Keys are hashes
 * of all that makes an exposure the same, the database included.
 */
extern bool dedup_seen(uint64 key, TimestampTz now, int64 interval_ms);

/* Marks a key; allocates nothing, raises nothing. */
extern void dedup_mark(uint64 key, TimestampTz now);

#endif /* ABSMARTLY_EVENTS_DEDUP_H */
