/*
 * fetch.c
 *		Fetching the experiments: rounds of attempts, back-off, waiters.
 *
 * A round is an attempt and its retries.  A round that failed is followed by
 * another one, for ever, after a delay that doubles.  Faults that retrying does
 * not cure (a refused key, a wrong address) end a round at once.
 *
 * A fetch that an administrator requests starts at once, whatever delay is
 * running.  All others may request one, too, but have nothing asked more often
 * for it than it would be: in an outage they wait for the next round, and else
 * their fetches are spread out once there are too many.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "data/context_slot.h"
#include "data/file.h"
#include "data/keep.h"
#include "data/store.h"
#include "data/version.h"
#include "settings.h"
#include "worker/collector.h"
#include "worker/fetch.h"
#include "worker/leave.h"
#include "worker/worker.h"

/* fetches on request come no faster than that, but for so many at a time */
#define REQUESTED_MS 1000
#define REQUESTED_AT_ONCE 20

static HttpRequest *running = NULL;
static CollectorKey request_key;
static int attempts = 0; /* made in this round */
static int failed_rounds = 0;
static uint64 round_ticket = 0; /* the requests that this attempt serves */
static CollectorPause next_attempt; /* until DT_NOEND: not planned */
static TimestampTz requested_until =
	0; /* REQUESTED_MS for each that was made */
static TimestampTz last_good = 0; /* end of the last round, if it went well */
static bool ready_logged = false;
static bool failure_reported = false;
static FailureKind reported_kind;

static HttpRequest *
start_request(HttpClient *client, const DataTarget *target)
{
	CollectorCall call = {.method = HTTP_GET,
						  .endpoint = target->endpoint,
						  .path =
							  psprintf("/context?application=%s&environment=%s",
									   http_escape(target->application),
									   http_escape(target->environment)),
						  .application = target->application,
						  .application_version = target->application_version,
						  .environment = target->environment,
						  .max_answer = DATA_MAX_TEXT};

	return collector_start(client, &call, &request_key);
}

/*
 * Tells of an error that ends the wait of whoever waits for this round: of the
 * session contexts among them each one's logger.
 */
static void
log_error(DatabaseState *state, const char *error)
{
	ContextSlot *slot;
	int at = 0;

	while ((slot = context_slot_next(state->database, &at)) != NULL)
	{
		uint64 key;
		bool waits;

		LWLockAcquire(&state->lock, LW_SHARED);
		key = pg_atomic_read_u64(&slot->key);
		waits = slot->database == state->database &&
				slot->refresh_ticket > state->refresh_finished &&
				slot->refresh_ticket <= round_ticket;
		LWLockRelease(&state->lock);
		if (key != 0 && waits)
			worker_log_error(state, key, error);
	}
	worker_log_error(state, 0, error);
}

/*
 * Ends the round for everybody who waits for it; it may be none, where there
 * was nobody to ask.  error is NULL if it went well.
 */
static void
finish_round(DatabaseState *state, const char *error)
{
	TimestampTz now = GetCurrentTimestamp();

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	if (state->fetch_running)
		state->fetch_rounds++;
	state->fetch_running = false;
	state->refresh_finished = Max(state->refresh_finished, round_ticket);
	if (error == NULL)
		state->refresh_succeeded = Max(state->refresh_succeeded, round_ticket);
	collector_copy_error(state->refresh_error, error ? error : "");
	if (error == NULL)
	{
		state->fetch.last_success_at = now;
		state->fetch.last_error[0] = '\0';
	}
	LWLockRelease(&state->lock);
	ConditionVariableBroadcast(&state->changed);
}

/*
 * A round that fails is also theirs who have asked since it began: the next one
 * may be far away.  An administrator has his own.
 */
static void
join_round(DatabaseState *state)
{
	LWLockAcquire(&state->lock, LW_SHARED);
	if (state->refresh_urgent <= round_ticket)
		round_ticket = state->refresh_requested;
	LWLockRelease(&state->lock);
}

/*
 * The round has failed.  It is reported once for as long as the reason stays
 * the same: an outage of days shall not fill the log.
 */
static void
fail_round(DatabaseState *state, const Failure *failure, int64 first_ms)
{
	collector_pause(
		&next_attempt, GetCurrentTimestamp(),
		collector_round_ms(first_ms, failed_rounds, failure->retry_after));
	failed_rounds++;
	attempts = 0;

	if (!failure_reported ||
		!collector_same_failure(&failure->kind, &reported_kind))
		ereport(WARNING,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("absmartly: could not fetch experiments: %s",
						failure->error),
				 errdetail("It is tried again and again, and reported anew "
						   "only if the reason changes.")));
	failure_reported = true;
	reported_kind = failure->kind;
	join_round(state);
	log_error(state, failure->error);
	finish_round(state, failure->error);
}

