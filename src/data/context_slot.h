/*
 * context_slot.h
 *		What a session and the worker share about the session's context
 *		(DESIGN 3.2).
 *
 * A session has one context at most, so each process's slot has place for one.
 * A context is known by a key that no other one ever has; the events that it
 * has recorded carry it, with a number that grows from record to record.  What
 * no slot knows (any more) is nobody's: its session has ended, or has another
 * context, and what waits of it is sent.
 *
 * Nothing here raises, allocates or waits, but for the lock of a state where
 * that is said.
 */
#ifndef ABSMARTLY_DATA_CONTEXT_SLOT_H
#define ABSMARTLY_DATA_CONTEXT_SLOT_H

#include "postgres.h"

#include "data/shared.h"

/* bytes of a context's id, with the terminating NUL */
#define CONTEXT_ID_SIZE 17

/* The id by which users know a context. */
extern void context_slot_id(uint64 key, char id[CONTEXT_ID_SIZE]);

/*
 * The session's side
 */

/* This session's slot; NULL without shared memory. */
extern ContextSlot *context_slot_mine(void);

/* A key for a new context; also without shared memory. */
extern uint64 context_slot_new_key(void);

/*
 * Makes a context known, with nothing pending; forgets the one before it, as
 * context_slot_leave() does.
 */
extern void context_slot_enter(uint64 key, bool held);

/*
 * Records of this session's context up to this number are where the worker
 * finds them.  To be called before the worker is told of them.
 */
extern void context_slot_commit(uint64 key, uint64 sequence);

/* Makes this session's context unknown: the worker sends what it has left. */
extern void context_slot_leave(void);

/* Tells the worker, if there is a state, to look at its slots, and wakes it. */
extern void context_slots_changed(DatabaseState *state);

/*
 * The worker's side
 */

/* The slot of a context, NULL if it is nobody's (any more). */
extern ContextSlot *context_slot_find(uint64 key);

/* Whether a record of a context has to wait. */
extern bool context_slot_holds(uint64 key, uint64 sequence, TimestampTz now);

/*
 * Whether records of a context are dropped instead of being sent.  Of those
 * that have gone only the last ones are known.
 */
extern bool context_slot_discards(uint64 key);

/*
 * The earliest time after now at which what waits of some context in this
 * database may be sent, and nobody tells; DT_NOEND: there is none.
 */
extern TimestampTz context_slots_next_due(Oid database, TimestampTz now);

/*
 * Events of a context are delivered, refused for good or discarded: they are
 * not pending any more.
 */
extern void context_slot_settle(uint64 key, uint64 events);

/*
 * Events of a context that nobody has counted as pending, since it was not its
 * session that committed them, wait.
 */
extern void context_slot_count(uint64 key, uint64 events);

/*
 * Visits the slots of contexts of a database, one after the other, from 0:
 * gives the next one at or after *at and moves *at behind it; NULL: no more.
 */
extern ContextSlot *context_slot_next(Oid database, int *at);

#endif /* ABSMARTLY_DATA_CONTEXT_SLOT_H */
