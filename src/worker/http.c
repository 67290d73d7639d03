/*
 * http.c
 *		HTTP for the worker: several requests in flight on one thread.
 *
 * libcurl's multi interface is driven by its socket and timer callbacks.  They
 * only write down which sockets curl wants watched, and when it wants to be
 * called; http_wait() puts that into a WaitEventSet, beside the latch and the
 * postmaster's death, and calls curl when something happens.
 *
 * Two rules hold throughout.  First, nothing may longjmp over a curl frame:
 * callbacks neither report nor palloc, they leave a mark in the request that
 * is read once curl has returned.  What belongs to a request is malloc'ed.
 * Second, curl resolves names in threads of its own, which must never run one
 * of our signal handlers: all signals are blocked while curl is called, so
 * that its threads are born with all of them blocked.
 *
 * A request's total time is kept here and not by curl.  So the time counts
 * from http_start(), also for a request that waits for a free connection; and
 * an answer that came in while the worker was busy elsewhere is taken, not
 * thrown away for being late.
 */
#include "postgres.h"

#include <ctype.h>
#include <curl/curl.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <time.h>

#include "lib/ilist.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "compat.h"
#include "worker/http.h"

#if LIBCURL_VERSION_NUM < 0x073d00
#error "absmartly needs libcurl 7.61 or later"
#endif

#define NEVER HUGE_VAL
#define KEEPALIVE_IDLE_S 30L
#define KEEPALIVE_INTERVAL_S 10L
#define CA_CACHE_S 300L
#define FIRST_BODY_SIZE ((size_t) 16 * 1024)
#define MAX_HEADER_BYTES ((size_t) 256 * 1024)
#define MAX_EVENTS 16

/* what a request may ask curl for: sockets while connecting, a resolver */
#define SOCKETS_PER_CONNECTION 4

/* A socket that curl wants watched. */
typedef struct WatchedSocket
{
	curl_socket_t fd;
	uint32 events; /* WL_SOCKET_... */
	int position; /* in the wait event set */
} WatchedSocket;

struct HttpClient
{
	CURLM *multi;
	int max_connections;
	int nin_flight;
	dlist_head in_flight;
	dlist_head done; /* not handed out yet, the oldest first */
	dlist_head handed_out;

	double timer_at; /* when curl wants to be called; NEVER */

	WatchedSocket *sockets; /* malloc'ed: grows in a callback */
	int nsockets;
	int max_sockets;
	bool sockets_changed; /* since wait_set was made */
	WaitEventSet *wait_set;
};

/* Why a callback told curl to stop. */
typedef enum StopReason
{
	STOP_NONE,
	STOP_BODY_TOO_LARGE,
	STOP_HEADERS_TOO_LARGE,
	STOP_NO_MEMORY
} StopReason;

struct HttpRequest
{
	dlist_node node; /* in one of the client's lists */
	CURL *curl; /* NULL once the request is done */
	struct curl_slist *headers;
	const char *upload;
	char *upload_copy; /* malloc'ed; NULL: it is the caller's */
	size_t upload_length;
	bool https;
	bool proxied;
	double started_at;
	double deadline;
	int connect_timeout_ms;
	int request_timeout_ms;
	size_t max_response;

	char *body;
	size_t body_length;
	size_t body_size;
	size_t header_bytes;
	StopReason stop_reason;

	char host[256]; /* with the port, if the URL has one */
	char retry_after[64];
	char content_type[128];
	char curl_error[CURL_ERROR_SIZE];
	char error[384];
	HttpAnswer answer;
};

/* Milliseconds on a clock that nobody sets. */
static double
now_ms(void)
{
	instr_time now;

	INSTR_TIME_SET_CURRENT(now);
	return INSTR_TIME_GET_MILLISEC(now);
}

/*
 * Blocks every signal, and says what was blocked before.  PostgreSQL's own
 * mask for critical sections lets some through, and a thread that takes one
 * of these runs a handler that is not made for it.
 */
static void
block_signals(sigset_t *before)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, before);
}

static void
restore_signals(const sigset_t *before)
{
	pthread_sigmask(SIG_SETMASK, before, NULL);
}

/*
 * Callbacks of curl, up to take_body().  They return to it, whatever happens.
 */

/* Keeps curl's sockets from the programs that this process may start. */
static int
prepare_socket(void *context, curl_socket_t fd, curlsocktype purpose)
{
	(void) context;
	(void) purpose;

	if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return CURL_SOCKOPT_ERROR;
	return CURL_SOCKOPT_OK;
}

