/*
 * worker.h
 *		The worker of one database.
 */
#ifndef ABSMARTLY_WORKER_WORKER_H
#define ABSMARTLY_WORKER_WORKER_H

#include "postgres.h"

#include "data/shared.h"

/*
 * A worker's main function; argument is the database's OID.  Ends with exit
 * code 0 when it is asked to go or finds no extension.
 */
extern PGDLLEXPORT void absmartly_worker_main(Datum argument);

/*
 * Settings that are meant for users' sessions must not reach the launcher and
 * the workers: gives them their own.
 */
extern void worker_pin_settings(void);

/*
 * Lets another worker take over from this one, which sends nothing more but
 * waits for answers to what it has sent.
 */
extern void worker_hand_over(void);

/*
 * Call the event logger, if there is one.  context is the key of the session
 * context that it is about, 0: of none.  SIGTERM interrupts it.
 */
extern void worker_log_event(DatabaseState *database, uint64 context,
							 const char *event, const char *data,
							 size_t length);
extern void worker_log_error(DatabaseState *database, uint64 context,
							 const char *message);

#endif /* ABSMARTLY_WORKER_WORKER_H */
