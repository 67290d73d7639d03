/*
 * http.h
 *		HTTP for the worker: several requests in flight on one thread.
 *
 * http.c is the only file that knows libcurl.  Nothing in it raises while a
 * curl frame is on the stack.  Waiting is on the process's latch, on the
 * postmaster's death and on curl's sockets at once, so that signals and
 * barriers are seen at once, also in the middle of a request.
 */
#ifndef ABSMARTLY_WORKER_HTTP_H
#define ABSMARTLY_WORKER_HTTP_H

#include "postgres.h"

#include "datatype/timestamp.h"

typedef struct HttpClient HttpClient;
typedef struct HttpRequest HttpRequest;

typedef enum HttpMethod
{
	HTTP_GET,
	HTTP_PUT
} HttpMethod;

typedef enum HttpOutcome
{
	HTTP_ANSWERED, /* a whole answer, whatever its status */
	HTTP_CONNECT_FAILED, /* name, connection, TLS handshake */
	HTTP_TIMED_OUT,
	HTTP_CUT, /* the connection broke after it was made */
	HTTP_TOO_LARGE, /* more than max_response */
	HTTP_NO_MEMORY,
	HTTP_FAILED /* anything else */
} HttpOutcome;

/* What to ask.  Everything is copied, unless the body stays. */
typedef struct HttpOptions
{
	HttpMethod method;
	const char *url;
	const char *const *headers; /* "Name: value", NULL-terminated */
	const char *body; /* of a PUT */
	size_t body_length;
	bool body_stays; /* it is the caller's until http_release() */
	int connect_timeout_ms;
	int request_timeout_ms; /* from the start to the last byte */
	size_t max_response; /* bytes of body; more: HTTP_TOO_LARGE */
	const char *ca_file; /* "" or NULL: the system's */
	const char *proxy; /* "" or NULL: none, whatever the environment */
	void *tag; /* the caller's */
} HttpOptions;

/* Bytes of a byte order mark in UTF-8, which is no part of a text. */
#define HTTP_MARK_BYTES 3

/* How many bytes at the start of a text are such a mark. */
static inline size_t
http_mark(const char *text, size_t length)
{
	return length >= HTTP_MARK_BYTES &&
				   memcmp(text, "\xef\xbb\xbf", HTTP_MARK_BYTES) == 0
			   ? HTTP_MARK_BYTES
			   : 0;
}

typedef struct HttpAnswer
{
	HttpOutcome outcome;
	int status; /* 0 unless there was a status line */
	const char *body; /* NUL-terminated, without a byte order mark; "" if
					   * none, and "" unless HTTP_ANSWERED */
	size_t body_length;
	const char *content_type; /* "" if none */
	int retry_after; /* s; -1: none */
	const char *error; /* what went wrong, in UTF-8 without control
						* characters; "" for HTTP_ANSWERED.  Times
						* in it are the limits, not what it took */
	double elapsed_ms;
	void *tag;
} HttpAnswer;

/*
 * One client for each process, made in the worker's main function (never in
 * the postmaster).  max_connections bounds those to the collector, in use or
 * kept; requests beyond it wait their turn, and their time runs meanwhile.
 * Raises 53200 if there is no memory.
 */
extern HttpClient *http_client_create(int max_connections);
extern void http_client_destroy(HttpClient *client);

/*
 * Starts a request; nothing is sent before http_wait().  NULL if there is no
 * memory.  A request that can't be made, like one with a control character in
 * a header, is done at once.
 */
extern HttpRequest *http_start(HttpClient *client, const HttpOptions *options);

/* Gives a request up, whether done or not, and frees it and its answer. */
extern void http_release(HttpClient *client, HttpRequest *request);

/*
 * Waits until a request is done, the process's latch is set, or timeout_ms
 * have passed (-1: no limit), and drives the transfers meanwhile.  Resets the
 * latch.  Exits on the postmaster's death.  The caller checks for interrupts
 * afterwards: this function does not.  Raises if file descriptors run out, or
 * if curl breaks down: the worker had better end and start afresh then.
 */
extern void http_wait(HttpClient *client, long timeout_ms,
					  uint32 wait_event_info);

/*
 * A request that is done and was not handed out before, or NULL.  The answer
 * lives until http_release().  http_answer() is NULL before a request is done.
 */
extern HttpRequest *http_next_done(HttpClient *client);
extern const HttpAnswer *http_answer(const HttpRequest *request);

/* Whether there are requests that were not released yet. */
extern bool http_busy(HttpClient *client);

/* Percent-encodes UTF-8 text as encodeURIComponent() does; palloc'd. */
extern char *http_escape(const char *text);

#endif /* ABSMARTLY_WORKER_HTTP_H */
