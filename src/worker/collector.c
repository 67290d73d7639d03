/*
 * collector.c
 *		Talking to the collector: what fetching and publishing share.
 *
 * The API key lives in the memory of one request.  Whatever comes back from
 * the collector is cleansed of it before it gets into any text.
 */
#include "postgres.h"

#include <ctype.h>
#include <sys/stat.h>

#include "common/pg_prng.h"
#include "mb/pg_wchar.h"
#include "storage/fd.h"
#include "utils/timestamp.h"

#include "data/shared.h"
#include "data/store.h"
#include "worker/collector.h"

#define MAX_ROUND_PAUSE_MS 300000
#define MAX_RETRY_MS 30000
/* by which clocks may be set back without an early attempt */
#define CLOCK_SLACK_MS 1000
#define MAX_QUOTED 200 /* bytes of an answer in an error */
/* bytes of an answer that are searched for the key, before it is quoted */
#define MAX_SCRUBBED ((size_t) 64 * 1024)
/* how much of a key may stand at the end of a text that was cut */
#define MAX_KEY_REST 3

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
match_key(const CollectorKey *key, const char *text, size_t length, bool cut)
{
	size_t key_length = strlen(key->text);
	size_t at = 0;
	size_t i;

	if (length >= key_length && memcmp(text, key->text, key_length) == 0)
		return key_length;
	for (i = 0; i < key_length; i++)
	{
		size_t matched = match_character(text + at, length - at, key->text[i]);

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

char *
collector_scrub(const CollectorKey *key, const char *text, size_t length,
				bool cut)
{
	StringInfoData result;
	size_t at = 0;

	if (key->text[0] == '\0')
		return pnstrdup(text, length);
	initStringInfo(&result);
	while (at < length)
	{
		size_t matched = match_key(key, text + at, length - at, cut);

		if (matched > 0)
			appendStringInfoString(&result, "********");
		else
			appendStringInfoChar(&result, text[at]);
		at += Max(matched, 1);
	}
	return result.data;
}

char *
collector_quote(const CollectorKey *key, const char *body)
{
	size_t length = strnlen(body, MAX_SCRUBBED);
	char *text = collector_scrub(key, body, length, body[length] != '\0');

	length = strlen(text);
	text[pg_encoding_mbcliplen(PG_UTF8, text, (int) length, MAX_QUOTED)] = '\0';
	return text;
}

void
collector_copy_error(char *copy, const char *error)
{
	int length = pg_mbcliplen(error, (int) strlen(error), SHARED_MAX_ERROR - 1);

	memcpy(copy, error, length);
	copy[length] = '\0';
}

bool
collector_same_failure(const FailureKind *left, const FailureKind *right)
{
	return left->result == right->result && left->outcome == right->outcome &&
		   left->status == right->status && left->html == right->html &&
		   left->sqlstate == right->sqlstate;
}

void
collector_forget_key(CollectorKey *key)
{
	explicit_bzero(key, sizeof(*key));
}

/* Warns once of a file that others may read, by the rules for a server's key.
 */
static void
check_access(FILE *file)
{
	static bool told = false;
	struct stat status;
	mode_t forbidden = S_IRWXG | S_IRWXO;

	if (fstat(fileno(file), &status) != 0)
		return;
	if (status.st_uid == 0)
		forbidden = S_IWGRP | S_IXGRP | S_IRWXO;
	if ((status.st_mode & forbidden) == 0)
		told = false;
	else if (!told)
	{
		told = true;
		ereport(WARNING,
				(errmsg("the file of \"absmartly.api_key_file\" can be read by "
						"others"),
				 errdetail("Its permissions are 0%03o.",
						   (unsigned int) (status.st_mode & 0777)),
				 errhint("It should have permissions 0600 if the server's user "
						 "owns it, 0640 if root does.")));
	}
}

char *
collector_read_key(CollectorKey *key)
{
	FILE *file;
	char buffer[HTTP_MARK_BYTES + SETTINGS_MAX_API_KEY + 2];
	size_t length;
	char *start = buffer;
	char *error = NULL;
	bool valid = true;

	if (settings_api_key_file[0] == '\0')
	{
		strlcpy(key->text, settings_api_key(), sizeof(key->text));
		return NULL;
	}
	key->text[0] = '\0';

	file = AllocateFile(settings_api_key_file, "r");
	if (file == NULL)
		return psprintf("could not open the file of "
						"\"absmartly.api_key_file\": %m");
	check_access(file);
	length = fread(buffer, 1, sizeof(buffer) - 1, file);
	FreeFile(file);
	buffer[length] = '\0';

	while (length > 0 && isspace((unsigned char) buffer[length - 1]))
		buffer[--length] = '\0';
	start += http_mark(buffer, length);
	while (isspace((unsigned char) *start))
		start++;
	length -= start - buffer;
	for (size_t i = 0; i < length; i++)
		valid &=
			(unsigned char) start[i] > 0x20 && (unsigned char) start[i] < 0x7f;
	if (length == 0 || length > SETTINGS_MAX_API_KEY || !valid)
		error = psprintf("the file of \"absmartly.api_key_file\" must hold one "
						 "key of at most %d characters",
						 SETTINGS_MAX_API_KEY);
	else
		strlcpy(key->text, start, sizeof(key->text));
	explicit_bzero(buffer, sizeof(buffer));
	return error;
}

HttpRequest *
collector_start(HttpClient *client, const CollectorCall *call,
				const CollectorKey *key)
{
	HttpOptions options = {0};
	const char *headers[7];
	HttpRequest *request;
	int nheaders = 0;
	int length = (int) strlen(call->endpoint);

	while (length > 0 && call->endpoint[length - 1] == '/')
		length--;

	if (key->text[0] != '\0')
		headers[nheaders++] = psprintf("X-API-Key: %s", key->text);
	headers[nheaders++] = "X-Agent: absmartly-postgresql-sdk";
	headers[nheaders++] = psprintf("X-Environment: %s", call->environment);
	headers[nheaders++] = psprintf("X-Application: %s", call->application);
	headers[nheaders++] = psprintf(
		"X-Application-Version: %s",
		call->application_version[0] != '\0' ? call->application_version : "0");
	headers[nheaders++] = "Content-Type: application/json";
	headers[nheaders] = NULL;

	options.method = call->method;
	options.url = psprintf("%.*s%s", length, call->endpoint, call->path);
	options.headers = headers;
	options.body = call->body;
	options.body_length = call->body_length;
	options.body_stays = true;
	options.connect_timeout_ms = settings_connect_timeout;
	options.request_timeout_ms = settings_request_timeout;
	options.max_response = call->max_answer;
	options.ca_file = settings_ca_file;
	options.proxy = settings_proxy;
	options.tag = call->tag;
	request = http_start(client, &options);
	if (key->text[0] != '\0')
		explicit_bzero(unconstify(char *, headers[0]), strlen(headers[0]));
	return request;
}

AttemptResult
collector_judge(const HttpAnswer *answer, const CollectorKey *key,
				Failure *failure)
{
	FailureKind *kind = &failure->kind;
	char *text = "";

	memset(failure, 0, sizeof(*failure));
	kind->outcome = answer->outcome;
	kind->status = answer->status;
	failure->retry_after = answer->retry_after;
	kind->html = pg_strncasecmp(answer->content_type, "text/html", 9) == 0 ||
				 answer->body[strspn(answer->body, " \t\r\n")] == '<';

	if (answer->outcome != HTTP_ANSWERED)
	{
		text = collector_scrub(key, answer->error, strlen(answer->error), true);
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

	if (answer->status >= 200 && answer->status < 300 && !kind->html)
		return kind->result = ATTEMPT_GOOD;

	if (!kind->html)
		text = collector_quote(key, answer->body);
	failure->error = store_message(
		psprintf("the collector answered with status %d%s%s%s%s",
				 answer->status, kind->html ? " and an HTML page" : "",
				 text[0] ? ": \"" : "", text, text[0] ? "\"" : ""),
		CurrentMemoryContext);
	if (answer->status == 408 || answer->status == 429 || answer->status >= 500)
		return kind->result = ATTEMPT_RETRY;
	return kind->result = ATTEMPT_FAULT;
}

void
collector_disown(const HttpAnswer *answer, const CollectorKey *key,
				 Failure *failure)
{
	char *text = collector_quote(key, answer->body);

	failure->kind.result = ATTEMPT_FAULT;
	failure->error = store_message(
		psprintf("the collector answered with status %d, and not as a "
				 "collector does%s%s%s",
				 answer->status, text[0] ? ": \"" : "", text,
				 text[0] ? "\"" : ""),
		CurrentMemoryContext);
}

void
collector_pause(CollectorPause *pause, TimestampTz from, int64 pause_ms)
{
	pause->until = TimestampTzPlusMilliseconds(from, pause_ms);
	pause->planned_ms = pause_ms;
}

long
collector_pause_left(const CollectorPause *pause)
{
	long left;

	if (pause->until == 0)
		return 0;
	left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), pause->until);
	return left > pause->planned_ms + CLOCK_SLACK_MS ? 0 : left;
}

int64
collector_retry_ms(int attempts, int retry_after)
{
	int64 pause_ms = INT64CONST(50) << Min(attempts - 1, 12);

	pause_ms = Min(pause_ms, MAX_RETRY_MS);
	pause_ms += (int64) (25 * pg_prng_double(&pg_global_prng_state));
	return Max(pause_ms, (int64) retry_after * 1000);
}

int64
collector_round_ms(int64 first_ms, int failed_rounds, int retry_after)
{
	int64 pause_ms = first_ms;

	for (int i = 0; i < failed_rounds && pause_ms < MAX_ROUND_PAUSE_MS; i++)
		pause_ms *= 2;
	pause_ms = Min(pause_ms, MAX_ROUND_PAUSE_MS);
	pause_ms += (int64) (pause_ms / 10 * pg_prng_double(&pg_global_prng_state));
	return Max(pause_ms, Min((int64) retry_after * 1000, MAX_ROUND_PAUSE_MS));
}
