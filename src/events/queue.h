/*
 * queue.h
 *		The memory queue: events of those who can't or won't write to the
 *		outbox, and exposures on their way to it (DESIGN 6.1, 6.3).
 *
 * A pool of small blocks in fixed shared memory, and for each database a list
 * of entries in it.  What is in it is lost in a crash, and when it is full new
 * entries are dropped.
 */
#ifndef ABSMARTLY_EVENTS_QUEUE_H
#define ABSMARTLY_EVENTS_QUEUE_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/snapshot.h"

#include "events/record.h"

/* For shared.c: the memory that the queue needs, and its initialisation. */
extern Size queue_size(void);
extern void queue_init(void *place, bool found);

/* Bytes of payload that fit at most; 0 without shared memory. */
extern Size queue_capacity(void);

/*
 * Adds an entry at the end of a transaction: allocates nothing, raises
 * nothing.  False if there is no room.  Sets *first if nothing was waiting: the
 * worker does not know of the queue then, and is to be woken.
 */
extern bool queue_put(DatabaseState *state, const EventOrigin *origin,
					  const EventPayload *payload, bool *first);

/* Whether a payload of so many bytes leaves half of the queue to others. */
extern bool queue_has_room(Size bytes);

/* The worker's side: */

/*
 * At a worker's start: what another one had taken is there again, unless it has
 * come to the outbox.
 */
extern void queue_worker_start(DatabaseState *state);

/*
 * A copy of the oldest entry of a lane that is not taken, in the current memory
 * context; it is taken then.  NULL if there is none.
 */
extern EventRecord *queue_take(DatabaseState *state, EventLane lane);

/*
 * These records, which are taken, have been written to the outbox by a
 * transaction, and are there from the moment of its commit; if it does, the
 * worker removes them afterwards.  Others may be taken, too: by a worker that
 * has handed over, and waits for what it has sent.
 */
extern void queue_moving(DatabaseState *state, const List *records,
						 TransactionId mover);

/* When the oldest entry came that is not taken; 0: there is none. */
extern TimestampTz queue_oldest(DatabaseState *state);

/* Puts a taken one back; removes it for good. */
extern void queue_release(DatabaseState *state, EventRecord *record);
extern void queue_remove(DatabaseState *state, EventRecord *record);

/* Removes all entries of a database: by its worker, or where it has none. */
extern void queue_clear(DatabaseState *state);

/*
 * For monitoring: copies of all entries, taken or not; entries, and bytes of
 * the pool that they take.  moment, if not NULL, becomes what is committed at
 * the moment of the list: an entry whose mover is among that is in the outbox
 * as well.
 */
extern List *queue_list(DatabaseState *state, Snapshot moment);
extern void queue_fill(DatabaseState *state, int64 *entries, int64 *bytes);

#endif /* ABSMARTLY_EVENTS_QUEUE_H */
