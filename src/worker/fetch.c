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
#define MAX_ROUND_DELAY_MS 300000
#define FIRST_ROUND_DELAY_MS 1000
/* after a fault that is not going to pass by itself */
#define FIRST_FAULT_DELAY_MS 15000
/* a Retry-After up to this is waited for within the round */
#define MAX_RETRY_AFTER_S 5
/* by which clocks may be set back without an early attempt */
#define CLOCK_SLACK_MS 1000
#define MAX_QUOTED 200 /* bytes of an answer in an error */
/* bytes of an answer that are searched for the key, before it is quoted */
#define MAX_SCRUBBED ((size_t) 64 * 1024)
/* how much of a key may stand at the end of a text that was cut */
#define MAX_KEY_REST 3

/* What an attempt came to. */
typedef enum AttemptResult
{
	ATTEMPT_GOOD,
	ATTEMPT_RETRY, /* may go better the next time */
	ATTEMPT_FAULT /* will not, until somebody does something */
} AttemptResult;

/*
 * Why an attempt failed, without what may differ from one time to the next:
 * texts name addresses, times and numbers of requests.
 */
typedef struct FailureKind
{
	AttemptResult result;
	int outcome; /* HttpOutcome; -1: nothing was asked */
	int status;
	bool html;
	int sqlstate; /* of an answer that could not be put in force, or 0 */
} FailureKind;

typedef struct Failure
{
	FailureKind kind;
	int retry_after; /* s; -1: none */
	char *error; /* in the database's encoding */
} Failure;

static HttpRequest *running = NULL;
/* of what is running: no text may show it; wiped at its end */
static char request_key[SETTINGS_MAX_API_KEY + 1] = "";
static int attempts = 0; /* made in this round */
static int failed_rounds = 0;
static uint64 round_ticket = 0; /* the requests that this attempt serves */
static TimestampTz next_attempt = 0; /* 0: at once, DT_NOEND: not planned */
static int64 planned_pause_ms = 0; /* that next_attempt was made with */
static TimestampTz last_good = 0; /* end of the last round, if it went well */
static bool ready_logged = false;
static bool unsaved = true; /* the file may not hold the data in force */
static bool failure_reported = false;
static FailureKind reported_kind;

/* Copies an error's text into shared memory, and cuts it between characters. */
static void
copy_error(char *copy, const char *error)
{
	int length = pg_mbcliplen(error, (int) strlen(error), SHARED_MAX_ERROR - 1);

	memcpy(copy, error, length);
	copy[length] = '\0';
}

static void
plan_attempt(TimestampTz from, int64 pause_ms)
{
	next_attempt = TimestampTzPlusMilliseconds(from, pause_ms);
	planned_pause_ms = pause_ms;
}

/*
 * Milliseconds until the next attempt, if there is one planned.  A pause that
 * has grown comes from a clock that was set back: it is over then.
 */
static long
pause_left(void)
{
	long left =
		TimestampDifferenceMilliseconds(GetCurrentTimestamp(), next_attempt);

	return left > planned_pause_ms + CLOCK_SLACK_MS ? 0 : left;
}

/*
 * Whether text begins with a character, as itself, percent-encoded or as JSON
 * may escape it; the length of that, or 0.
 */
static size_t
match_character(const char *text, size_t length, char c)
{
	char hex[3];

	if (length == 0)
		return 0;
	if (text[0] == '%' || text[0] == '\\')
	{
		snprintf(hex, sizeof(hex), "%02x", (unsigned char) c);
		if (length >= 3 && text[0] == '%' &&
			pg_strncasecmp(text + 1, hex, 2) == 0)
			return 3;
		if (length >= 6 && strncmp(text, "\\u00", 4) == 0 &&
			pg_strncasecmp(text + 4, hex, 2) == 0)
			return 6;
		if (length >= 2 && text[0] == '\\' && text[1] == c)
			return 2;
	}
	return text[0] == c ? 1 : 0;
}

/*
 * The length of the key at the start of text, in whatever way it is written,
 * or 0.  Of a text that was cut the key's beginning counts as well.
 */
static size_t
match_key(const char *text, size_t length, bool cut)
{
	size_t key_length = strlen(request_key);
	size_t at = 0;
	size_t i;

	if (length >= key_length && memcmp(text, request_key, key_length) == 0)
		return key_length;
	for (i = 0; i < key_length; i++)
	{
		size_t matched =
			match_character(text + at, length - at, request_key[i]);

		if (matched == 0)
			break;
		at += matched;
	}
	if (i == key_length)
		return at;
	/* half an escape at the end is none of the key's characters */
	if (cut && i > MAX_KEY_REST && length - at < 6 &&
		(at == length || text[at] == '%' || text[at] == '\\'))
		return length;
	return 0;
}

