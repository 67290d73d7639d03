/*
 * admin.c
 *		Functions on the shared data as a whole: readiness, refreshing,
 *		loading by hand, publishing, statistics (DESIGN 3.3).
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/condition_variable.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "data/keep.h"
#include "data/shared.h"
#include "data/store.h"
#include "data/version.h"
#include "engine/snapshot.h"
#include "events/outbox.h"
#include "events/queue.h"
#include "settings.h"
#include "sql/function.h"
#include "sql/granted.h"
#include "sql/text.h"
#include "sql/wait.h"

PG_FUNCTION_INFO_V1(absmartly_is_ready);
PG_FUNCTION_INFO_V1(absmartly_wait_until_ready);
PG_FUNCTION_INFO_V1(absmartly_refresh);
PG_FUNCTION_INFO_V1(absmartly_publish);
PG_FUNCTION_INFO_V1(absmartly_set_context_data);
PG_FUNCTION_INFO_V1(absmartly_shared_data);
PG_FUNCTION_INFO_V1(absmartly_stat_get);
PG_FUNCTION_INFO_V1(absmartly_stat_reset);

/* how long absmartly_set_context_data() waits for a worker's first sign */
#define TARGET_TIMEOUT_MS 10000

static bool
is_ready(void)
{
	DataInfo info;

	return version_info(&info);
}

/*
 * absmartly_is_ready() -> boolean
 */
SQL_FUNCTION(absmartly_is_ready)
{
	if (!shared_available())
		PG_RETURN_BOOL(data_version() != NULL);
	(void) wait_state();
	PG_RETURN_BOOL(is_ready());
}

/*
 * absmartly_wait_until_ready(timeout interval) -> boolean
 *		Whether there is data, before or when the time is over.
 */
SQL_FUNCTION(absmartly_wait_until_ready)
{
	TimestampTz until = wait_deadline(fcinfo, 0);

	if (!shared_available())
		PG_RETURN_BOOL(data_version() != NULL);
	while (!is_ready())
	{
		DatabaseState *state = wait_state();

		if (!wait_for_change(state, until))
			break;
	}
	ConditionVariableCancelSleep();
	version_unpin_statement();
	PG_RETURN_BOOL(is_ready());
}

/*
 * absmartly_refresh(timeout interval) -> bigint
 *		Waits for a fetch that starts now or later; the data's generation.
 */
SQL_FUNCTION(absmartly_refresh)
{
	TimestampTz until = wait_deadline(fcinfo, 0);
	uint64 generation;

	wait_require_worker("absmartly_refresh()");
	generation = wait_for_fetch(until, NULL);
	version_unpin_statement();
	PG_RETURN_INT64((int64) generation);
}

/*
 * absmartly_publish(timeout interval) -> bigint
 *		Waits until all that is committed is delivered; the number of events.
 */
SQL_FUNCTION(absmartly_publish)
{
	TimestampTz until = wait_deadline(fcinfo, 0);
	WaitOutcome outcome;

	wait_require_worker("absmartly_publish()");
	wait_for_publishing(until, NULL, &outcome);
	if (!outcome.finished)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("time-out while waiting for the events of database "
						"\"%s\" to be published",
						get_database_name(MyDatabaseId)),
				 !outcome.has_worker
					 ? errdetail("No worker of absmartly runs for this "
								 "database.  No event is lost.")
				 : outcome.error[0] != '\0'
					 ? errdetail("Last error: %s.  No event is lost.",
								 outcome.error)
					 : errdetail("No event is lost."),
				 errhint("The view \"absmartly_stat\" shows what the worker "
						 "does.")));
	if (outcome.failed &&
		outcome.code == ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE)
		ereport(ERROR, (errcode(outcome.code),
						errmsg("events are not published: %s", outcome.error),
						errdetail("They are kept."),
						errhint("Set \"absmartly.endpoint\", and turn "
								"\"absmartly.publishing\" on.")));
	if (outcome.failed)
		ereport(ERROR,
				(errcode(outcome.code),
				 errmsg("could not publish events: %s", outcome.error),
				 errdetail("No event is lost: they are kept, and it is tried "
						   "again.")));

	PG_RETURN_INT64(outcome.delivered);
}

/*
 * What data is loaded for by hand.  Where there is a worker it says so; it may
 * have to be started first.
 */