/*
 * An attempt has failed: counts it, and plans a retry or ends the round.  A
 * long pause that the collector asks for ends it, too: somebody who asks for a
 * fetch shall not have to wait for it.
 */
static void
fail_attempt(DatabaseState *state, const Failure *failure)
{
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->fetch.failures++;
	state->fetch.last_error_at = GetCurrentTimestamp();
	collector_copy_error(state->fetch.last_error, failure->error);
	LWLockRelease(&state->lock);

	if (failure->kind.result == ATTEMPT_FAULT)
		fail_round(state, failure, COLLECTOR_FAULT_PAUSE_MS);
	else if (attempts > settings_max_retries ||
			 failure->retry_after > COLLECTOR_MAX_RETRY_AFTER_S)
		fail_round(state, failure, COLLECTOR_ROUND_PAUSE_MS);
	else
		collector_pause(&next_attempt, GetCurrentTimestamp(),
						collector_retry_ms(attempts, failure->retry_after));
}

/* An attempt has failed without a request. */
static void
fail_unasked(DatabaseState *state, AttemptResult result, char *error)
{
	Failure failure = {.kind = {.result = result, .outcome = -1},
					   .retry_after = -1,
					   .error = error};

	fail_attempt(state, &failure);
}

static void
plan_next_round(void)
{
	if (settings_refresh_interval > 0)
		collector_pause(&next_attempt, last_good,
						(int64) settings_refresh_interval * 1000);
	else
		next_attempt.until = DT_NOEND;
}

void
fetch_settings_changed(void)
{
	if (last_good != 0)
		plan_next_round();
	else if (running == NULL && failed_rounds > 0)
	{
		/* what failed may go well now */
		failed_rounds = 0;
		attempts = 0;
		next_attempt.until = 0;
	}
}

/*
 * Puts an answer in force, and keeps it.  Returns false, an SQLSTATE and a
 * reason in the current memory context if it is not usable.
 */
static bool
publish(DatabaseState *state, const DataTarget *target, const char *text,
		size_t length, DataSource source, TimestampTz fetched_at,
		bool *unchanged, int *sqlstate, char **error)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool published = false;

	PG_TRY();
	{
		leave_begin_work();
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		keep_publish(state, target, text, length, source, fetched_at,
					 unchanged);
		CommitTransactionCommand();
		leave_end_work();
		MemoryContextSwitchTo(context);
		published = true;
	}
	PG_CATCH();
	{
		ErrorData *data;

		leave_end_work();
		/* the answer is not to blame */
		if (leave_is_near())
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		data = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		MemoryContextSwitchTo(context);
		*sqlstate = data->sqlerrcode;
		*error = data->detail ? psprintf("%s: %s", data->message, data->detail)
							  : pstrdup(data->message);
		FreeErrorData(data);
	}
	PG_END_TRY();
	pgstat_report_stat(true);
	return published;
}

static void
log_loaded(DatabaseState *state, const char *text, size_t length, bool refresh)
{
	worker_log_event(state, 0, refresh ? "refresh" : "ready", text, length);
	ready_logged = true;
}

void
fetch_load_file(DatabaseState *state)
{
	DataFile *file;
	char *error;
	int sqlstate;
	bool unchanged;

	if (DsaPointerIsValid(state->current))
		return;
	file = file_read(state->database);
	if (file == NULL || !version_same_target(&file->target, &state->target))
		return;
	if (publish(state, &state->target, file->text, file->length, DATA_FILE,
				file->fetched_at, &unchanged, &sqlstate, &error))
		log_loaded(state, file->text, file->length, false);
	else
		ereport(WARNING,
				(errmsg("absmartly: the last known good data is not usable"),
				 errdetail("%s", error)));
}

/* Takes a good answer over. */
static bool
take_answer(DatabaseState *state, const HttpAnswer *answer, Failure *failure)
{
	TimestampTz now = GetCurrentTimestamp();
	DataTarget target = state->target;
	bool unchanged = false;

	if (!publish(state, &target, answer->body, answer->body_length,
				 DATA_FETCHED, now, &unchanged, &failure->kind.sqlstate,
				 &failure->error))
	{
		failure->kind.result = ATTEMPT_RETRY;
		failure->error = collector_scrub(&request_key, failure->error,
										 strlen(failure->error), true);
		return false;
	}

	if (failure_reported)
		ereport(LOG, (errmsg("absmartly: fetching experiments works again")));
	failure_reported = false;
	log_loaded(state, answer->body, answer->body_length, ready_logged);
	return true;
}

