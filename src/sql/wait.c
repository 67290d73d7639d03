/*
 * wait.c
 *		Waiting for the worker, in functions that ask it for something.
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "data/context_slot.h"
#include "sql/wait.h"

/* Raises where a function needs the worker and there can be none. */
void
wait_require_worker(const char *function)
{
	if (shared_available())
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s needs the background worker of absmartly", function),
			 errdetail("The library was not loaded at server start."),
			 errhint("Add absmartly to \"shared_preload_libraries\" and "
					 "restart the server.")));
}

/* This database's state; asks for a worker if there is none. */
DatabaseState *
wait_state(void)
{
	DatabaseState *state = shared_my_database();

	if (state == NULL || state->worker_pid == 0)
		shared_request_probe(MyDatabaseId);
	return state;
}

/* The moment at which a time-out ends; a negative or NULL one is refused. */
TimestampTz
wait_deadline(FunctionCallInfo fcinfo, int argument)
{
	Interval *timeout;
	double ms;

	if (PG_ARGISNULL(argument))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("the time-out must not be null")));
	timeout = PG_GETARG_INTERVAL_P(argument);
	ms = timeout->time / 1000.0 +
		 (timeout->day + timeout->month * (double) DAYS_PER_MONTH) *
			 SECS_PER_DAY * 1000.0;
	if (ms < 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("the time-out must not be negative")));
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
									   (int64) Min(ms, 1000.0 * SECS_PER_YEAR));
}

/*
 * Sleeps until something changes in state, or a little while if there is no
 * state to watch.  False when the deadline has passed.
 */
bool
wait_for_change(DatabaseState *state, TimestampTz until)
{
	long left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);

	if (left <= 0)
		return false;
	if (state != NULL)
		ConditionVariableTimedSleep(&state->changed, Min(left, 1000L),
									PG_WAIT_EXTENSION);
	else
	{
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(left, 20L), PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return true;
}

uint64
wait_for_fetch(TimestampTz until, ContextSlot *slot)
{
	DatabaseState *state;
	uint64 ticket = 0;
	uint64 generation = 0;
	bool finished = false;
	bool failed = false;
	char error[SHARED_MAX_ERROR] = "";

	for (;;)
	{
		state = wait_state();
		if (state != NULL)
		{
			LWLockAcquire(&state->lock, LW_EXCLUSIVE);
			if (ticket == 0)
			{
				ticket = ++state->refresh_requested;
				if (slot != NULL)
					slot->refresh_ticket = ticket;
				else
					state->refresh_urgent = ticket;
			}
			finished = state->refresh_finished >= ticket && !state->suspended;
			if (finished)
			{
				failed = state->refresh_succeeded < ticket;
				strlcpy(error, state->refresh_error, sizeof(error));
				generation = state->generation;
			}
			else
				strlcpy(error, state->fetch.last_error, sizeof(error));
			LWLockRelease(&state->lock);
			if (finished)
				break;
			shared_wake_worker(state);
		}
		if (!wait_for_change(state, until))
			break;
	}
	ConditionVariableCancelSleep();

	if (!finished)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("time-out while waiting for the experiments of "
						"database \"%s\"",
						get_database_name(MyDatabaseId)),
				 state == NULL || state->worker_pid == 0
					 ? errdetail("No worker of absmartly runs for this "
								 "database.")
				 : error[0] != '\0' ? errdetail("Last error: %s.", error)
									: 0,
				 errhint("The view \"absmartly_stat\" shows what the worker "
						 "does.")));
	if (failed)
		ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
						errmsg("could not fetch the experiments: %s", error)));
	return generation;
}

/* Draws a ticket, or looks how the one that was drawn fares. */
static void
look_at_publishing(DatabaseState *state, ContextSlot *slot, uint64 *ticket,
				   WaitOutcome *outcome)
{
	uint64 *requested =
		slot ? &slot->publish_requested : &state->publish_requested;
	uint64 succeeded;

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	if (*ticket == 0)
		*ticket = ++*requested;
	outcome->finished =
		(slot ? slot->publish_finished : state->publish_finished) >= *ticket;
	if (outcome->finished)
	{
		succeeded = slot ? slot->publish_succeeded : state->publish_succeeded;
		outcome->failed = succeeded < *ticket;
		outcome->code =
			slot ? slot->publish_error_code : state->publish_error_code;
		strlcpy(outcome->error,
				slot ? slot->publish_error : state->publish_error,
				sizeof(outcome->error));
		outcome->delivered = state->publish_delivered;
	}
	else
		strlcpy(outcome->error, state->publish.last_error,
				sizeof(outcome->error));
	LWLockRelease(&state->lock);
}

void
wait_for_publishing(TimestampTz until, ContextSlot *slot, WaitOutcome *outcome)
{
	uint64 ticket = 0;

	memset(outcome, 0, sizeof(*outcome));
	for (;;)
	{
		DatabaseState *state = wait_state();

		outcome->has_worker = state != NULL && state->worker_pid != 0;
		if (state != NULL)
		{
			bool drawn = ticket == 0;

			look_at_publishing(state, slot, &ticket, outcome);
			if (outcome->finished)
				break;
			if (drawn && slot != NULL)
				context_slots_changed(state);
			else
				shared_wake_worker(state);
		}
		if (!wait_for_change(state, until))
			break;
	}
	ConditionVariableCancelSleep();
}