/*
 * Writes down what curl wants to know of a socket.  A socket that leaves and
 * comes back counts as a change, even within one call: it may be another one
 * under the same number, which the kernel does not watch yet.
 */
static int
watch_socket(CURL *curl, curl_socket_t fd, int what, void *context,
			 void *socket_context)
{
	HttpClient *client = context;
	uint32 events = 0;
	int i;

	(void) curl;
	(void) socket_context;

	if (what == CURL_POLL_IN || what == CURL_POLL_INOUT)
		events |= WL_SOCKET_READABLE;
	if (what == CURL_POLL_OUT || what == CURL_POLL_INOUT)
		events |= WL_SOCKET_WRITEABLE;

	for (i = 0; i < client->nsockets; i++)
	{
		if (client->sockets[i].fd != fd)
			continue;
		if (events == 0)
		{
			client->sockets[i] = client->sockets[--client->nsockets];
			client->sockets_changed = true;
		}
		else
			client->sockets[i].events = events;
		return 0;
	}

	if (events == 0)
		return 0;
	if (client->nsockets == client->max_sockets)
	{
		int max_sockets = client->max_sockets * 2;
		WatchedSocket *sockets =
			realloc(client->sockets, max_sockets * sizeof(WatchedSocket));

		if (sockets == NULL)
			return -1;
		client->sockets = sockets;
		client->max_sockets = max_sockets;
	}
	client->sockets[client->nsockets].fd = fd;
	client->sockets[client->nsockets].events = events;
	client->sockets[client->nsockets].position = -1;
	client->nsockets++;
	client->sockets_changed = true;
	return 0;
}

/* Writes down when curl wants to be called. */
static int
set_timer(CURLM *multi, long timeout_ms, void *context)
{
	HttpClient *client = context;

	(void) multi;

	client->timer_at = timeout_ms < 0 ? NEVER : now_ms() + timeout_ms;
	return 0;
}

/*
 * Takes a header line.  Whatever came before a status line belongs to an
 * interim answer; lines after the first byte of the body are trailers.
 */
static size_t
take_header(char *data, size_t size, size_t count, void *context)
{
	static const char name[] = "retry-after:";
	HttpRequest *request = context;
	size_t length = size * count;
	size_t value_length = 0;
	size_t i = sizeof(name) - 1;

	request->header_bytes += length;
	if (request->header_bytes > MAX_HEADER_BYTES)
	{
		request->stop_reason = STOP_HEADERS_TOO_LARGE;
		return 0;
	}

	if (length >= 5 && memcmp(data, "HTTP/", 5) == 0)
		request->retry_after[0] = '\0';
	else if (length >= i && pg_strncasecmp(data, name, i) == 0 &&
			 request->body == NULL)
	{
		while (i < length && (data[i] == ' ' || data[i] == '\t'))
			i++;
		while (i < length && data[i] != '\r' && data[i] != '\n' &&
			   value_length < sizeof(request->retry_after) - 1)
			request->retry_after[value_length++] = data[i++];
		while (value_length > 0 &&
			   request->retry_after[value_length - 1] == ' ')
			value_length--;
		request->retry_after[value_length] = '\0';
	}
	return length;
}

/* Takes a piece of the body, as long as there is room for it. */
static size_t
take_body(char *data, size_t size, size_t count, void *context)
{
	HttpRequest *request = context;
	size_t length = size * count;
	size_t needed;

	if (length > request->max_response - request->body_length)
	{
		request->stop_reason = STOP_BODY_TOO_LARGE;
		return 0;
	}

	needed = request->body_length + length + 1;
	if (needed > request->body_size)
	{
		size_t new_size = Max(request->body_size, FIRST_BODY_SIZE);
		char *body;

		while (new_size < needed)
			new_size *= 2;
		new_size = Min(new_size, request->max_response + 1);
		body = realloc(request->body, new_size);
		if (body == NULL)
		{
			request->stop_reason = STOP_NO_MEMORY;
			return 0;
		}
		request->body = body;
		request->body_size = new_size;
	}

	memcpy(request->body + request->body_length, data, length);
	request->body_length += length;
	request->body[request->body_length] = '\0';
	return length;
}

/*
 * Makes text fit for the log and for SQL, as UTF-8: curl's words may quote
 * what a server sent, and the system's are in an encoding of its own.
 */
static void
clean_text(char *text)
{
	size_t length = strlen(text);
	unsigned char *c;
	bool valid;

	while (length > 0 && isspace((unsigned char) text[length - 1]))
		text[--length] = '\0';
	length = pg_encoding_mbcliplen(PG_UTF8, text, length, length);
	text[length] = '\0';
	valid = pg_verify_mbstr(PG_UTF8, text, length, true);

	for (c = (unsigned char *) text; *c; c++)
	{
		if (*c < 0x20 || *c == 0x7f)
			*c = ' ';
		else if (*c >= 0x80 && !valid)
			*c = '?';
	}
}