/*
 * A copy of text without the request's key.  cut says that the text may end
 * in the middle of it.
 */
static char *
scrub(const char *text, size_t length, bool cut)
{
	StringInfoData result;
	size_t at = 0;

	if (request_key[0] == '\0')
		return pnstrdup(text, length);
	initStringInfo(&result);
	while (at < length)
	{
		size_t matched = match_key(text + at, length - at, cut);

		if (matched > 0)
			appendStringInfoString(&result, "********");
		else
			appendStringInfoChar(&result, text[at]);
		at += Max(matched, 1);
	}
	return result.data;
}

static void
forget_key(void)
{
	explicit_bzero(request_key, sizeof(request_key));
}

/*
 * Reads the API key into request_key, from its file if there is one.  Returns
 * NULL, or why it can't; without the file's path, which is not for everybody.
 */
static char *
read_api_key(void)
{
	FILE *file;
	char buffer[SETTINGS_MAX_API_KEY + 2];
	size_t length;
	char *start = buffer;
	char *error = NULL;

	if (settings_api_key_file[0] == '\0')
	{
		strlcpy(request_key, settings_api_key(), sizeof(request_key));
		return NULL;
	}

	file = AllocateFile(settings_api_key_file, "r");
	if (file == NULL)
		return psprintf("could not open the file of "
						"\"absmartly.api_key_file\": %m");
	length = fread(buffer, 1, sizeof(buffer) - 1, file);
	FreeFile(file);
	buffer[length] = '\0';

	while (length > 0 && isspace((unsigned char) buffer[length - 1]))
		buffer[--length] = '\0';
	while (isspace((unsigned char) *start))
		start++;
	length = strlen(start);
	if (length == 0 || length > SETTINGS_MAX_API_KEY ||
		strcspn(start, " \t\r\n\v\f") != length)
		error = psprintf("the file of \"absmartly.api_key_file\" must hold one "
						 "key of at most %d characters",
						 SETTINGS_MAX_API_KEY);
	else
		strlcpy(request_key, start, sizeof(request_key));
	explicit_bzero(buffer, sizeof(buffer));
	return error;
}

static HttpRequest *
start_request(HttpClient *client, const DataTarget *target)
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

	if (request_key[0] != '\0')
		headers[nheaders++] = psprintf("X-API-Key: %s", request_key);
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
	if (request_key[0] != '\0')
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
	copy_error(state->refresh_error, error ? error : "");
	if (error == NULL)
	{
		state->fetch.last_success_at = now;
		state->fetch.last_error[0] = '\0';
	}
	LWLockRelease(&state->lock);
	ConditionVariableBroadcast(&state->changed);
}

static bool
same_kind(const FailureKind *left, const FailureKind *right)
{
	return left->result == right->result && left->outcome == right->outcome &&
		   left->status == right->status && left->html == right->html &&
		   left->sqlstate == right->sqlstate;
}

/*
 * The round has failed.  It is reported once for as long as the reason stays
 * the same: an outage of days shall not fill the log.
 */
static void
fail_round(DatabaseState *state, const Failure *failure, int64 pause_ms)
{
	for (int i = 0; i < failed_rounds && pause_ms < MAX_ROUND_DELAY_MS; i++)
		pause_ms *= 2;
	pause_ms = Min(pause_ms, MAX_ROUND_DELAY_MS);
	pause_ms += (int64) (pause_ms / 10 * pg_prng_double(&pg_global_prng_state));
	pause_ms = Max(
		pause_ms, Min((int64) failure->retry_after * 1000, MAX_ROUND_DELAY_MS));
	failed_rounds++;
	attempts = 0;
	plan_attempt(GetCurrentTimestamp(), pause_ms);

	if (!failure_reported || !same_kind(&failure->kind, &reported_kind))
		ereport(WARNING,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("absmartly: could not fetch experiments: %s",
						failure->error),
				 errdetail("It is tried again and again, and reported anew "
						   "only if the reason changes.")));
	failure_reported = true;
	reported_kind = failure->kind;
	if (logger_wanted())
	{
		worker_set_state(state, WORKER_LOGGING);
		logger_emit_error_from_worker(failure->error);
	}
	worker_set_state(state, WORKER_BACKING_OFF);
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
	copy_error(state->fetch.last_error, failure->error);
	LWLockRelease(&state->lock);

	if (failure->kind.result == ATTEMPT_FAULT)
		fail_round(state, failure, FIRST_FAULT_DELAY_MS);
	else if (attempts > settings_max_retries ||
			 failure->retry_after > MAX_RETRY_AFTER_S)
		fail_round(state, failure, FIRST_ROUND_DELAY_MS);
	else
	{
		int64 pause_ms = INT64CONST(50) << Min(attempts - 1, 12);

		pause_ms = Min(pause_ms, 30000);
		pause_ms += (int64) (25 * pg_prng_double(&pg_global_prng_state));
		pause_ms = Max(pause_ms, (int64) failure->retry_after * 1000);
		plan_attempt(GetCurrentTimestamp(), pause_ms);
		worker_set_state(state, WORKER_RETRYING);
	}
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
		plan_attempt(last_good, (int64) settings_refresh_interval * 1000);
	else
		next_attempt = DT_NOEND;
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
		next_attempt = 0;
	}
}