static DatabaseState *
loading_target(DataTarget *target)
{
	TimestampTz until =
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), TARGET_TIMEOUT_MS);
	DatabaseState *state;
	bool known = false;

	if (!shared_available())
	{
		const DataVersion *version = data_version();

		if (version != NULL)
			*target = version->target;
		else
		{
			memset(target, 0, sizeof(*target));
			strlcpy(target->endpoint, settings_endpoint, SHARED_MAX_ENDPOINT);
			strlcpy(target->application, settings_application, SHARED_MAX_NAME);
			strlcpy(target->environment, settings_environment, SHARED_MAX_NAME);
			strlcpy(target->application_version, settings_application_version,
					SHARED_MAX_NAME);
		}
		return NULL;
	}

	for (;;)
	{
		state = wait_state();
		if (state != NULL)
		{
			LWLockAcquire(&state->lock, LW_SHARED);
			known = state->target_known && !state->suspended;
			*target = state->target;
			LWLockRelease(&state->lock);
			if (known)
				break;
		}
		if (!wait_for_change(state, until))
			break;
	}
	ConditionVariableCancelSleep();

	if (!known)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no worker of absmartly serves database \"%s\"",
						get_database_name(MyDatabaseId)),
				 errhint("Check \"absmartly.databases\" and "
						 "\"max_worker_processes\", and that CREATE EXTENSION "
						 "is committed.")));
	return state;
}

/*
 * absmartly_set_context_data(data json) -> void
 *		Puts data in force until the next fetch.
 */
SQL_FUNCTION(absmartly_set_context_data)
{
	EngineText data =
		text_data_argument(PG_GETARG_DATUM(0), DATA_MAX_TEXT, NULL);
	TimestampTz now = GetCurrentTimestamp();
	DataTarget target;
	DatabaseState *state = loading_target(&target);
	bool unchanged;

	(void) keep_publish(state, &target, data.data, data.length, DATA_SET, now,
						&unchanged);
	version_unpin_statement();
	PG_RETURN_VOID();
}

/* A text of the data's target, in the database's encoding. */
static Datum
setting_datum(const char *text)
{
	return CStringGetTextDatum(store_message(text, CurrentMemoryContext));
}

/*
 * absmartly_shared_data() -> (data, generation, source, endpoint, application,
 * environment, fetched_at), no row if there is no data
 */
SQL_FUNCTION(absmartly_shared_data)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	const DataVersion *version = data_version();
	Datum values[7];
	bool nulls[7] = {false};
	EngineText raw;
	DataInfo info;
	const char *data;

	InitMaterializedSRF(fcinfo, 0);
	if (version == NULL)
		return (Datum) 0;

	raw = snapshot_text(data_version_snapshot(version),
						data_version_snapshot(version)->raw);
	data = store_database_text(raw.data, raw.length);
	if (data != NULL)
		values[0] = CStringGetTextDatum(data);
	else
		nulls[0] = true;
	values[1] = Int64GetDatum((int64) version->generation);
	(void) version_info(&info);
	values[2] = CStringGetTextDatum(data_source_name(info.source));
	values[3] = setting_datum(version->target.endpoint);
	values[4] = setting_datum(version->target.application);
	values[5] = setting_datum(version->target.environment);
	values[6] = TimestampTzGetDatum(info.fetched_at);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	return (Datum) 0;
}

static const char *
worker_state_name(WorkerState state)
{
	switch (state)
	{
		case WORKER_NONE:
			return "not running";
		case WORKER_NO_SLOT:
			return "no worker slot";
		case WORKER_STARTING:
			return "starting";
		case WORKER_IDLE:
			return "idle";
		case WORKER_FETCHING:
			return "fetching";
		case WORKER_RETRYING:
			return "retrying";
		case WORKER_BACKING_OFF:
			return "backing off";
		case WORKER_PUBLISHING:
			return "publishing";
		case WORKER_LOGGING:
			return "logging";
	}
	return "unknown";
}

/* A row of absmartly_stat while it is put together. */
typedef struct StatRow
{
	Datum values[64];
	bool nulls[64];
	int count;
} StatRow;

static void
stat_add(StatRow *row, Datum value)
{
	Assert(row->count < (int) lengthof(row->values));
	row->nulls[row->count] = false;
	row->values[row->count++] = value;
}

