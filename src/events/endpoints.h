/*
 * endpoints.h
 *		Which endpoints were this server's own.
 *
 * A record that was written for another endpoint is foreign: the database, or
 * the server, is a copy, and the original sends it.  An endpoint that changes
 * while the server runs is no such case, and stays none after a restart or a
 * crash: so the endpoints that were in force are remembered in the data
 * directory.  The endpoint that a server finds at its start must be the one
 * that was in force last, or one that a command has given the database since
 * then: else the directory is a copy, and what was remembered is another
 * server's.
 */
#ifndef ABSMARTLY_EVENTS_ENDPOINTS_H
#define ABSMARTLY_EVENTS_ENDPOINTS_H

#include "postgres.h"

#include "data/shared.h"

/*
 * For the worker, before an endpoint comes in force: remembers it. of_database:
 * it comes from the database's settings, not from the configuration file.
 * Needs an open transaction; failure to write the file is reported at WARNING,
 * and that to write to the heap, if that is not locked, is raised.
 */
extern void endpoints_note(DatabaseState *state, const char *endpoint,
						   bool of_database);

/*
 * The list in the heap, for standbys: whether it is to be read and written
 * there, and that.  Before that nothing may be read from the outbox: after a
 * promotion it has endpoints that this server has not seen.  Without wait
 * nothing is done if the heap is locked.  Needs an open transaction; true: once
 * that has committed, endpoints_listed() is to be told.
 */
extern bool endpoints_list_wanted(const DatabaseState *state);
extern bool endpoints_list(DatabaseState *state, bool wait);
extern void endpoints_listed(void);

/*
 * For commands that give a database another endpoint, before they commit; NULL:
 * the configuration's.  Should a crash come before the worker has seen it, the
 * endpoint is known all the same.  Needs an open transaction.
 */
extern void endpoints_announce(Oid database, const char *endpoint);

/*
 * Whether the worker has seen since the server's start which endpoint a
 * database has, so that it can be announced what follows it; or there is none
 * to follow.
 */
extern bool endpoints_are_seen(Oid database);

/* Whether records with this stamp are to be sent from here. */
extern bool endpoints_are_own(const DatabaseState *state, uint64 endpoint);

/*
 * Whether records may wait that have the stamp of an endpoint of before, and
 * were not given the present one's; and that they were.  The latter needs an
 * open transaction.
 */
extern bool endpoints_adoption_wanted(const DatabaseState *state);
extern void endpoints_note_adoption(DatabaseState *state);

/*
 * Whether the list is still in the heap, but only for transactions that were
 * running, or prepared, when what waits was adopted; and takes it out, if these
 * have ended, and the heap is not locked.  The latter needs an active snapshot.
 */
extern bool endpoints_list_is_left(void);
extern bool endpoints_drop_list(void);

#endif /* ABSMARTLY_EVENTS_ENDPOINTS_H */
