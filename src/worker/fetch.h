/*
 * fetch.h
 *		Fetching the experiments: rounds of attempts, back-off, waiters.
 */
#ifndef ABSMARTLY_WORKER_FETCH_H
#define ABSMARTLY_WORKER_FETCH_H

#include "postgres.h"

#include "data/shared.h"
#include "worker/http.h"

/* Loads the file of the last known good answer, if it is for this target. */
extern void fetch_load_file(DatabaseState *state);

/* Starts an attempt if one is due. */
extern void fetch_begin(DatabaseState *state, HttpClient *client);

/* A request of fetch_begin()'s is done. */
extern void fetch_finish(DatabaseState *state, HttpClient *client,
						 HttpRequest *request);

/* Gives up what is running; the next fetch_begin() starts anew. */
extern void fetch_restart(DatabaseState *state, HttpClient *client);

/*
 * An error has left something half done, and the client of HTTP is gone: what
 * was running has failed, and is tried again.
 */
extern void fetch_begin_anew(DatabaseState *state);

/*
 * Settings were read anew: a changed interval counts from the last fetch, and
 * the pause after a failed round ends.
 */
extern void fetch_settings_changed(void);

/* Milliseconds until fetch_begin() has something to do; -1: nothing to do. */
extern long fetch_timeout(DatabaseState *state);

/* What there is to say about the worker from here. */
extern WorkerState fetch_state(void);

#endif /* ABSMARTLY_WORKER_FETCH_H */