static void
stat_add_null(StatRow *row)
{
	Assert(row->count < (int) lengthof(row->values));
	row->nulls[row->count] = true;
	row->values[row->count++] = (Datum) 0;
}

static void
stat_add_text(StatRow *row, const char *text)
{
	if (text == NULL || text[0] == '\0')
		stat_add_null(row);
	else
		stat_add(row, CStringGetTextDatum(text));
}

static void
stat_add_time(StatRow *row, TimestampTz time)
{
	if (time == 0)
		stat_add_null(row);
	else
		stat_add(row, TimestampTzGetDatum(time));
}

static void
stat_add_age(StatRow *row, TimestampTz time)
{
	if (time == 0)
		stat_add_null(row);
	else
		stat_add(row, DirectFunctionCall2(
						  timestamp_mi,
						  TimestampTzGetDatum(Max(GetCurrentTimestamp(), time)),
						  TimestampTzGetDatum(time)));
}

/* A number that can't be told while somebody has locked the outbox. */
static void
stat_add_known(StatRow *row, bool known, int64 value)
{
	if (known)
		stat_add(row, Int64GetDatum(value));
	else
		stat_add_null(row);
}

/* The columns on what waits in the outbox. */
static void
stat_add_outbox(StatRow *row, const OutboxSummary *outbox)
{
	const OutboxLaneSummary *live = &outbox->lanes[LANE_LIVE];
	const OutboxLaneSummary *bulk = &outbox->lanes[LANE_BULK];

	stat_add_known(row, outbox->known, live->records + bulk->records);
	stat_add_known(row, outbox->known, live->events + bulk->events);
	stat_add(row, Int64GetDatum(live->bytes + bulk->bytes));
	stat_add_age(row, live->oldest == 0   ? bulk->oldest
					  : bulk->oldest == 0 ? live->oldest
										  : Min(live->oldest, bulk->oldest));
	stat_add_age(row, live->oldest);
	stat_add_known(row, outbox->known, bulk->records);
	stat_add_known(row, outbox->known, bulk->events);
	stat_add(row, Int64GetDatum(bulk->bytes));
	stat_add_age(row, bulk->oldest);
}

/* The columns on events. */
static void
stat_add_events(StatRow *row, DatabaseState *state)
{
	const PublishStats *publish = &state->publish;
	const EventCounter queued[] = {COUNTER_EXPOSURES_QUEUED,
								   COUNTER_GOALS_QUEUED,
								   COUNTER_EXPOSURES_DEDUPLICATED};
	const EventCounter dropped[] = {
		COUNTER_EXPOSURES_DROPPED, COUNTER_GOALS_DROPPED,
		COUNTER_EXPOSURES_IMPOSSIBLE, COUNTER_EXPOSURES_TAKEN_BACK,
		COUNTER_GOALS_TAKEN_BACK};
	OutboxSummary outbox;
	int64 queue_entries = 0;
	int64 queue_bytes = 0;

	outbox_summary(&outbox);
	if (OidIsValid(state->database))
		queue_fill(state, &queue_entries, &queue_bytes);

	stat_add_time(row, publish->last_success_at);
	stat_add_text(row, publish->last_error);
	stat_add_time(row, publish->last_error_at);
	for (int i = 0; i < (int) lengthof(queued); i++)
		stat_add(row, Int64GetDatum((int64) pg_atomic_read_u64(
						  &state->counters[queued[i]])));
	stat_add(row, Int64GetDatum(publish->exposures_sent));
	stat_add(row, Int64GetDatum(publish->goals_sent));
	stat_add(row, Int64GetDatum(publish->exposures_rejected));
	stat_add(row, Int64GetDatum(publish->goals_rejected));
	for (int i = 0; i < (int) lengthof(dropped); i++)
		stat_add(row, Int64GetDatum((int64) pg_atomic_read_u64(
						  &state->counters[dropped[i]])));
	stat_add_outbox(row, &outbox);
	stat_add_known(row, outbox.known, outbox.held_records);
	stat_add_known(row, outbox.known, outbox.foreign_records);
	stat_add_known(row, outbox.known, outbox.dead_events);
	stat_add(row, Int64GetDatum(queue_entries));
	stat_add(row, Int64GetDatum(queue_bytes));
	stat_add(row, Int64GetDatum(publish->requests));
	stat_add(row, Int64GetDatum(publish->failures));
	stat_add(row, Int64GetDatum(publish->retries));
	stat_add(row, Int64GetDatum(publish->bytes_sent));
	stat_add(row, Float8GetDatum(publish->latency_last_ms));
	stat_add(row,
			 Float8GetDatum(publish->requests > 0
								? publish->latency_total_ms / publish->requests
								: 0.0));
	stat_add(row, Int64GetDatum(publish->warnings));
	stat_add_text(row, publish->last_warning);
}