/* The "host:port" of a URL as it is written there, without user or path. */
static void
copy_host(char *host, size_t size, const char *url)
{
	const char *start = strstr(url, "://");
	const char *at;
	size_t length;

	start = start ? start + 3 : url;
	length = strcspn(start, "/?#");
	for (at = start + length; at > start; at--)
	{
		if (at[-1] == '@')
		{
			length -= at - start;
			start = at;
			break;
		}
	}
	length = Min(length, size - 1);
	memcpy(host, start, length);
	host[length] = '\0';
	clean_text(host);
}

/* Seconds that Retry-After asks for, or -1. */
static int
parse_retry_after(const char *value)
{
	size_t digits = strspn(value, "0123456789");
	time_t date;

	if (value[0] == '\0')
		return -1;
	if (value[digits] == '\0')
	{
		unsigned long long seconds = strtoull(value, NULL, 10);

		return (int) Min(seconds, (unsigned long long) INT_MAX);
	}

	date = curl_getdate(value, NULL);
	if (date == (time_t) -1)
		return -1;
	date -= time(NULL);
	return (int) Max(0, Min(date, (time_t) INT_MAX));
}

/* Whether a request has come past one of curl's timestamps. */
static bool
has_passed(const HttpRequest *request, CURLINFO timestamp)
{
	curl_off_t time = 0;

	return curl_easy_getinfo(request->curl, timestamp, &time) == CURLE_OK &&
		   time > 0;
}

/* Whether the connection, with all its handshakes, was made. */
static bool
is_connected(const HttpRequest *request)
{
	return has_passed(request, CURLINFO_PRETRANSFER_TIME_T);
}

/* What a request is doing, to be followed by the host. */
static const char *
describe_phase(const HttpClient *client, const HttpRequest *request)
{
	curl_off_t sent = 0;
	long local_port = 0; /* known once TCP has connected */

	if (is_connected(request))
	{
		if (request->header_bytes > 0)
			return "receiving the answer of";
		curl_easy_getinfo(request->curl, CURLINFO_SIZE_UPLOAD_T, &sent);
		if (sent < (curl_off_t) request->upload_length)
			return "sending the request to";
		return "waiting for the answer of";
	}
	if (!has_passed(request, CURLINFO_NAMELOOKUP_TIME_T))
	{
		if (client->nin_flight > client->max_connections)
			return "waiting for a free connection to";
		return "looking up";
	}
	if (request->proxied)
		return "connecting through the proxy to";
	curl_easy_getinfo(request->curl, CURLINFO_LOCAL_PORT, &local_port);
	if (request->https && local_port > 0)
		return "negotiating TLS with";
	return "connecting to";
}

/*
 * Ends a request: takes it from curl, and fills in the answer.  What curl
 * knows about it must have been asked before.
 */
static void
finish_request(HttpClient *client, HttpRequest *request, HttpOutcome outcome)
{
	HttpAnswer *answer = &request->answer;
	size_t mark;
	sigset_t before;

	if (request->curl)
	{
		block_signals(&before);
		curl_multi_remove_handle(client->multi, request->curl);
		curl_easy_cleanup(request->curl);
		restore_signals(&before);
		request->curl = NULL;
		dlist_delete(&request->node);
		client->nin_flight--;
	}
	dlist_push_tail(&client->done, &request->node);

	/* what was sent, and half an answer, are of no use to anybody */
	curl_slist_free_all(request->headers);
	request->headers = NULL;
	free(request->upload_copy);
	request->upload_copy = NULL;
	request->upload = NULL;
	if (outcome != HTTP_ANSWERED)
	{
		free(request->body);
		request->body = NULL;
		request->body_length = 0;
	}

	clean_text(request->error);
	clean_text(request->content_type);
	answer->outcome = outcome;
	mark = request->body ? http_mark(request->body, request->body_length) : 0;
	answer->body = request->body ? request->body + mark : "";
	answer->body_length = request->body_length - mark;
	answer->content_type = request->content_type;
	answer->retry_after = parse_retry_after(request->retry_after);
	answer->error = request->error;
	answer->elapsed_ms = now_ms() - request->started_at;
}

