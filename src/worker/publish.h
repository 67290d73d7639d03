/*
 * publish.h
 *		Delivery: events from the outbox and the memory queue to the collector
 *		(DESIGN 6.2).
 */
#ifndef ABSMARTLY_WORKER_PUBLISH_H
#define ABSMARTLY_WORKER_PUBLISH_H

#include "postgres.h"

#include "data/shared.h"
#include "worker/http.h"

/* At the worker's start. */
extern void publish_start(DatabaseState *state);

/* Sends what is due, as far as there are connections. */
extern void publish_begin(DatabaseState *state, HttpClient *client);

/* Whether a request that is done is publish_begin()'s. */
extern bool publish_owns(const HttpRequest *request);

/* A request of publish_begin()'s is done: judges it, and plans. */
extern void publish_finish(DatabaseState *state, HttpClient *client,
						   HttpRequest *request);

/*
 * After all requests that are done were handed to publish_finish():
 * acknowledges, keeps dead letters, tells the waiters.
 */
extern void publish_settle(DatabaseState *state);

/*
 * An error has left something half done, and the client of HTTP is gone:
 * forgets what was read and not marked as delivered, which is read and sent
 * again.
 */
extern void publish_begin_anew(DatabaseState *state);

/* Settings were read anew: pauses end. */
extern void publish_settings_changed(void);

/*
 * The same, with another endpoint: what is sent from now on goes there.  What
 * runs is waited for: what the former one takes in is not sent again.
 */
extern void publish_endpoint_changed(void);

/*
 * Milliseconds until publish_begin() or publish_settle() has something to do,
 * -1: nothing to do.  Tells committing backends when to wake the worker.
 */
extern long publish_timeout(DatabaseState *state);

/* What there is to say about the worker from here. */
extern WorkerState publish_state(void);

/* A primary's memory queue goes to the outbox: the worker ends for good. */
extern void publish_save_queue(DatabaseState *state);

/*
 * The end: lets running requests come to theirs, as long as the one who ended
 * the worker allows: for half a second if the server stops or somebody needs
 * the database for himself, else up to their own limit, while another worker
 * may begin its work already.  A primary writes what is left of records that
 * were delivered in part to the outbox.  If stop is set, it was terminated: a
 * primary moves the memory queue there, too, and a standby that shuts down
 * sends what it can in 2 s.
 */
extern void publish_shutdown(DatabaseState *state, HttpClient *client,
							 bool stop);

#endif /* ABSMARTLY_WORKER_PUBLISH_H */
