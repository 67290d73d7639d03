/*
 * fetch.c
 *		Fetching the experiments: rounds of attempts, back-off, waiters.
 *
 * A round is an attempt and its retries.  A round that failed is followed by
 * another one, for ever, after a delay that doubles.  Faults that retrying does
 * not cure (a refused key, a wrong address) end a round at once.  A fetch on
 * request starts at once, whatever delay is running.
 */
#include "postgres.h"

#include <limits.h>
#include <sys/stat.h>

#include "access/xact.h"
#include "common/pg_prng.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "data/file.h"
#include "data/store.h"
#include "data/version.h"
#include "events/logger.h"
#include "settings.h"
#include "worker/fetch.h"
#include "worker/worker.h"

#define MAX_ANSWER ((size_t) 64 * 1024 * 1024)
#define MAX_API_KEY 1024
#define MAX_ROUND_DELAY_MS 300000
#define FIRST_ROUND_DELAY_MS 1000
/* after a fault that is not going to pass by itself */
#define FIRST_FAULT_DELAY_MS 15000
#define MAX_QUOTED 200 /* bytes of an answer in an error */

/* What an attempt came to. */
typedef enum AttemptResult
{
	ATTEMPT_GOOD,
	ATTEMPT_RETRY, /* may go better the next time */
	ATTEMPT_FAULT /* will not, until somebody does something */
} AttemptResult;

static HttpRequest *running = NULL;
static int attempts = 0; /* made in this round */
static int failed_rounds = 0;
static uint64 round_ticket = 0; /* the requests that this attempt serves */
static TimestampTz next_attempt = 0; /* 0: at once, DT_NOEND: not planned */
static TimestampTz last_good = 0; /* end of the last round, if it went well */
static bool ready_logged = false;
static char last_reported[SHARED_MAX_ERROR] = "";

/*
 * Reads the API key, from its file if there is one.  Returns NULL and says why
 * in error if it can't.
 */
static char *
read_api_key(char *error, size_t size)
{
	FILE *file;
	char buffer[MAX_API_KEY + 2];
	size_t length;
	char *start = buffer;

	if (settings_api_key_file[0] == '\0')
		return pstrdup(settings_api_key());

	file = AllocateFile(settings_api_key_file, "r");
	if (file == NULL)
	{
		snprintf(error, size, "could not open the API key's file \"%s\": %s",
				 settings_api_key_file, strerror(errno));
		return NULL;
	}
	length = fread(buffer, 1, sizeof(buffer) - 1, file);
	FreeFile(file);
	buffer[length] = '\0';

	while (length > 0 && isspace((unsigned char) buffer[length - 1]))
		buffer[--length] = '\0';
	while (isspace((unsigned char) *start))
		start++;
	length = strlen(start);
	if (length == 0 || length > MAX_API_KEY ||
		strcspn(start, " \t\r\n\v\f") != length)
	{
		snprintf(error, size,
				 "the API key's file \"%s\" must hold one key of at most %d "
				 "characters",
				 settings_api_key_file, MAX_API_KEY);
		start = NULL;
	}
	else
		start = pstrdup(start);
	explicit_bzero(buffer, sizeof(buffer));
	return start;
}

static HttpRequest *
start_request(HttpClient *client, const DataTarget *target, const char *api_key)
{
	HttpOptions options = {0};
	const char *headers[7];
	StringInfoData url;
	HttpRequest *request;
	int nheaders = 0;
	size_t length = strlen(target->endpoint);

	while (length > 0 && target->endpoint[length - 1] == '/')
		length--;
	initStringInfo(&url);
	appendBinaryStringInfo(&url, target->endpoint, length);
	appendStringInfo(&url, "/context?application=%s&environment=%s",
					 http_escape(target->application),
					 http_escape(target->environment));

	if (api_key[0] != '\0')
		headers[nheaders++] = psprintf("X-API-Key: %s", api_key);
	headers[nheaders++] = "X-Agent: absmartly-postgresql-sdk";
	headers[nheaders++] = psprintf("X-Environment: %s", target->environment);
	headers[nheaders++] = psprintf("X-Application: %s", target->application);
	headers[nheaders++] = psprintf("X-Application-Version: %s",
								   target->application_version[0] != '\0'
									   ? target->application_version
									   : "0");
	headers[nheaders++] = "Content-Type: application/json";
	headers[nheaders] = NULL;

	options.method = HTTP_GET;
	options.url = url.data;
	options.headers = headers;
	options.connect_timeout_ms = settings_connect_timeout;
	options.request_timeout_ms = settings_request_timeout;
	options.max_response = MAX_ANSWER;
	options.ca_file = settings_ca_file;
	options.proxy = settings_proxy;
	request = http_start(client, &options);
	if (api_key[0] != '\0')
		explicit_bzero(unconstify(char *, headers[0]), strlen(headers[0]));
	return request;
}

/*
 * Ends the round for everybody who waits for it.  error is NULL if it went
 * well.
 */
