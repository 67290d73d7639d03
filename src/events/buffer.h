/*
 * buffer.h
 *		The transaction's events, until it ends (DESIGN 6.1).
 *
 * A rollback to a savepoint drops exactly what came after it.  Past a few MB
 * events spill to a temporary file, so that memory stays bounded for a
 * transaction of any size.  At PRE_COMMIT and PRE_PREPARE they go to the
 * outbox, or at commit to the memory queue.
 */
#ifndef ABSMARTLY_EVENTS_BUFFER_H
#define ABSMARTLY_EVENTS_BUFFER_H

#include "postgres.h"

#include "access/xact.h"
#include "datatype/timestamp.h"

#include "events/encoding.h"
#include "events/progress.h"

/*
 * Records an event of the present subtransaction.  All that can fail does so
 * here:
 *	 55000 no extension, or no worker in a read-only transaction
 *	 54000 the event exceeds absmartly.max_event_size, or a context's bounds
 *	 25000 in a parallel worker
 *
 * An exposure is dropped and counted, and false given, if the outbox's lane for
 * it is full, unless it is historic: that is an order, as goals are; or if the
 * collector would have to refuse it.  buffer_exposure() neither consults nor
 * marks what was exposed before: see buffer_exposed().
 */
extern bool buffer_exposure(const EventContext *context,
							const EventExposure *exposure);
extern void buffer_goal(const EventContext *context, const EventGoal *goal);

/*
 * Whether an exposure of this key (never 0) was queued within
 * absmartly.exposure_dedup_interval, by this transaction or by a committed one;
 * counts it as deduplicated then.  buffer_mark_exposed() after
 * buffer_exposure() marks it: in this transaction at once, for others at
 * commit.
 */
extern bool buffer_exposed(uint64 key, TimestampTz now);
extern void buffer_mark_exposed(uint64 key);

/*
 * The same for the events of a session context, by its key: false if it was
 * dropped.  buffer_context_header() records its units and attributes alone,
 * which buffer_prepare() lets fail before; buffer_leave_context() puts them in
 * the memory queue at once, without the transaction, and gives the record's
 * number; 0: there is no room.
 */
extern bool buffer_context_exposure(uint64 key, const EventContext *context,
									const EventExposure *exposure);
extern bool buffer_context_goal(uint64 key, const EventContext *context,
								const EventGoal *goal);
extern void buffer_prepare(void);
extern void buffer_context_header(uint64 key, const EventContext *context);
extern uint64 buffer_leave_context(uint64 key, const EventContext *context);

/* Whether this transaction has recorded something, perhaps undone since. */
extern bool buffer_is_recording(void);

/* Whether an event of that size may be recorded (absmartly.max_event_size). */
extern bool buffer_event_fits(size_t size);

/* Records how far a backfill has got, in this transaction. */
extern void buffer_progress(const BackfillProgress *backfill);

/* A time, not before 1970 or far from now, in ms since the epoch. */
extern int64 buffer_time_ms(TimestampTz time);

/*
 * The ends of transactions (transaction.c).  buffer_flush() writes what goes to
 * the outbox, when the transaction is going to commit or to be prepared; the
 * others allocate nothing and raise nothing.  buffer_undone(), of an abort, has
 * the worker look at what was written and is not to be sent, which counts as
 * waiting until then.  After a commit, between
 * buffer_hand_over() and buffer_forget(), buffer_context_committed() tells how
 * many events of a context were committed, and the last record's number; 0 if
 * it was not the one that recorded last.
 */
extern void buffer_flush(bool prepare);
extern void buffer_hand_over(void);
extern void buffer_undone(void);
extern void buffer_forget(void);
extern void buffer_subtransaction_end(SubXactEvent event);
extern uint64 buffer_context_committed(uint64 key, uint64 *sequence);

#endif /* ABSMARTLY_EVENTS_BUFFER_H */
