/*
 * take_back.c
 *		absmartly_take_back(): what waits is not to be sent (DESIGN 6.4).
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "events/heaps.h"
#include "events/progress.h"
#include "events/queue.h"
#include "events/takeback.h"
#include "sql/condition.h"
#include "sql/function.h"

#define VIEW "absmartly_pending_events"

/* events that are taken back at a time */
#define MOST_EVENTS ((Size) 4 * 1024 * 1024)
#define FETCHED_ROWS 10000

/* how often what has moved meanwhile is looked for */
#define MOST_LOOKS 3

/* how long what is in memory is waited for, which the worker writes */
#define QUEUE_MS 2000
#define WAIT_MS 20

/* The backfills of that name, whosever they are. */
static List *
find_backfills(const char *name)
{
	List *found = NIL;
	ListCell *cell;

	foreach (cell, progress_list())
		if (strcmp(((BackfillProgress *) lfirst(cell))->name, name) == 0)
			found = lappend(found, lfirst(cell));
	if (found == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no backfill \"%s\"", name),
				 errhint("The view absmartly_backfills has their names.")));
	return found;
}

/*
 * Waits until what is in memory is in the outbox, from where it can be taken
 * back; not for long.
 */
static void
wait_for_queue(void)
{
	DatabaseState *state = shared_my_database();
	TimestampTz started_at = GetCurrentTimestamp();
	TimestampTz oldest;

	while (state != NULL && state->worker_pid != 0 &&
		   (oldest = queue_oldest(state)) != 0 && oldest <= started_at &&
		   !TimestampDifferenceExceeds(started_at, GetCurrentTimestamp(),
									   QUEUE_MS))
	{
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 WAIT_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* The query for the events that a filter is about. */
static char *
filter_query(Oid schema, const char *filter)
{
	Oid view = get_relname_relid(VIEW, schema);
	Relation relation;

	if (!OidIsValid(view))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("the view \"%s\" is missing", VIEW)));
	relation = relation_open(view, AccessShareLock);
	condition_check(filter, relation, "absmartly_take_back", "filter");
	relation_close(relation, AccessShareLock);
	/* a comment at the filter's end must not reach further */
	return psprintf(
		"SELECT record, event FROM %s WHERE ($1 IS NULL OR "
		"record OPERATOR(pg_catalog.=) $1) AND (%s\n)",
		quote_qualified_identifier(get_namespace_name(schema), VIEW), filter);
}

static Portal
open_events(const char *query, int64 record)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid types[] = {INT8OID};
	Datum values[] = {Int64GetDatum(record)};
	char nulls[] = {record != 0 ? ' ' : 'n'};
	Portal portal = NULL;

	PG_TRY();
	{
		portal = SPI_cursor_open_with_args(NULL, query, 1, types, values, nulls,
										   false, CURSOR_OPT_NO_SCROLL);
	}
	PG_CATCH();
	{
		condition_rethrow(caller, query);
	}
	PG_END_TRY();
	return portal;
}

/* Reads some events; false if that are the last ones. */
static bool
fetch_events(Portal portal, const char *query, TakeBack *work)
{
	MemoryContext caller = CurrentMemoryContext;

	work->nevents = 0;
	while (work->nevents + FETCHED_ROWS <= MOST_EVENTS)
	{
		PG_TRY();
		{
			SPI_cursor_fetch(portal, true, FETCHED_ROWS);
		}
		PG_CATCH();
		{
			condition_rethrow(caller, query);
		}
		PG_END_TRY();
		if (SPI_processed == 0)
			return false;
		work->events = repalloc_huge(
			work->events, (work->nevents + SPI_processed) * sizeof(TakenEvent));
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			HeapTuple row = SPI_tuptable->vals[i];
			TupleDesc columns = SPI_tuptable->tupdesc;
			bool isnull;

			work->events[work->nevents++] = (TakenEvent){
				DatumGetInt64(SPI_getbinval(row, columns, 1, &isnull)),
				DatumGetInt64(SPI_getbinval(row, columns, 2, &isnull))};
		}
		SPI_freetuptable(SPI_tuptable);
	}
	return true;
}

static void
error_callback(void *argument)
{
	errcontext("filter of absmartly_take_back(): %s", (const char *) argument);
}

/*
 * Takes back what the filter is true of.  The user's code in it runs before
 * anything is locked.  Gives the number of events for which it was.
 */