/* Copies what curl knows of the answer's head. */
static void
copy_head(HttpRequest *request)
{
	const char *content_type = NULL;
	long status = 0;

	curl_easy_getinfo(request->curl, CURLINFO_RESPONSE_CODE, &status);
	request->answer.status = (int) status;
	curl_easy_getinfo(request->curl, CURLINFO_CONTENT_TYPE, &content_type);
	if (content_type)
		strlcpy(request->content_type, content_type,
				sizeof(request->content_type));
}

/* Classifies what curl says of a request that it is done with. */
static void
conclude_request(HttpClient *client, HttpRequest *request, CURLcode code)
{
	const char *detail = request->curl_error;
	const char *phase = describe_phase(client, request);
	bool connected = is_connected(request);
	const char *via = request->proxied ? " through the proxy" : "";
	char *error = request->error;
	size_t size = sizeof(request->error);
	long os_error = 0;
	HttpOutcome outcome;

	copy_head(request);
	if (detail[0] == '\0')
		detail = curl_easy_strerror(code);

	switch (code)
	{
		case CURLE_OK:
			outcome = HTTP_ANSWERED;
			break;

		case CURLE_COULDNT_RESOLVE_HOST:
		case CURLE_COULDNT_RESOLVE_PROXY:
			outcome = HTTP_CONNECT_FAILED;
			snprintf(error, size, "could not connect to %s%s: %s",
					 request->host, via, detail);
			break;

		case CURLE_COULDNT_CONNECT:
			outcome = HTTP_CONNECT_FAILED;
			curl_easy_getinfo(request->curl, CURLINFO_OS_ERRNO, &os_error);
			if (os_error != 0)
				detail = strerror((int) os_error);
			snprintf(error, size, "could not connect to %s%s: %s",
					 request->host, via, detail);
			break;

		case CURLE_SSL_CONNECT_ERROR:
		case CURLE_PEER_FAILED_VERIFICATION:
		case CURLE_SSL_CACERT_BADFILE:
		case CURLE_SSL_CERTPROBLEM:
		case CURLE_SSL_CIPHER:
		case CURLE_SSL_ENGINE_INITFAILED:
		case CURLE_SSL_INVALIDCERTSTATUS:
		case CURLE_SSL_ISSUER_ERROR:
			outcome = HTTP_CONNECT_FAILED;
			snprintf(error, size, "could not negotiate TLS with %s%s: %s",
					 request->host, via, detail);
			break;

		case CURLE_OPERATION_TIMEDOUT:
			outcome = HTTP_TIMED_OUT;
			snprintf(error, size, "timed out after %d ms while %s %s",
					 request->connect_timeout_ms, phase, request->host);
			break;

		case CURLE_SEND_ERROR:
		case CURLE_RECV_ERROR:
		case CURLE_GOT_NOTHING:
		case CURLE_PARTIAL_FILE:
			outcome = connected ? HTTP_CUT : HTTP_CONNECT_FAILED;
			snprintf(error, size, "the connection broke while %s %s: %s", phase,
					 request->host, detail);
			break;

		case CURLE_FILESIZE_EXCEEDED:
			request->stop_reason = STOP_BODY_TOO_LARGE;
			/* FALLTHROUGH */
		case CURLE_WRITE_ERROR:
			outcome = HTTP_FAILED;
			switch (request->stop_reason)
			{
				case STOP_BODY_TOO_LARGE:
					outcome = HTTP_TOO_LARGE;
					snprintf(error, size,
							 "the answer of %s is larger than %zu bytes",
							 request->host, request->max_response);
					break;
				case STOP_HEADERS_TOO_LARGE:
					snprintf(error, size,
							 "the headers of the answer of %s are larger than "
							 "%zu bytes",
							 request->host, MAX_HEADER_BYTES);
					break;
				case STOP_NO_MEMORY:
					outcome = HTTP_NO_MEMORY;
					snprintf(error, size,
							 "out of memory while receiving the answer of %s",
							 request->host);
					break;
				case STOP_NONE:
					snprintf(error, size, "could not take the answer of %s: %s",
							 request->host, detail);
					break;
			}
			break;

		case CURLE_OUT_OF_MEMORY:
			outcome = HTTP_NO_MEMORY;
			snprintf(error, size, "out of memory while %s %s", phase,
					 request->host);
			break;

		case CURLE_URL_MALFORMAT:
		case CURLE_UNSUPPORTED_PROTOCOL:
		case CURLE_WEIRD_SERVER_REPLY:
			outcome = HTTP_FAILED;
			if (connected)
				snprintf(error, size, "the answer of %s is not HTTP: %s",
						 request->host, detail);
			else
				snprintf(error, size, "the URL can't be used: %s", detail);
			break;

		default:
			outcome = HTTP_FAILED;
			snprintf(error, size, "the request failed while %s %s: %s", phase,
					 request->host, detail);
			break;
	}

	finish_request(client, request, outcome);
}

