/*
 * collector.h
 *		Talking to the collector: what fetching and publishing share.
 */
#ifndef ABSMARTLY_WORKER_COLLECTOR_H
#define ABSMARTLY_WORKER_COLLECTOR_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "settings.h"
#include "worker/http.h"

/* the first pauses after rounds that failed, and after faults */
#define COLLECTOR_ROUND_PAUSE_MS 1000
#define COLLECTOR_FAULT_PAUSE_MS 15000
/* a Retry-After up to this is waited for within the round */
#define COLLECTOR_MAX_RETRY_AFTER_S 5

/* A request's API key: no text may show it.  Wiped when the request ends. */
typedef struct CollectorKey
{
	char text[SETTINGS_MAX_API_KEY + 1];
} CollectorKey;

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

/* A request to the collector. */
typedef struct CollectorCall
{
	HttpMethod method;
	const char *endpoint;
	const char *path; /* what follows the endpoint, from the "/" on */
	const char *application;
	const char *application_version;
	const char *environment;
	const char *body; /* of a PUT; must stay until http_release() */
	size_t body_length;
	size_t max_answer;
	void *tag;
} CollectorCall;

/*
 * Reads the API key, from its file if there is one.  Gives NULL, or why it
 * can't; without the file's path, which is not for everybody.
 */
extern char *collector_read_key(CollectorKey *key);
extern void collector_forget_key(CollectorKey *key);

/* Starts a request; NULL if there is no memory. */
extern HttpRequest *collector_start(HttpClient *client,
									const CollectorCall *call,
									const CollectorKey *key);

/* Classifies an answer by its status and its looks. */
extern AttemptResult collector_judge(const HttpAnswer *answer,
									 const CollectorKey *key, Failure *failure);

/* Says of an answer that looked good that it is not the collector's. */
extern void collector_disown(const HttpAnswer *answer, const CollectorKey *key,
							 Failure *failure);

/*
 * A copy of text without the key.  cut says that the text may end in the
 * middle of it.
 */
extern char *collector_scrub(const CollectorKey *key, const char *text,
							 size_t length, bool cut);

/* The beginning of an answer for a message: without the key, and cut. */
extern char *collector_quote(const CollectorKey *key, const char *body);

/* Copies an error's text into shared memory, and cuts it between characters. */
extern void collector_copy_error(char *copy, const char *error);

extern bool collector_same_failure(const FailureKind *left,
								   const FailureKind *right);

/*
 * Back-off
 */

/* A pause from a moment on. */
typedef struct CollectorPause
{
	TimestampTz until; /* 0: over, DT_NOEND: for ever */
	int64 planned_ms; /* that it was made with */
} CollectorPause;

extern void collector_pause(CollectorPause *pause, TimestampTz from,
							int64 pause_ms);

/*
 * Milliseconds until it is over.  A pause that has grown comes from a clock
 * that was set back: it is over then.
 */
extern long collector_pause_left(const CollectorPause *pause);

/* The lesser of two times to wait; -1 stands for no limit. */
static inline long
collector_earlier(long left, long right)
{
	if (left < 0 || right < 0)
		return Max(left, right);
	return Min(left, right);
}

/* Milliseconds before a retry, after so many attempts in this round. */
extern int64 collector_retry_ms(int attempts, int retry_after);

/* Milliseconds after a failed round that so many others came before. */
extern int64 collector_round_ms(int64 first_ms, int failed_rounds,
								int retry_after);

#endif /* ABSMARTLY_WORKER_COLLECTOR_H */