/*
 * Puts an answer in force.  Returns false, an SQLSTATE and a reason in the
 * current memory context if it is not usable.
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
		SetCurrentStatementStartTimestamp();
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
	{
		unsaved = false;
		log_loaded(state, file->text, file->length, false);
	}
	else
		ereport(WARNING,
				(errmsg("absmartly: the last known good data is not usable"),
				 errdetail("%s", error)));
}

/* The beginning of an answer for a message: without the key, and cut. */
static char *
quote(const char *body)
{
	size_t length = strnlen(body, MAX_SCRUBBED);
	char *text = scrub(body, length, body[length] != '\0');

	length = strlen(text);
	text[pg_encoding_mbcliplen(PG_UTF8, text, (int) length, MAX_QUOTED)] = '\0';
	return text;
}

/* Classifies an answer by its status and its looks. */
static AttemptResult
judge_answer(const HttpAnswer *answer, Failure *failure)
{
	FailureKind *kind = &failure->kind;
	char *text = "";

	memset(failure, 0, sizeof(*failure));
	kind->outcome = answer->outcome;
	kind->status = answer->status;
	failure->retry_after = answer->retry_after;

	if (answer->outcome != HTTP_ANSWERED)
	{
		text = scrub(answer->error, strlen(answer->error), true);
		failure->error = store_message(text, CurrentMemoryContext);
		switch (answer->outcome)
		{
			case HTTP_TOO_LARGE:
			case HTTP_FAILED:
				return kind->result = ATTEMPT_FAULT;
			default:
				return kind->result = ATTEMPT_RETRY;
		}
	}

	kind->html = pg_strncasecmp(answer->content_type, "text/html", 9) == 0 ||
				 answer->body[strspn(answer->body, " \t\r\n")] == '<';
	if (answer->status >= 200 && answer->status < 300 && !kind->html)
		return kind->result = ATTEMPT_GOOD;

	if (!kind->html)
		text = quote(answer->body);
	failure->error = store_message(
		psprintf("the collector answered with status %d%s%s%s%s",
				 answer->status, kind->html ? " and an HTML page" : "",
				 text[0] ? ": \"" : "", text, text[0] ? "\"" : ""),
		CurrentMemoryContext);
	if (answer->status == 408 || answer->status == 429 || answer->status >= 500)
		return kind->result = ATTEMPT_RETRY;
	return kind->result = ATTEMPT_FAULT;
}

/* Puts a good answer in force, and keeps it. */
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
		failure->error = scrub(failure->error, strlen(failure->error), true);
		return false;
	}

	/* what could not be saved is tried again, also if it is the same */
	if (!unchanged || unsaved)
		unsaved = !file_write(state->database, &target, now, answer->body,
							  answer->body_length);
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

	if (judge_answer(answer, &failure) == ATTEMPT_GOOD &&
		take_answer(state, answer, &failure))
	{
		attempts = 0;
		failed_rounds = 0;
		last_good = GetCurrentTimestamp();
		plan_next_round();
		worker_set_state(state, WORKER_IDLE);
		finish_round(state, NULL);
	}
	else
		fail_attempt(state, &failure);
	forget_key();
	http_release(client, request);
}

void
fetch_restart(DatabaseState *state, HttpClient *client)
{
	if (running != NULL)
		http_release(client, running);
	running = NULL;
	forget_key();
	attempts = 0;
	failed_rounds = 0;
	next_attempt = 0;
	last_good = 0;
	ready_logged = false;
	failure_reported = false;
}

static bool
requested(const DatabaseState *state)
{
	return state->refresh_requested > state->refresh_finished;
}

void
fetch_begin(DatabaseState *state, HttpClient *client)
{
	char *error;
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
	if (!(asked && !retrying) && (next_attempt == DT_NOEND || pause_left() > 0))
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

	error = read_api_key();
	if (error != NULL)
	{
		fail_unasked(state, ATTEMPT_FAULT, error);
		return;
	}
	running = start_request(client, &state->target);
	if (running == NULL)
	{
		forget_key();
		fail_unasked(state, ATTEMPT_RETRY, "out of memory");
	}
}

long
fetch_timeout(DatabaseState *state)
{
	if (running != NULL || state->target.endpoint[0] == '\0' ||
		next_attempt == DT_NOEND)
		return -1;
	if (requested(state) && attempts == 0)
		return 0;
	return pause_left();
}