/*
 * Calls curl for a socket or, with CURL_SOCKET_TIMEOUT, for its timer.  That
 * this fails is not foreseen; if it does, the requests are in a state that
 * nobody knows, and the worker had better start afresh.
 */
static void
drive_socket(HttpClient *client, curl_socket_t fd, int what)
{
	int running;
	CURLMcode code;
	sigset_t before;

	block_signals(&before);
	code = curl_multi_socket_action(client->multi, fd, what, &running);
	restore_signals(&before);

	if (code != CURLM_OK)
		ereport(ERROR,
				(errcode(code == CURLM_OUT_OF_MEMORY ? ERRCODE_OUT_OF_MEMORY
													 : ERRCODE_INTERNAL_ERROR),
				 errmsg("could not go on with HTTP requests: %s",
						curl_multi_strerror(code))));
}

/* Finds the requests that curl is done with. */
static void
collect_finished(HttpClient *client)
{
	CURLMsg *message;
	int left;

	while ((message = curl_multi_info_read(client->multi, &left)) != NULL)
	{
		HttpRequest *request = NULL;

		if (message->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE,
						  (char **) &request);
		conclude_request(client, request, message->data.result);
	}
}

/* Ends the requests whose time is up. */
static void
expire_requests(HttpClient *client)
{
	double now = now_ms();
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &client->in_flight)
	{
		HttpRequest *request = dlist_container(HttpRequest, node, iter.cur);

		if (now < request->deadline)
			continue;
		copy_head(request);
		snprintf(request->error, sizeof(request->error),
				 "timed out after %d ms while %s %s",
				 request->request_timeout_ms, describe_phase(client, request),
				 request->host);
		finish_request(client, request, HTTP_TIMED_OUT);
	}
}

/*
 * Brings the wait event set up to date.  Events can't be taken out of one, so
 * a change of the sockets makes a new one; with a handful of sockets that is
 * a few system calls, once or twice for each request.
 */
static void
prepare_wait_set(HttpClient *client)
{
	int i;

	if (client->wait_set && !client->sockets_changed)
	{
		for (i = 0; i < client->nsockets; i++)
			ModifyWaitEvent(client->wait_set, client->sockets[i].position,
							client->sockets[i].events, NULL);
		return;
	}

	if (client->wait_set)
	{
		WaitEventSet *old = client->wait_set;

		client->wait_set = NULL;
		FreeWaitEventSet(old);
	}
	client->sockets_changed = true; /* until all of them are in */
	client->wait_set =
		create_wait_event_set(TopMemoryContext, client->nsockets + 2);
	AddWaitEventToSet(client->wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch,
					  NULL);
	AddWaitEventToSet(client->wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET,
					  NULL, NULL);
	for (i = 0; i < client->nsockets; i++)
		client->sockets[i].position =
			AddWaitEventToSet(client->wait_set, client->sockets[i].events,
							  client->sockets[i].fd, NULL, NULL);
	client->sockets_changed = false;
}

/*
 * How long to sleep, in the terms of WaitEventSetWait(): at most until a time,
 * but not beyond curl's timer, nor beyond the end of any request's time.
 */
static long
sleep_ms(HttpClient *client, double until)
{
	dlist_iter iter;
	double rest;

	until = Min(until, client->timer_at);
	dlist_foreach(iter, &client->in_flight)
	{
		HttpRequest *request = dlist_container(HttpRequest, node, iter.cur);

		until = Min(until, request->deadline);
	}
	if (until == NEVER)
		return -1;
	rest = ceil(until - now_ms());
	return (long) Max(0.0, Min(rest, (double) INT_MAX));
}

HttpClient *
http_client_create(int max_connections)
{
	HttpClient *client;
	CURLcode code;
	CURLMcode multi_code = CURLM_OUT_OF_MEMORY;
	sigset_t before;
	int i;

	Assert(IsUnderPostmaster && max_connections > 0);

	block_signals(&before);
	code = curl_global_init(CURL_GLOBAL_DEFAULT);
	restore_signals(&before);
	if (code != CURLE_OK)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
						errmsg("could not initialize libcurl: %s",
							   curl_easy_strerror(code))));

	if ((curl_version_info(CURLVERSION_NOW)->features &
		 CURL_VERSION_ASYNCHDNS) == 0)
		ereport(
			LOG,
			(errmsg("libcurl looks up host names synchronously"),
			 errdetail("While it does, absmartly's worker cannot be stopped."),
			 errhint("Install a libcurl that has the feature AsynchDNS.")));

	client = MemoryContextAllocZero(TopMemoryContext, sizeof(HttpClient));
	client->max_connections = max_connections;
	dlist_init(&client->in_flight);
	dlist_init(&client->done);
	dlist_init(&client->handed_out);
	client->timer_at = NEVER;
	client->max_sockets = (max_connections + 1) * SOCKETS_PER_CONNECTION;
	client->sockets = malloc(client->max_sockets * sizeof(WatchedSocket));
	client->multi = curl_multi_init();

