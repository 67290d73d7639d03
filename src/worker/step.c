/*
 * step.c
 *		Steps of the delivery that may raise, without ending the worker.
 */
#include "postgres.h"

#include "access/xact.h"
#include "storage/condition_variable.h"
#include "storage/fd.h"
#include "storage/lwlock.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"

#include "worker/collector.h"
#include "worker/leave.h"
#include "worker/step.h"

#define PAUSE_MS 1000
#define MAX_DOUBLINGS 6
#define REPORT_MS 60000

static CollectorPause rest;
static int failed = 0; /* in a row */
static CollectorPause report_pause;
static int reported_code = 0;

void
step_clean_up(void)
{
	AbortCurrentTransaction();
	/*
	 * What can be left of work outside of transactions.  That has no resource
	 * owner, so it pins no buffer and waits for no cleanup of one; the lock of
	 * a buffer's contents is an LWLock like others.
	 */
	LWLockReleaseAll();
	ConditionVariableCancelSleep();
	AtEOXact_Files(false);
	AtEOXact_HashTables(false);
}

bool
step_try(DatabaseState *state, const char *what, StepFunction step,
		 void *argument)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool good = false;

	if (leave_is_near())
		return false;
	PG_TRY();
	{
		leave_begin_work();
		step(state, argument);
		leave_end_work();
		failed = 0;
		good = true;
	}
	PG_CATCH();
	{
		ErrorData *error;

		leave_end_work();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		step_clean_up();
		MemoryContextSwitchTo(context);
		if (!leave_is_near() && (error->sqlerrcode != reported_code ||
								 collector_pause_left(&report_pause) <= 0))
		{
			ereport(WARNING,
					(errcode(error->sqlerrcode),
					 errmsg("absmartly: %s: %s", what, error->message),
					 error->detail ? errdetail("%s", error->detail) : 0,
					 errhint("Nothing is lost: it is tried again.")));
			reported_code = error->sqlerrcode;
			collector_pause(&report_pause, GetCurrentTimestamp(), REPORT_MS);
		}
		FreeErrorData(error);
		collector_pause(
			&rest, GetCurrentTimestamp(),
			collector_round_ms(PAUSE_MS, Min(failed++, MAX_DOUBLINGS), 0));
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return good;
}

long
step_pause_left(void)
{
	return collector_pause_left(&rest);
}

void
step_end_pause(void)
{
	rest.until = 0;
}
