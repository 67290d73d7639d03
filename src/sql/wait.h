/*
 * wait.h
 *		Waiting for the worker, in functions that ask it for something
 *		(DESIGN 3.2, 3.3).
 */
#ifndef ABSMARTLY_SQL_WAIT_H
#define ABSMARTLY_SQL_WAIT_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "fmgr.h"

#include "data/shared.h"

/* Raises 55000 where a function needs the worker and there can be none. */
extern void wait_require_worker(const char *function);

/* This database's state, or NULL; asks for a worker if there is none. */
extern DatabaseState *wait_state(void);

/*
 * The moment at which a time-out, an interval, ends.  Raises 22004 for NULL and
 * 22023 for a negative one.
 */
extern TimestampTz wait_deadline(FunctionCallInfo fcinfo, int argument);

/*
 * Sleeps until something changes in state, or a little while if there is no
 * state to watch; serves interrupts.  False when the deadline has passed.  Who
 * stops waiting calls ConditionVariableCancelSleep().
 */
extern bool wait_for_change(DatabaseState *state, TimestampTz until);

/*
 * Waits for a fetch that starts now or later; gives the data's generation.
 * slot, if not NULL, is the one of the context that asks.  Raises 08006 if the
 * fetch fails or the time is over.
 */
extern uint64 wait_for_fetch(TimestampTz until, ContextSlot *slot);

/*
 * Waits until what is committed is delivered: of all, or of the context of a
 * slot.
 */
typedef struct WaitOutcome
{
	bool finished; /* else the time is over */
	bool failed;
	bool has_worker; /* when last looked at */
	int code; /* SQLSTATE of the failure */
	char error[SHARED_MAX_ERROR]; /* its reason, or the last one so far */
	int64 delivered; /* events; not for a context */
} WaitOutcome;
extern void wait_for_publishing(TimestampTz until, ContextSlot *slot,
								WaitOutcome *outcome);

#endif /* ABSMARTLY_SQL_WAIT_H */