#define SET(option, value)               \
	(multi_code = multi_code != CURLM_OK \
					  ? multi_code       \
					  : curl_multi_setopt(client->multi, option, value))

	if (client->sockets && client->multi)
		multi_code = CURLM_OK;
	SET(CURLMOPT_SOCKETFUNCTION, watch_socket);
	SET(CURLMOPT_SOCKETDATA, client);
	SET(CURLMOPT_TIMERFUNCTION, set_timer);
	SET(CURLMOPT_TIMERDATA, client);
	SET(CURLMOPT_PIPELINING, (long) CURLPIPE_NOTHING);
	SET(CURLMOPT_MAXCONNECTS, (long) max_connections);
	SET(CURLMOPT_MAX_TOTAL_CONNECTIONS, (long) max_connections);
	SET(CURLMOPT_MAX_HOST_CONNECTIONS, (long) max_connections);
#undef SET

	/* the file descriptors that fd.c shall keep free for them */
	for (i = 0; i < max_connections; i++)
		ReserveExternalFD();

	if (multi_code != CURLM_OK)
	{
		http_client_destroy(client);
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY),
						errmsg("could not prepare libcurl: %s",
							   curl_multi_strerror(multi_code))));
	}
	return client;
}

/* Gives up all requests, and frees everything. */
void
http_client_destroy(HttpClient *client)
{
	dlist_head *lists[] = {&client->in_flight, &client->done,
						   &client->handed_out};
	sigset_t before;
	int i;

	for (i = 0; i < (int) lengthof(lists); i++)
	{
		while (!dlist_is_empty(lists[i]))
			http_release(client,
						 dlist_head_element(HttpRequest, node, lists[i]));
	}

	block_signals(&before);
	curl_multi_cleanup(client->multi);
	curl_global_cleanup();
	restore_signals(&before);

	if (client->wait_set)
		FreeWaitEventSet(client->wait_set);
	for (i = 0; i < client->max_connections; i++)
		ReleaseExternalFD();
	free(client->sockets);
	pfree(client);
}

/* Appends a line to the list that curl reads headers from. */
static bool
append_line(HttpRequest *request, const char *line)
{
	struct curl_slist *list = curl_slist_append(request->headers, line);

	if (list)
		request->headers = list;
	return list != NULL;
}

/*
 * Adds a header in curl's notation, in which "Name:" stands for no header at
 * all and "Name;" for one without a value.
 */
static bool
add_header(HttpRequest *request, const char *header)
{
	const char *colon = strchr(header, ':');
	char *line;
	bool added;

	if (colon == NULL || colon[1 + strspn(colon + 1, " \t")] != '\0')
		return append_line(request, header);

	line = strdup(header);
	if (line == NULL)
		return false;
	line[colon - header] = ';';
	line[colon - header + 1] = '\0';
	added = append_line(request, line);
	free(line);
	return added;
}

/* Whether a header holds a character that would end it, or is forbidden. */
static bool
has_control_character(const char *header)
{
	const unsigned char *c;

	for (c = (const unsigned char *) header; *c; c++)
	{
		if ((*c < 0x20 && *c != '\t') || *c == 0x7f)
			return true;
	}
	return false;
}

/* Copies the headers and the body, unless that stays.  False: no memory. */
static bool
copy_content(HttpRequest *request, const HttpOptions *options)
{
	const char *const *header;
	bool has_content_type = false;

	/* a large body shall not wait to be asked for */
	if (!append_line(request, "Expect:"))
		return false;
	for (header = options->headers; header && *header; header++)
	{
		if (!add_header(request, *header))
			return false;
		if (pg_strncasecmp(*header, "Content-Type:", 13) == 0)
			has_content_type = true;
	}
	if (options->method != HTTP_PUT)
		return true;

	/* curl would take the body for a form's */
	if (!has_content_type && !append_line(request, "Content-Type:"))
		return false;
	request->upload_length = options->body_length;
	if (options->body_stays)
	{
		request->upload = options->body;
		return true;
	}
	request->upload_copy = malloc(options->body_length + 1);
	if (request->upload_copy == NULL)
		return false;
	if (options->body_length > 0)
		memcpy(request->upload_copy, options->body, options->body_length);
	request->upload = request->upload_copy;
	return true;
}

