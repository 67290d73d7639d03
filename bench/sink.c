/*
 * sink.c
 *		A collector that takes everything at once, for bench/events: it counts
 *		what it is sent, remembers when, and is much faster than any sender.
 *
 *	sink DATA
 *
 * listens on a free port of 127.0.0.1 and prints it.  Times are in
 * microseconds since the epoch, and a request's is that of its first byte.
 *
 *	PUT .../context, PUT .../context/batch	{"ok":true}
 *	GET .../context		the file DATA
 *	GET /_/count		lines: a counter and its value
 *	GET /_/arrivals		a line for each PUT: its time, its contexts
 *	POST /_/reset		counts from 0
 */
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNECTIONS 256
#define MAX_ARRIVALS 65536 /* later ones are counted only */
#define BUFFER_SIZE (256 * 1024)

/* each publish request has exactly one */
#define MARK "\"publishedAt\""
#define MARK_LENGTH (sizeof(MARK) - 1)

typedef enum Call
{
	CALL_UNKNOWN,
	CALL_PUBLISH,
	CALL_DATA,
	CALL_COUNT,
	CALL_ARRIVALS,
	CALL_RESET
} Call;

typedef struct Connection
{
	int fd;
	Call call;
	bool in_body;
	bool last; /* closed after this request */
	int64_t arrived; /* the request's first byte; 0: none yet */
	uint64_t remaining; /* bytes of the body that were not looked at */
	uint64_t contexts; /* in the body so far */
	char *answer; /* on its way; NULL: none */
	size_t answer_length;
	size_t answer_sent;
	size_t used; /* bytes in buffer */
	char buffer[BUFFER_SIZE];
} Connection;

typedef struct Arrival
{
	int64_t time;
	uint64_t contexts;
} Arrival;

static struct
{
	uint64_t requests;
	uint64_t contexts;
	uint64_t bytes; /* of bodies */
	int64_t first; /* the first byte of the first request */
	int64_t last; /* the last byte of the last one */
} count;

static Arrival arrivals[MAX_ARRIVALS];
static size_t narrivals;

static char *context_data;
static size_t context_length;

static _Noreturn void
die(const char *what)
{
	fprintf(stderr, "sink: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void *
allocate(size_t size)
{
	void *result = malloc(size);

	if (result == NULL)
		die("malloc");
	return result;
}

static int64_t
now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_REALTIME, &time);
	return (int64_t) time.tv_sec * 1000000 + time.tv_nsec / 1000;
}

/* ----------------------------------------------------------------
 * Answers
 * ----------------------------------------------------------------
 */

/* Sends what the peer takes; gives false if it is gone. */
static bool
send_answer(Connection *connection)
{
	while (connection->answer_sent < connection->answer_length)
	{
		ssize_t sent = send(
			connection->fd, connection->answer + connection->answer_sent,
			connection->answer_length - connection->answer_sent, MSG_NOSIGNAL);

		if (sent < 0)
			return errno == EAGAIN || errno == EINTR;
		connection->answer_sent += sent;
	}
	free(connection->answer);
	connection->answer = NULL;
	return !connection->last;
}

static bool
answer(Connection *connection, const char *status, const char *type,
	   const char *body, size_t length)
{
	char head[256];
	int head_length = snprintf(head, sizeof(head),
							   "HTTP/1.1 %s\r\nContent-Type: %s\r\n"
							   "Content-Length: %zu\r\n%s\r\n",
							   status, type, length,
							   connection->last ? "Connection: close\r\n" : "");

	connection->answer = allocate(head_length + length);
	memcpy(connection->answer, head, head_length);
	if (length > 0)
		memcpy(connection->answer + head_length, body, length);
	connection->answer_length = head_length + length;
	connection->answer_sent = 0;
	return send_answer(connection);
}

static bool
answer_count(Connection *connection)
{
	char text[256];
	int length = snprintf(
		text, sizeof(text),
		"requests %" PRIu64 "\ncontexts %" PRIu64 "\nbytes %" PRIu64
		"\nfirst %" PRId64 "\nlast %" PRId64 "\n",
		count.requests, count.contexts, count.bytes, count.first, count.last);

	return answer(connection, "200 OK", "text/plain", text, length);
}

