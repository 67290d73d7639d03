/*
 * logger.h
 *		The event logger: a function of the user's that is told what happens
 *		(DESIGN 7.4).
 */
#ifndef ABSMARTLY_EVENTS_LOGGER_H
#define ABSMARTLY_EVENTS_LOGGER_H

#include "postgres.h"

#include "access/xact.h"

#include "data/shared.h"

/* Whether absmartly.event_logger is set here. */
extern bool logger_wanted(void);

/*
 * Tells the worker's logger of an event, in a transaction of its own.  context
 * is the key of the session context that it is about, 0: of none.  data is JSON
 * text in UTF-8; where jsonb can't hold it, null is passed.  A failing logger
 * is reported at WARNING, not for each event; nothing is raised.  One that
 * takes too long is cancelled and rests; if it does not let itself be cancelled
 * the process ends.
 */
extern void logger_emit_from_worker(DatabaseState *state, uint64 context,
									const char *event, const char *data,
									size_t length);

/*
 * Tells the session's logger of an event of its context, in the present
 * transaction; in parallel mode at the end of the query.  A failing logger is
 * undone and reported at WARNING.  What a logger itself causes is not told.
 * Raises where the query is cancelled.
 */
extern void logger_emit(uint64 context, const char *event, const char *data,
						size_t length);
extern void logger_emit_error(uint64 context, const char *message);

/* Whether the session's logger runs. */
extern bool logger_is_running(void);

/* What has waited for the end of parallel mode is told. */
extern void logger_flush(void);

/* The transaction has ended: what waits is forgotten. */
extern void logger_forget(void);

/* What waits is forgotten with the subtransaction that it is of. */
extern void logger_subtransaction_end(SubXactEvent event);

/* Tells it of an error, by its text in the database's encoding. */
extern void logger_emit_error_from_worker(DatabaseState *state, uint64 context,
										  const char *message);

#endif /* ABSMARTLY_EVENTS_LOGGER_H */