static void
finish_round(DatabaseState *state, const char *error)
{
	TimestampTz now = GetCurrentTimestamp();

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->refresh_finished = Max(state->refresh_finished, round_ticket);
	if (error == NULL)
		state->refresh_succeeded = Max(state->refresh_succeeded, round_ticket);
	strlcpy(state->refresh_error, error ? error : "", SHARED_MAX_ERROR);
	if (error == NULL)
	{
		state->fetch.last_success_at = now;
		state->fetch.last_error[0] = '\0';
	}
	LWLockRelease(&state->lock);
	ConditionVariableBroadcast(&state->changed);
}

/*
 * The round has failed.  It is reported once for as long as the reason stays
 * the same: an outage of days shall not fill the log.
 */
static void
fail_round(DatabaseState *state, const char *error, int first_delay_ms,
		   int retry_after)
{
	int64 delay_ms = first_delay_ms;

	for (int i = 0; i < failed_rounds && delay_ms < MAX_ROUND_DELAY_MS; i++)
		delay_ms *= 2;
	delay_ms = Min(delay_ms, MAX_ROUND_DELAY_MS);
	delay_ms += (int64) (delay_ms / 10 * pg_prng_double(&pg_global_prng_state));
	delay_ms =
		Max(delay_ms, Min((int64) retry_after * 1000, MAX_ROUND_DELAY_MS));
	failed_rounds++;
	attempts = 0;
	next_attempt = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), delay_ms);

	if (strcmp(last_reported, error) != 0)
	{
		strlcpy(last_reported, error, sizeof(last_reported));
		ereport(WARNING,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("absmartly: could not fetch experiments: %s", error),
				 errdetail("It is tried again and again, and reported anew "
						   "only if the reason changes.")));
	}
	if (logger_wanted())
	{
		StringInfoData data;

		worker_set_state(state, WORKER_LOGGING);
		initStringInfo(&data);
		escape_json(&data, error);
		logger_emit_from_worker("error", data.data, data.len);
	}
	worker_set_state(state, WORKER_BACKING_OFF);
	finish_round(state, error);
}

/* An attempt has failed: counts it, and plans a retry or ends the round. */
static void
fail_attempt(DatabaseState *state, AttemptResult result, const char *error,
			 int retry_after)
{
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->fetch.failures++;
	state->fetch.last_error_at = GetCurrentTimestamp();
	strlcpy(state->fetch.last_error, error, SHARED_MAX_ERROR);
	LWLockRelease(&state->lock);

	if (result == ATTEMPT_FAULT)
		fail_round(state, error, FIRST_FAULT_DELAY_MS, retry_after);
	else if (attempts > settings_max_retries)
		fail_round(state, error, FIRST_ROUND_DELAY_MS, retry_after);
	else
	{
		int64 delay_ms = INT64CONST(50) << Min(attempts - 1, 12);

		delay_ms = Min(delay_ms, 30000);
		delay_ms += (int64) (25 * pg_prng_double(&pg_global_prng_state));
		delay_ms =
			Max(delay_ms, Min((int64) retry_after * 1000, MAX_ROUND_DELAY_MS));
		next_attempt =
			TimestampTzPlusMilliseconds(GetCurrentTimestamp(), delay_ms);
		worker_set_state(state, WORKER_RETRYING);
	}
}

static void
plan_next_round(void)
{
	if (settings_refresh_interval > 0)
		next_attempt = TimestampTzPlusMilliseconds(
			last_good, (int64) settings_refresh_interval * 1000);
	else
		next_attempt = DT_NOEND;
}

void
fetch_settings_changed(void)
{
	if (last_good != 0)
		plan_next_round();
}

/*
 * Puts an answer in force.  Returns false and a reason in the current memory
 * context if it is not usable.
 */
static bool
publish(DatabaseState *state, const DataTarget *target, const char *text,
		size_t length, DataSource source, TimestampTz fetched_at,
		bool *unchanged, char **error)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool published = false;

	PG_TRY();
	{
		StartTransactionCommand();
		version_publish(state, target, text, length, source, fetched_at,
						unchanged);
		CommitTransactionCommand();
		MemoryContextSwitchTo(context);
		published = true;
	}
	PG_CATCH();
	{
		ErrorData *data;

		MemoryContextSwitchTo(context);
		data = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		MemoryContextSwitchTo(context);
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
	if (logger_wanted())
	{
		worker_set_state(state, WORKER_LOGGING);
		logger_emit_from_worker(refresh ? "refresh" : "ready", text, length);
	}
	ready_logged = true;
}

void
fetch_load_file(DatabaseState *state)
{
	DataFile *file = file_read(state->database);
	char *error;
	bool unchanged;

	if (file == NULL ||
		strcmp(file->target.endpoint, state->target.endpoint) != 0 ||
		strcmp(file->target.application, state->target.application) != 0 ||
		strcmp(file->target.environment, state->target.environment) != 0)
		return;
	if (DsaPointerIsValid(state->current))
		return;
	if (publish(state, &state->target, file->text, file->length, DATA_FILE,
				file->fetched_at, &unchanged, &error))
		log_loaded(state, file->text, file->length, false);
	else
		ereport(WARNING,
				(errmsg("absmartly: the last known good data is not usable"),
				 errdetail("%s", error)));
}

