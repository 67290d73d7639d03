/*
 * takeback.h
 *		Taking back events that wait (DESIGN 6.4).
 *
 * What is taken back must not be sent, and the worker has read some of what
 * waits.  So it has a lock for as long as it may have; who takes back asks for
 * it.  The worker then waits for the requests that are on their way, lets go of
 * all else that it has read, and of the lock, and begins anew afterwards.  The
 * lock goes with its owner, whatever happens to that, and without a worker it
 * is free.
 */
#ifndef ABSMARTLY_EVENTS_TAKEBACK_H
#define ABSMARTLY_EVENTS_TAKEBACK_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "data/shared.h"

/*
 * The worker's side: takes the lock, if nobody has it; whether it has it; gives
 * it up; whether somebody asks for it.
 */
extern bool takeback_claim(void);
extern bool takeback_claimed(void);
extern void takeback_yield(void);
extern bool takeback_wanted(DatabaseState *state);

/* An event of a record: the first one is 1. */
typedef struct TakenEvent
{
	int64 record;
	int64 event;
} TakenEvent;

/* What is to be taken back: what fits all that is said. */
typedef struct TakeBack
{
	int64 record; /* of that record; 0: of any */
	List *backfills; /* recorded by one of these BackfillProgress; NIL: by
					  * anybody */
	TakenEvent *events; /* of these; NULL: all */
	Size nevents;
	/* what was */
	int64 exposures;
	int64 goals;
	/* those of events that could not be, since others of their record stay */
	int64 left;
} TakeBack;

/*
 * Takes back what is committed and on its way to nobody, at once and for good.
 * Waits for the worker.  Before anybody is told, heaps_flush() is due, also
 * where it raises.
 */
extern void takeback_run(TakeBack *work);

#endif /* ABSMARTLY_EVENTS_TAKEBACK_H */