/* Tells curl what to do, and what not to. */
static CURLcode
set_options(HttpRequest *request, const HttpOptions *options)
{
	CURL *curl = request->curl;
	CURLcode code = CURLE_OK;
	const char *proxy = options->proxy ? options->proxy : "";

#define SET(option, value) \
	(code = code != CURLE_OK ? code : curl_easy_setopt(curl, option, value))

	SET(CURLOPT_PRIVATE, (void *) request);
	SET(CURLOPT_ERRORBUFFER, request->curl_error);
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(CURLOPT_VERBOSE, 0L);
	SET(CURLOPT_NOPROGRESS, 1L);
	SET(CURLOPT_URL, options->url);
	SET(CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
	SET(CURLOPT_HTTPHEADER, request->headers);

	if (options->method == HTTP_PUT)
	{
		SET(CURLOPT_POST, 1L);
		SET(CURLOPT_CUSTOMREQUEST, "PUT");
		SET(CURLOPT_POSTFIELDS, request->upload);
		SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) request->upload_length);
	}
	else
		SET(CURLOPT_HTTPGET, 1L);

	SET(CURLOPT_SOCKOPTFUNCTION, prepare_socket);
	SET(CURLOPT_HEADERFUNCTION, take_header);
	SET(CURLOPT_HEADERDATA, request);
	SET(CURLOPT_WRITEFUNCTION, take_body);
	SET(CURLOPT_WRITEDATA, request);
	SET(CURLOPT_MAXFILESIZE_LARGE, (curl_off_t) request->max_response);
	SET(CURLOPT_CONNECTTIMEOUT_MS, (long) request->connect_timeout_ms);
	SET(CURLOPT_TCP_KEEPALIVE, 1L);
	SET(CURLOPT_TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
	SET(CURLOPT_TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);

	/* where it may go, and with whose credentials: with none */
#if LIBCURL_VERSION_NUM >= 0x075500
	SET(CURLOPT_PROTOCOLS_STR, "http,https");
#else
	SET(CURLOPT_PROTOCOLS, (long) (CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
	SET(CURLOPT_FOLLOWLOCATION, 0L);
	SET(CURLOPT_PROXY, proxy);
	SET(CURLOPT_NOPROXY, "");
	SET(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
	SET(CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
#if LIBCURL_VERSION_NUM >= 0x074000
	SET(CURLOPT_HTTP09_ALLOWED, 0L);
#endif

	SET(CURLOPT_SSL_VERIFYPEER, 1L);
	SET(CURLOPT_SSL_VERIFYHOST, 2L);
	SET(CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	if (request->proxied)
		SET(CURLOPT_PROXY_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	if (options->ca_file && options->ca_file[0])
	{
		/* instead of the system's authorities, not in addition to them */
		SET(CURLOPT_CAINFO, options->ca_file);
		SET(CURLOPT_CAPATH, (char *) NULL);
		if (request->proxied)
		{
			SET(CURLOPT_PROXY_CAINFO, options->ca_file);
			SET(CURLOPT_PROXY_CAPATH, (char *) NULL);
		}
	}
#if LIBCURL_VERSION_NUM >= 0x075700
	SET(CURLOPT_CA_CACHE_TIMEOUT, CA_CACHE_S);

	/* a thread that hangs in a name server's silence is left behind */
	SET(CURLOPT_QUICK_EXIT, 1L);
#endif
#undef SET

	return code;
}

/*
 * Starts a request.  One that can't even be begun is done at once, and says
 * why.
 */
HttpRequest *
http_start(HttpClient *client, const HttpOptions *options)
{
	HttpRequest *request = calloc(1, sizeof(HttpRequest));
	const char *const *header;
	CURLcode code = CURLE_OUT_OF_MEMORY;
	CURLMcode multi_code = CURLM_OUT_OF_MEMORY;
	sigset_t before;

	if (request == NULL)
		return NULL;
	request->https = pg_strncasecmp(options->url, "https:", 6) == 0;
	request->proxied = options->proxy && options->proxy[0];
	request->max_response = Min(options->max_response, MaxAllocHugeSize - 1);
	request->started_at = now_ms();
	request->request_timeout_ms = Max(1, options->request_timeout_ms);
	request->connect_timeout_ms =
		Max(1, Min(options->connect_timeout_ms, request->request_timeout_ms));
	request->deadline = request->started_at + request->request_timeout_ms;
	request->answer.tag = options->tag;
	copy_host(request->host, sizeof(request->host), options->url);

	for (header = options->headers; header && *header; header++)
	{
		if (has_control_character(*header))
		{
			snprintf(request->error, sizeof(request->error),
					 "a header of the request holds a control character");
			finish_request(client, request, HTTP_FAILED);
			return request;
		}
	}

	request->curl = curl_easy_init();
	if (request->curl && copy_content(request, options))
		code = set_options(request, options);
	if (code == CURLE_OK)
	{
		block_signals(&before);
		multi_code = curl_multi_add_handle(client->multi, request->curl);
		restore_signals(&before);
		if (multi_code == CURLM_OK)
		{
			dlist_push_tail(&client->in_flight, &request->node);
			client->nin_flight++;
			return request;
		}
	}

	curl_easy_cleanup(request->curl);
	request->curl = NULL;
	if (code == CURLE_OK || code == CURLE_OUT_OF_MEMORY)
	{
		curl_slist_free_all(request->headers);
		free(request->upload_copy);
		free(request);
		return NULL;
	}
	snprintf(request->error, sizeof(request->error),
			 "could not prepare the request: %s", curl_easy_strerror(code));
	finish_request(client, request, HTTP_FAILED);
	return request;
}

void
http_release(HttpClient *client, HttpRequest *request)
{
	if (request->curl)
		finish_request(client, request, HTTP_FAILED);
	dlist_delete(&request->node);
	free(request->body);
	free(request);
}

/*
 * Every round looks at all sockets before the clock, so that what has arrived
 * counts.  When there is a reason to return, one more round that does not
 * sleep lets the other transfers go on: a latch that is already set keeps
 * WaitEventSetWait() from looking at the sockets, and a worker that is woken
 * all the time would otherwise never get to them.
 */
void
http_wait(HttpClient *client, long timeout_ms, uint32 wait_event_info)
{
	double until = timeout_ms < 0 ? NEVER : now_ms() + timeout_ms;
	bool woken = false;
	bool last;

	do
	{
		WaitEvent events[MAX_EVENTS];
		int nevents;
		int i;

		last = woken || !dlist_is_empty(&client->done) || now_ms() >= until;

		prepare_wait_set(client);
		nevents = WaitEventSetWait(client->wait_set,
								   last ? 0 : sleep_ms(client, until), events,
								   MAX_EVENTS, wait_event_info);
		for (i = 0; i < nevents; i++)
		{
			int what = 0;

			if (events[i].events & WL_LATCH_SET)
			{
				ResetLatch(MyLatch);
				woken = true;
				continue;
			}
			if (events[i].events & WL_SOCKET_READABLE)
				what |= CURL_CSELECT_IN;
			if (events[i].events & WL_SOCKET_WRITEABLE)
				what |= CURL_CSELECT_OUT;
			drive_socket(client, events[i].fd, what);
		}

		if (client->timer_at <= now_ms())
		{
			client->timer_at = NEVER;
			drive_socket(client, CURL_SOCKET_TIMEOUT, 0);
		}
		collect_finished(client);
		expire_requests(client);
	} while (!last);
}

HttpRequest *
http_next_done(HttpClient *client)
{
	HttpRequest *request;

	if (dlist_is_empty(&client->done))
		return NULL;
	request =
		dlist_container(HttpRequest, node, dlist_pop_head_node(&client->done));
	dlist_push_tail(&client->handed_out, &request->node);
	return request;
}

/* NULL as long as the request is in flight. */
const HttpAnswer *
http_answer(const HttpRequest *request)
{
	return request->curl ? NULL : &request->answer;
}

bool
http_busy(HttpClient *client)
{
	return !dlist_is_empty(&client->in_flight) ||
		   !dlist_is_empty(&client->done) ||
		   !dlist_is_empty(&client->handed_out);
}

char *
http_escape(const char *text)
{
	static const char hex[] = "0123456789ABCDEF";
	const unsigned char *c;
	char *result = palloc(strlen(text) * 3 + 1);
	char *out = result;

	for (c = (const unsigned char *) text; *c; c++)
	{
		if ((*c >= 'A' && *c <= 'Z') || (*c >= 'a' && *c <= 'z') ||
			(*c >= '0' && *c <= '9') || strchr("-_.!~*'()", *c))
			*out++ = (char) *c;
		else
		{
			*out++ = '%';
			*out++ = hex[*c >> 4];
			*out++ = hex[*c & 0x0f];
		}
	}
	*out = '\0';
	return result;
}