/* Classifies an answer by its status and its looks. */
static AttemptResult
judge_answer(const HttpAnswer *answer, char **error)
{
	char quoted[MAX_QUOTED + 1] = "";
	bool html;

	if (answer->outcome != HTTP_ANSWERED)
	{
		*error = store_message(answer->error, CurrentMemoryContext);
		switch (answer->outcome)
		{
			case HTTP_TOO_LARGE:
			case HTTP_FAILED:
				return ATTEMPT_FAULT;
			default:
				return ATTEMPT_RETRY;
		}
	}

	html = pg_strncasecmp(answer->content_type, "text/html", 9) == 0 ||
		   (answer->body != NULL &&
			answer->body[strspn(answer->body, " \t\r\n")] == '<');
	if (answer->status >= 200 && answer->status < 300 && !html)
		return ATTEMPT_GOOD;

	if (answer->body != NULL && !html)
		strlcpy(quoted, answer->body, sizeof(quoted));
	*error = store_message(
		psprintf("the collector answered with status %d%s%s%s%s",
				 answer->status, html ? " and an HTML page" : "",
				 quoted[0] ? ": \"" : "", quoted, quoted[0] ? "\"" : ""),
		CurrentMemoryContext);
	if (answer->status == 408 || answer->status == 429 || answer->status >= 500)
		return ATTEMPT_RETRY;
	return ATTEMPT_FAULT;
}

void
fetch_finish(DatabaseState *state, HttpClient *client, HttpRequest *request)
{
	const HttpAnswer *answer = http_answer(request);
	AttemptResult result;
	char *error = NULL;
	bool unchanged = false;

	Assert(request == running);
	running = NULL;

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->fetch.bytes_received += answer->body_length;
	state->fetch.latency_last_ms = answer->elapsed_ms;
	state->fetch.latency_total_ms += answer->elapsed_ms;
	LWLockRelease(&state->lock);

	result = judge_answer(answer, &error);
	if (result == ATTEMPT_GOOD)
	{
		TimestampTz now = GetCurrentTimestamp();
		DataTarget target = state->target;

		if (!publish(state, &target, answer->body ? answer->body : "",
					 answer->body_length, DATA_FETCHED, now, &unchanged,
					 &error))
			result = ATTEMPT_RETRY;
		else
		{
			if (!unchanged)
				file_write(state->database, &target, now, DATA_FETCHED,
						   answer->body, answer->body_length);
			if (last_reported[0] != '\0')
				ereport(LOG, (errmsg("absmartly: fetching experiments works "
									 "again")));
			last_reported[0] = '\0';
			log_loaded(state, answer->body, answer->body_length, ready_logged);
		}
	}

	if (result == ATTEMPT_GOOD)
	{
		attempts = 0;
		failed_rounds = 0;
		last_good = GetCurrentTimestamp();
		plan_next_round();
		worker_set_state(state, WORKER_IDLE);
		finish_round(state, NULL);
	}
	else
		fail_attempt(state, result, error, answer->retry_after);
	http_release(client, request);
}

void
fetch_restart(DatabaseState *state, HttpClient *client)
{
	if (running != NULL)
		http_release(client, running);
	running = NULL;
	attempts = 0;
	failed_rounds = 0;
	next_attempt = 0;
	last_good = 0;
	ready_logged = false;
	last_reported[0] = '\0';
}

static bool
requested(const DatabaseState *state)
{
	return state->refresh_requested > state->refresh_finished;
}

void
fetch_begin(DatabaseState *state, HttpClient *client)
{
	char error[SHARED_MAX_ERROR] = "";
	char *api_key;
	bool retrying;
	bool asked = requested(state);

	if (running != NULL)
		return;
	if (state->target.endpoint[0] == '\0')
	{
		round_ticket = state->refresh_requested;
		if (asked)
			finish_round(state, "\"absmartly.endpoint\" is not set");
		worker_set_state(state, WORKER_IDLE);
		return;
	}

	/* a request does not shorten the pauses between the attempts of a round */
	retrying = (attempts > 0);
	if (!(asked && !retrying) &&
		(next_attempt == DT_NOEND || GetCurrentTimestamp() < next_attempt))
		return;

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	round_ticket = state->refresh_requested;
	state->fetch.requests++;
	if (retrying)
		state->fetch.retries++;
	LWLockRelease(&state->lock);
	attempts++;
	last_good = 0;
	worker_set_state(state, WORKER_FETCHING);

	api_key = read_api_key(error, sizeof(error));
	if (api_key == NULL)
	{
		fail_attempt(state, ATTEMPT_FAULT, error, -1);
		return;
	}
	running = start_request(client, &state->target, api_key);
	explicit_bzero(api_key, strlen(api_key));
	if (running == NULL)
		fail_attempt(state, ATTEMPT_RETRY, "out of memory", -1);
}

long
fetch_timeout(DatabaseState *state)
{
	if (running != NULL || state->target.endpoint[0] == '\0' ||
		next_attempt == DT_NOEND)
		return -1;
	if (requested(state) && attempts == 0)
		return 0;
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(), next_attempt);
}
