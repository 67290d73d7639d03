/*
 * drain.h
 *		From the memory queue to the outbox.
 */
#ifndef ABSMARTLY_WORKER_DRAIN_H
#define ABSMARTLY_WORKER_DRAIN_H

#include "postgres.h"

#include "data/shared.h"

/*
 * Moves what is in the memory queue to the outbox, some megabytes in a
 * transaction; what has been taken from it to be sent stays.  A step.
 */
extern void drain_queue(DatabaseState *state, void *argument);

/*
 * Milliseconds until the queue's oldest entry has been in memory for as long as
 * a crash may undo; -1: there is none.
 */
extern long drain_left(DatabaseState *state);

/* Whether the whole server shuts down, and not only this worker. */
extern bool drain_server_stops(void);

#endif /* ABSMARTLY_WORKER_DRAIN_H */
