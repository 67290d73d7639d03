/*
 * replicated.h
 *		Whether a transaction is on the synchronous standbys.
 */
#ifndef ABSMARTLY_EVENTS_REPLICATED_H
#define ABSMARTLY_EVENTS_REPLICATED_H

#include "postgres.h"

#include "utils/snapshot.h"

#include "events/record.h"

/*
 * Takes note of what is committed now, and of what the standbys have by now.
 * For the worker, with a snapshot that it has just taken.
 */
extern void replicated_look(Snapshot now);

/*
 * Whether a transaction that waits for synchronous standbys, and is committed,
 * was so at a moment up to which they have all: always where there are to be
 * none.  If not, replicated_awaited() is true until the lane's next
 * replicated_pass_begin().
 */
extern bool replicated_has(EventLane lane, TransactionId xid);

/*
 * Whether something was left behind for that; whether it is worth while to look
 * again; and if not in how many milliseconds it may be, -1 if nothing was left.
 */
extern bool replicated_awaited(EventLane lane);
extern bool replicated_due(EventLane lane);
extern long replicated_left(EventLane lane);

/*
 * Moments have numbers: that of the next one to be taken, and the last one all
 * of which the lane's present pass has found replicated.  What was committed
 * before something happened is read by the pass whose moment was taken
 * afterwards.
 */
extern void replicated_pass_begin(EventLane lane);
extern uint64 replicated_next_moment(void);
extern uint64 replicated_pass_moment(EventLane lane);

#endif /* ABSMARTLY_EVENTS_REPLICATED_H */
