/*
 * replicated.c
 *		Whether a transaction is on the synchronous standbys.
 *
 * A commit that waits for its standby is seen by nobody.  But the wait may be
 * cancelled, and after a crash nobody waits any more: then the transaction is
 * there, and may be lost in a failover all the same.  The server does not know
 * where a transaction's commit lies in the WAL.  So the worker keeps moments:
 * what was running then, and how far the WAL had been flushed afterwards.  What
 * had committed by then lies before that, since it was flushed before it could
 * be seen; and when the standbys have the WAL up to there, they have all of it.
 * Two moments are enough: the last one that the standbys have, and one that is
 * on its way to them.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xlog.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/lwlock.h"
#include "storage/procarray.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "events/replicated.h"

/* between two looks at what standbys have: longer, if they are away for long */
#define LOOK_MS 10L
#define MAX_LOOK_MS 1000L

/*
 * Transactions after which a moment's ids could not be compared with newer ones
 * any more; the server lets none that runs get so old.
 */
#define MAX_AGE (((uint64) 1 << 31) - 1000000)

typedef struct Moment
{
	uint64 number;
	XLogRecPtr end; /* of the WAL; invalid: there is no such moment */
	TimestampTz at;
	uint64 oldest; /* xmin, with its epoch */
	TransactionId xmin; /* those before had ended */
	TransactionId xmax; /* those from here on had not */
	uint32 count; /* of those that were running in between */
	TransactionId *running;
} Moment;

static bool wanted = false; /* there are to be standbys */
static Moment replicated; /* the standbys have all that was there */
static Moment underway;
static uint64 last_number = 0;

/* of each lane's pass */
static uint64 pass_moment[LANE_COUNT]; /* the last replicated when it began */
static bool awaited[LANE_COUNT]; /* something was left behind */

static bool
standbys_wanted(void)
{
	return max_wal_senders > 0 && SyncRepStandbyNames != NULL &&
		   SyncRepStandbyNames[0] != '\0';
}

/* Up to where the standbys have the WAL on disk. */
static XLogRecPtr
standbys_end(void)
{
	XLogRecPtr end;

	LWLockAcquire(SyncRepLock, LW_SHARED);
	end = WalSndCtl->lsn[SYNC_REP_WAIT_FLUSH];
	LWLockRelease(SyncRepLock);
	return end;
}

static uint64
next_transaction(void)
{
	return U64FromFullTransactionId(ReadNextFullTransactionId());
}

static void
take_moment(Moment *moment, Snapshot now)
{
	uint64 next = next_transaction();

	if (moment->running == NULL)
		moment->running = MemoryContextAlloc(
			TopMemoryContext, GetMaxSnapshotXidCount() * sizeof(TransactionId));
	moment->number = ++last_number;
	moment->oldest = next - ((uint32) next - now->xmin);
	moment->xmin = now->xmin;
	moment->xmax = now->xmax;
	moment->count = now->xcnt;
	/* a copied snapshot has no array if nothing was running */
	if (now->xcnt > 0)
		memcpy(moment->running, now->xip, now->xcnt * sizeof(TransactionId));
	moment->at = GetCurrentTimestamp();
	/* at last: what had committed by then is in it */
	moment->end = GetFlushRecPtr(NULL);
}

/* The standbys may have come to the moment that was on its way to them. */
static void
look_at_standbys(void)
{
	Moment before = replicated;

	if (XLogRecPtrIsInvalid(underway.end) || underway.end > standbys_end())
		return;
	replicated = underway;
	underway = before;
	underway.end = InvalidXLogRecPtr;
}

static void
forget_if_old(Moment *moment)
{
	if (next_transaction() - moment->oldest > MAX_AGE)
		moment->end = InvalidXLogRecPtr;
}

void
replicated_look(Snapshot now)
{
	wanted = standbys_wanted();
	if (!wanted)
	{
		replicated.end = InvalidXLogRecPtr;
		underway.end = InvalidXLogRecPtr;
		return;
	}
	forget_if_old(&replicated);
	forget_if_old(&underway);
	look_at_standbys();
	if (XLogRecPtrIsInvalid(underway.end))
	{
		take_moment(&underway, now);
		look_at_standbys();
	}
}

/* Whether a transaction that is committed had been so at a moment. */
static bool
was_committed(const Moment *moment, TransactionId xid)
{
	/* of records that were moved, and of those that are old */
	if (!TransactionIdIsNormal(xid))
		return true;
	if (XLogRecPtrIsInvalid(moment->end))
		return false;
	if (TransactionIdPrecedes(xid, moment->xmin))
		return true;
	if (TransactionIdFollowsOrEquals(xid, moment->xmax))
		return false;
	for (uint32 i = 0; i < moment->count; i++)
		if (TransactionIdEquals(moment->running[i], xid))
			return false;
	return true;
}

bool
replicated_has(EventLane lane, TransactionId xid)
{
	if (!wanted || was_committed(&replicated, xid))
		return true;
	awaited[lane] = true;
	return false;
}

void
replicated_pass_begin(EventLane lane)
{
	pass_moment[lane] =
		XLogRecPtrIsInvalid(replicated.end) ? 0 : replicated.number;
	awaited[lane] = false;
}

uint64
replicated_next_moment(void)
{
	return last_number + 1;
}

uint64
replicated_pass_moment(EventLane lane)
{
	return awaited[lane] ? pass_moment[lane] : PG_UINT64_MAX;
}

bool
replicated_awaited(EventLane lane)
{
	return awaited[lane];
}

bool
replicated_due(EventLane lane)
{
	return awaited[lane] &&
		   (!standbys_wanted() || XLogRecPtrIsInvalid(underway.end) ||
			underway.end <= standbys_end());
}

long
replicated_left(EventLane lane)
{
	long waited;

	if (!awaited[lane])
		return -1;
	waited =
		TimestampDifferenceMilliseconds(underway.at, GetCurrentTimestamp());
	return Max(LOOK_MS, Min(waited / 4, MAX_LOOK_MS));
}
