/*
 * contexts.h
 *		What session contexts ask of the worker: to hold their events, and to
 *		publish them (DESIGN 3.2, data/context_slot.h).
 */
#ifndef ABSMARTLY_WORKER_CONTEXTS_H
#define ABSMARTLY_WORKER_CONTEXTS_H

#include "postgres.h"

#include "data/shared.h"

/* At the worker's start, and when all is to be sent anew: nothing is known. */
extern void contexts_start(void);

/*
 * Looks at the slots of this database if that is due: true if something may be
 * free that was held, which a pass will find.
 */
extern bool contexts_look(DatabaseState *state);

/* Milliseconds until it is due, as far as nobody tells; -1: it is not. */
extern long contexts_timeout(void);

/*
 * Whether a record is held until it is let go.  One whose publishing has failed
 * is held again, also as long as its session does not know of that.
 */
extern bool contexts_hold(uint64 key, uint64 sequence);

/* Whether the present pass leaves a record behind: an OutboxHolds. */
extern bool contexts_hold_in_pass(uint64 key, uint64 sequence, bool old,
								  TimestampTz *until);

/* Whether what a context has recorded is dropped instead of being sent. */
extern bool contexts_discard(uint64 key);

/* The server shuts down: nothing is held any more. */
extern void contexts_let_go(void);

/*
 * Publishing on request.  A request is served by a pass that begins after it:
 * whether one has to wait for its pass, and whether the pass that is running
 * serves one.
 */
extern bool contexts_want_pass(void);
extern bool contexts_in_pass(void);

/*
 * A pass begins: before anything of it is looked at; has come to its end, and
 * has read what was committed at that moment (events/replicated.h); has been
 * given up.
 */
extern void contexts_pass_begun(DatabaseState *state);
extern void contexts_pass_read(uint64 moment);
extern void contexts_pass_lost(void);

/* Whether somebody waits for a context to be published. */
extern bool contexts_requested(uint64 key);

/* Events of a context are refused for good: who waits for them is told. */
extern void contexts_refused(uint64 key, const char *words);

/*
 * Publishing has failed: for a context, or if key is 0 for all that are not
 * done.  Who waits for it is told, and the event logger before.
 */
extern void contexts_fail(DatabaseState *state, uint64 key, int code,
						  const char *error);

/* Whether a request has been served; tells those who wait. */
extern bool contexts_are_served(void);
extern void contexts_finish_served(DatabaseState *state);

#endif /* ABSMARTLY_WORKER_CONTEXTS_H */