static bool
answer_arrivals(Connection *connection)
{
	size_t length = 0;
	size_t size = narrivals * 42 + 1;
	char *text = allocate(size);
	bool result;

	for (size_t i = 0; i < narrivals; i++)
		length +=
			snprintf(text + length, size - length, "%" PRId64 " %" PRIu64 "\n",
					 arrivals[i].time, arrivals[i].contexts);
	result = answer(connection, "200 OK", "text/plain", text, length);
	free(text);
	return result;
}

/* The whole request was read. */
static bool
finish_request(Connection *connection)
{
	int64_t arrived = connection->arrived;

	connection->in_body = false;
	connection->arrived = 0;
	switch (connection->call)
	{
		case CALL_PUBLISH:
			if (count.first == 0)
				count.first = arrived;
			count.last = now();
			count.requests++;
			count.contexts += connection->contexts;
			if (narrivals < MAX_ARRIVALS)
			{
				arrivals[narrivals].time = arrived;
				arrivals[narrivals++].contexts = connection->contexts;
			}
			return answer(connection, "200 OK", "application/json",
						  "{\"ok\":true}", strlen("{\"ok\":true}"));
		case CALL_DATA:
			return answer(connection, "200 OK", "application/json",
						  context_data, context_length);
		case CALL_COUNT:
			return answer_count(connection);
		case CALL_ARRIVALS:
			return answer_arrivals(connection);
		case CALL_RESET:
			memset(&count, 0, sizeof(count));
			narrivals = 0;
			return answer(connection, "200 OK", "text/plain", "", 0);
		case CALL_UNKNOWN:
			break;
	}
	return answer(connection, "404 Not Found", "text/plain", "", 0);
}

/* ----------------------------------------------------------------
 * Requests
 * ----------------------------------------------------------------
 */