static int64
take_filtered(const char *query, char *filter, TakeBack *work)
{
	ErrorContextCallback context = {error_context_stack, error_callback,
									filter};
	Portal portal;
	int64 found = 0;
	bool more;

	work->events = palloc(sizeof(TakenEvent));
	error_context_stack = &context;
	portal = open_events(query, work->record);
	do
	{
		error_context_stack = &context;
		more = fetch_events(portal, query, work);
		error_context_stack = context.previous;
		found += (int64) work->nevents;
		if (work->nevents > 0)
			takeback_run(work);
	} while (more);
	SPI_cursor_close(portal);
	pfree(work->events);
	return found;
}

/* The same, and looks again for what has moved meanwhile. */
static void
take_looking(Oid schema, char *filter, TakeBack *work)
{
	char *query = filter_query(schema, filter);
	int64 found;
	int64 taken;
	int looks = 0;

	wait_for_queue();
	SPI_connect();
	do
	{
		taken = -(work->exposures + work->goals);
		work->left = 0;
		found = take_filtered(query, filter, work);
		taken += work->exposures + work->goals;
		looks++;
	} while (found > taken + work->left && looks < MOST_LOOKS &&
			 (taken > 0 || looks == 1));
	SPI_finish();
}

/*
 * Says in the log who has taken back what, once that is on disk.  Looks at no
 * catalog.
 */
static void
report(const TakeBack *work, const char *role, const char *backfill,
	   const char *filter)
{
	StringInfoData what;

	if (work->exposures + work->goals == 0)
		return;
	heaps_flush();
	shared_count(COUNTER_EXPOSURES_TAKEN_BACK, (uint64) work->exposures);
	shared_count(COUNTER_GOALS_TAKEN_BACK, (uint64) work->goals);
	initStringInfo(&what);
	if (work->record != 0)
		appendStringInfo(&what, "  Record: " INT64_FORMAT ".", work->record);
	if (backfill != NULL)
		appendStringInfo(&what, "  Backfill: %s.", backfill);
	if (filter != NULL)
		appendStringInfo(&what, "  Filter: %s.", filter);
	ereport(LOG,
			(errmsg("absmartly: " INT64_FORMAT " exposures and " INT64_FORMAT
					" goals that waited were taken back by role \"%s\"",
					work->exposures, work->goals, role),
			 errdetail_internal("%s", what.data + 2)));
}

/* Says what fitted the filter and waits on. */
static void
warn_of_left(const TakeBack *work)
{
	if (work->left > 0)
		ereport(WARNING,
				(errmsg(INT64_FORMAT " events that fit the filter were not "
									 "taken back",
						work->left),
				 errdetail("They are in records that are larger than a row, "
						   "or damaged, and have other events, too."),
				 errhint("absmartly_take_back(record) takes back all of a "
						 "record.")));
}

PG_FUNCTION_INFO_V1(absmartly_take_back);

/*
 * absmartly_take_back(record bigint, backfill text, filter text) -> bigint
 *
 * Drops events that wait and are not on their way: those that fit all arguments
 * that are given.  Gives their number.  22023 without an argument, 42704 for an
 * unknown backfill, 25006 in a read-only transaction, 55P03 after lock_timeout,
 * and the errors of the filter.
 */
SQL_FUNCTION(absmartly_take_back)
{
	MemoryContext caller = CurrentMemoryContext;
	const char *role = GetUserNameFromId(GetUserId(), false);
	TakeBack work = {0};
	char *backfill = NULL;
	char *filter = NULL;

	PreventCommandDuringRecovery("absmartly_take_back()");
	PreventCommandIfReadOnly("absmartly_take_back()");
	if (PG_ARGISNULL(0) && PG_ARGISNULL(1) && PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("absmartly_take_back() needs a record, a backfill or a "
						"filter"),
				 errhint("filter => 'true' takes back all that waits.")));
	if (!PG_ARGISNULL(0))
	{
		work.record = PG_GETARG_INT64(0);
		/* numbers of records are positive */
		if (work.record <= 0)
			PG_RETURN_INT64(0);
	}
	if (!PG_ARGISNULL(1))
	{
		backfill = text_to_cstring(PG_GETARG_TEXT_PP(1));
		work.backfills = find_backfills(backfill);
	}
	if (!PG_ARGISNULL(2))
		filter = text_to_cstring(PG_GETARG_TEXT_PP(2));

	PG_TRY();
	{
		if (filter == NULL)
			takeback_run(&work);
		else
			take_looking(get_func_namespace(fcinfo->flinfo->fn_oid), filter,
						 &work);
	}
	PG_FINALLY();
	{
		/* what was taken back before an error is gone, too */
		MemoryContextSwitchTo(caller);
		report(&work, role, backfill, filter);
	}
	PG_END_TRY();
	warn_of_left(&work);
	PG_RETURN_INT64(work.exposures + work.goals);
}