void
fetch_finish(DatabaseState *state, HttpClient *client, HttpRequest *request)
{
	const HttpAnswer *answer = http_answer(request);
	Failure failure;

	Assert(request == running);
	running = NULL;

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->fetch.bytes_received += answer->body_length;
	state->fetch.latency_last_ms = answer->elapsed_ms;
	state->fetch.latency_total_ms += answer->elapsed_ms;
	LWLockRelease(&state->lock);

	if (collector_judge(answer, &request_key, &failure) == ATTEMPT_GOOD &&
		take_answer(state, answer, &failure))
	{
		attempts = 0;
		failed_rounds = 0;
		last_good = GetCurrentTimestamp();
		plan_next_round();
		finish_round(state, NULL);
	}
	else
		fail_attempt(state, &failure);
	collector_forget_key(&request_key);
	http_release(client, request);
}

void
fetch_restart(DatabaseState *state, HttpClient *client)
{
	if (running != NULL)
		http_release(client, running);
	running = NULL;
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->fetch_running = false;
	LWLockRelease(&state->lock);
	collector_forget_key(&request_key);
	attempts = 0;
	failed_rounds = 0;
	next_attempt.until = 0;
	last_good = 0;
	ready_logged = false;
	failure_reported = false;
}

void
fetch_begin_anew(DatabaseState *state)
{
	running = NULL;
	collector_forget_key(&request_key);
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->fetch_running = false;
	LWLockRelease(&state->lock);
	if (attempts > 0)
		collector_pause(&next_attempt, GetCurrentTimestamp(),
						collector_retry_ms(attempts, -1));
}

/* Milliseconds until there may be one more fetch on request. */
static long
requested_left(void)
{
	TimestampTz now = GetCurrentTimestamp();
	long ahead = TimestampDifferenceMilliseconds(now, requested_until);
	long most = REQUESTED_MS * (REQUESTED_AT_ONCE - 1);

	/* beyond that it comes from a clock that was set back */
	return ahead > most + REQUESTED_MS ? 0 : Max(ahead - most, 0);
}

/* A fetch on request begins. */
static void
count_requested(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (requested_until < now ||
		TimestampDifferenceMilliseconds(now, requested_until) >
			REQUESTED_MS * REQUESTED_AT_ONCE)
		requested_until = now;
	requested_until =
		TimestampTzPlusMilliseconds(requested_until, REQUESTED_MS);
}

/* Milliseconds until the next attempt that is planned; -1: none is. */
static long
planned_left(void)
{
	return next_attempt.until == DT_NOEND ? -1
										  : collector_pause_left(&next_attempt);
}

static bool
requested(const DatabaseState *state)
{
	return state->refresh_requested > state->refresh_finished;
}

/* Whether only a request lets the next attempt begin now. */
static bool
begins_on_request(const DatabaseState *state)
{
	return attempts == 0 && requested(state) && planned_left() != 0;
}

/*
 * Milliseconds until the next attempt may begin; -1: there is none.  No request
 * shortens the pauses between the attempts of a round.
 */
static long
attempt_left(const DatabaseState *state)
{
	if (!begins_on_request(state))
		return planned_left();
	if (state->refresh_urgent > state->refresh_finished)
		return 0;
	if (failed_rounds > 0)
		return planned_left();
	return collector_earlier(planned_left(), requested_left());
}

void
fetch_begin(DatabaseState *state, HttpClient *client)
{
	char *unreadable;
	bool retrying;
	bool asked = requested(state);

	if (running != NULL)
		return;
	if (state->target.endpoint[0] == '\0')
	{
		const char *error = "\"absmartly.endpoint\" is not set";

		round_ticket = state->refresh_requested;
		if (asked)
		{
			log_error(state, error);
			finish_round(state, error);
		}
		return;
	}

	if (attempt_left(state) != 0)
		return;
	if (begins_on_request(state))
		count_requested();
	retrying = (attempts > 0);

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	round_ticket = state->refresh_requested;
	state->fetch.requests++;
	if (retrying)
		state->fetch.retries++;
	state->fetch_running = true;
	LWLockRelease(&state->lock);
	attempts++;
	last_good = 0;

	unreadable = collector_read_key(&request_key);
	if (unreadable != NULL)
	{
		fail_unasked(state, ATTEMPT_FAULT, unreadable);
		return;
	}
	running = start_request(client, &state->target);
	if (running == NULL)
	{
		collector_forget_key(&request_key);
		fail_unasked(state, ATTEMPT_RETRY, "out of memory");
	}
}

long
fetch_timeout(DatabaseState *state)
{
	if (running != NULL || state->target.endpoint[0] == '\0')
		return -1;
	return attempt_left(state);
}

WorkerState
fetch_state(void)
{
	if (running != NULL)
		return WORKER_FETCHING;
	if (attempts > 0)
		return WORKER_RETRYING;
	return failed_rounds > 0 ? WORKER_BACKING_OFF : WORKER_IDLE;
}