static bool
ends_with(const char *text, const char *end)
{
	size_t length = strlen(text);
	size_t end_length = strlen(end);

	return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

static Call
find_call(const char *method, const char *path)
{
	bool get = strcmp(method, "GET") == 0;

	if (strcmp(method, "PUT") == 0 &&
		(ends_with(path, "/context") || ends_with(path, "/context/batch")))
		return CALL_PUBLISH;
	if (get && ends_with(path, "/context"))
		return CALL_DATA;
	if (get && strcmp(path, "/_/count") == 0)
		return CALL_COUNT;
	if (get && strcmp(path, "/_/arrivals") == 0)
		return CALL_ARRIVALS;
	if (strcmp(method, "POST") == 0 && strcmp(path, "/_/reset") == 0)
		return CALL_RESET;
	return CALL_UNKNOWN;
}

/* The value of a header line, if that is its name. */
static const char *
header_value(const char *line, const char *name)
{
	size_t length = strlen(name);

	if (strncasecmp(line, name, length) != 0 || line[length] != ':')
		return NULL;
	line += length + 1;
	return line + strspn(line, " \t");
}

/* Reads a request's head, without the blank line at its end. */
static bool
start_request(Connection *connection, char *head)
{
	char *rest;
	char *line = strtok_r(head, "\r\n", &rest);
	char method[16];
	char path[2048];
	int minor;

	if (line == NULL ||
		sscanf(line, "%15s %2047s HTTP/1.%d", method, path, &minor) != 3)
		return false;
	path[strcspn(path, "?")] = '\0';
	connection->call = find_call(method, path);
	if (connection->arrived == 0)
		connection->arrived = now();
	connection->contexts = 0;
	connection->remaining = 0;
	connection->last = minor == 0;
	connection->in_body = true;
	while ((line = strtok_r(NULL, "\r\n", &rest)) != NULL)
	{
		const char *value;

		if ((value = header_value(line, "Content-Length")) != NULL)
			connection->remaining = strtoull(value, NULL, 10);
		else if ((value = header_value(line, "Connection")) != NULL)
			connection->last =
				connection->last || strcasecmp(value, "close") == 0;
		else if (header_value(line, "Transfer-Encoding") != NULL ||
				 header_value(line, "Content-Encoding") != NULL ||
				 header_value(line, "Expect") != NULL)
			return false; /* nobody who is measured sends these */
	}
	return true;
}

/* Counts the contexts in a part of a body. */
static uint64_t
count_marks(const char *data, size_t length)
{
	const char *end = data + length;
	uint64_t result = 0;

	while ((data = memmem(data, end - data, MARK, MARK_LENGTH)) != NULL)
	{
		result++;
		data += MARK_LENGTH;
	}
	return result;
}

/*
 * Looks at what was read.  A body is not kept: its last bytes are, as a mark
 * may have begun there.  Gives false if the connection is at its end.
 */
static bool
process(Connection *connection)
{
	char *at = connection->buffer;
	char *end = connection->buffer + connection->used;

	while (connection->answer == NULL)
	{
		size_t length = end - at;

		if (!connection->in_body)
		{
			char *blank = memmem(at, length, "\r\n\r\n", 4);

			if (blank == NULL)
			{
				if (at == connection->buffer && length == BUFFER_SIZE)
					return false;
				break;
			}
			blank[2] = '\0';
			if (!start_request(connection, at))
				return false;
			at = blank + 4;
			if (connection->call == CALL_PUBLISH)
				count.bytes += connection->remaining;
		}
		else if (length < connection->remaining)
		{
			size_t done;

			if (length < MARK_LENGTH)
				break;
			done = length - (MARK_LENGTH - 1);
			connection->contexts += count_marks(at, length);
			connection->remaining -= done;
			at += done;
			break;
		}
		else
		{
			connection->contexts += count_marks(at, connection->remaining);
			at += connection->remaining;
			if (!finish_request(connection))
				return false;
		}
	}
	connection->used = end - at;
	memmove(connection->buffer, at, connection->used);
	return true;
}

/* Does what can be done now; gives false if the connection is at its end. */
static bool
serve(Connection *connection)
{
	ssize_t length;

	if (connection->answer != NULL)
		return send_answer(connection) && process(connection);
	length = recv(connection->fd, connection->buffer + connection->used,
				  BUFFER_SIZE - connection->used, 0);
	if (length < 0)
		return errno == EAGAIN || errno == EINTR;
	if (length == 0)
		return false;
	connection->used += length;
	if (connection->arrived == 0)
		connection->arrived = now();
	return process(connection);
}

/* ----------------------------------------------------------------
 * The program
 * ----------------------------------------------------------------
 */

static void
read_data(const char *name)
{
	FILE *file = fopen(name, "rb");
	long size;

	if (file == NULL || fseek(file, 0, SEEK_END) != 0 ||
		(size = ftell(file)) < 0)
		die(name);
	rewind(file);
	context_length = size;
	context_data = allocate(context_length + 1);
	if (fread(context_data, 1, context_length, file) != context_length)
		die(name);
	fclose(file);
}

static int
listen_somewhere(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t length = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || bind(fd, (struct sockaddr *) &address, length) != 0 ||
		listen(fd, MAX_CONNECTIONS) != 0 ||
		getsockname(fd, (struct sockaddr *) &address, &length) != 0)
		die("listen");
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	return fd;
}

static Connection *
accept_connection(int listener)
{
	int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
	int on = 1;
	Connection *connection;

	if (fd < 0)
		return NULL;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	connection = allocate(sizeof(Connection));
	memset(connection, 0, offsetof(Connection, buffer));
	connection->fd = fd;
	return connection;
}

int
main(int argc, char **argv)
{
	static Connection *connections[MAX_CONNECTIONS];
	static struct pollfd waits[MAX_CONNECTIONS + 1];
	int n = 0;
	int listener;

	if (argc != 2)
	{
		fprintf(stderr, "usage: sink DATA\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	read_data(argv[1]);
	listener = listen_somewhere();
	for (;;)
	{
		for (int i = 0; i < n; i++)
		{
			waits[i].fd = connections[i]->fd;
			waits[i].events = connections[i]->answer != NULL ? POLLOUT : POLLIN;
		}
		waits[n].fd = n < MAX_CONNECTIONS ? listener : -1;
		waits[n].events = POLLIN;
		if (poll(waits, n + 1, -1) < 0)
		{
			if (errno == EINTR)
				continue;
			die("poll");
		}

		/* the last ones first, so that those not looked at keep their places */
		if (waits[n].revents != 0 &&
			(connections[n] = accept_connection(listener)) != NULL)
		{
			waits[n].revents = 0;
			n++;
		}
		for (int i = n - 1; i >= 0; i--)
			if (waits[i].revents != 0 && !serve(connections[i]))
			{
				close(connections[i]->fd);
				free(connections[i]->answer);
				free(connections[i]);
				connections[i] = connections[--n];
			}
	}
}