/*
 * absmartly_stat_get() -> one row; the view absmartly_stat names its columns.
 * 42501 for who may not read that.
 */
SQL_FUNCTION(absmartly_stat_get)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	const DataVersion *version = data_version();
	const SnapImage *snapshot = version ? data_version_snapshot(version) : NULL;
	DatabaseState *state = shared_my_database();
	DatabaseState *copy = palloc0(sizeof(DatabaseState));
	StatRow row = {.count = 0};
	DataInfo info;

	if (!granted_view(fcinfo, "absmartly_stat"))
		granted_refuse(fcinfo, "absmartly_stat");
	if (state != NULL)
	{
		LWLockAcquire(&state->lock, LW_SHARED);
		memcpy(copy, state, sizeof(DatabaseState));
		LWLockRelease(&state->lock);
	}

	stat_add_text(&row, shared_available() ? "preloaded" : "not preloaded");
	if (copy->worker_pid != 0)
		stat_add(&row, Int32GetDatum(copy->worker_pid));
	else
		stat_add_null(&row);
	stat_add_text(&row, worker_state_name(copy->worker_state));
	stat_add(&row, BoolGetDatum(version != NULL));
	if (version != NULL && version_info(&info))
	{
		stat_add(&row, Int64GetDatum((int64) version->generation));
		stat_add_text(&row, data_source_name(info.source));
		stat_add(&row, Int32GetDatum((int32) snapshot->nexperiments));
		stat_add(&row, Int32GetDatum((int32) snapshot->nleft_out));
		stat_add_time(&row, info.fetched_at);
	}
	else
		for (int i = 0; i < 5; i++)
			stat_add_null(&row);
	stat_add_time(&row, copy->fetch.last_success_at);
	stat_add_text(&row, copy->fetch.last_error);
	stat_add_time(&row, copy->fetch.last_error_at);
	stat_add(&row, Int64GetDatum(copy->fetch.requests));
	stat_add(&row, Int64GetDatum(copy->fetch.failures));
	stat_add(&row, Int64GetDatum(copy->fetch.retries));
	stat_add(&row, Int64GetDatum(copy->fetch.bytes_received));
	stat_add(&row, Float8GetDatum(copy->fetch.latency_last_ms));
	stat_add(&row, Float8GetDatum(copy->fetch.requests > 0
									  ? copy->fetch.latency_total_ms /
											copy->fetch.requests
									  : 0.0));
	stat_add(&row, Int32GetDatum((DsaPointerIsValid(copy->current) ? 1 : 0) +
								 (int32) copy->nretired));
	stat_add(&row, Int64GetDatum((int64) copy->version_bytes));
	stat_add_events(&row, copy);
	stat_add_time(&row, copy->fetch.reset_at);

	InitMaterializedSRF(fcinfo, 0);
	if (result->setDesc->natts != row.count)
		elog(ERROR, "absmartly_stat_get() gives %d columns, not %d", row.count,
			 result->setDesc->natts);
	tuplestore_putvalues(result->setResult, result->setDesc, row.values,
						 row.nulls);
	return (Datum) 0;
}

/*
 * absmartly_stat_reset() -> void
 *		Sets this database's counters to zero.
 */
SQL_FUNCTION(absmartly_stat_reset)
{
	DatabaseState *state = shared_my_database();

	if (state != NULL)
	{
		LWLockAcquire(&state->lock, LW_EXCLUSIVE);
		memset(&state->fetch, 0, sizeof(state->fetch));
		state->fetch.reset_at = GetCurrentTimestamp();
		memset(&state->publish, 0, sizeof(state->publish));
		for (int i = 0; i < COUNTER_COUNT; i++)
			pg_atomic_write_u64(&state->counters[i], 0);
		LWLockRelease(&state->lock);
	}
	PG_RETURN_VOID();
}
