/*
 * heaps.h
 *		The outbox's heaps: where they are, how rows lie in them, and
 *		walking over them.
 *
 * Rows are written through the heap, not through SQL: nobody's privileges,
 * row security or search path matter, and HEAP_INSERT_NO_LOGICAL keeps them
 * from subscribers.  For the catalogs the heaps are materialized views; why
 * stands in the install script.
 */
#ifndef ABSMARTLY_EVENTS_HEAPS_H
#define ABSMARTLY_EVENTS_HEAPS_H

#include "postgres.h"

#include "access/generic_xlog.h"
#include "access/htup_details.h"
#include "storage/bufpage.h"
#include "utils/rel.h"

#include "engine/engine.h"
#include "events/record.h"

#define HEAPS_COUNT (RECORD_PARKED + 1) /* two for each lane, and that */

/* The fixed part of a row: nothing is null, so it lies there as it is. */
typedef struct HeapRow
{
	int32 status; /* OutboxStatus */
	Oid database;
	int64 endpoint;
	TimestampTz created;
	int64 record;
	int64 context; /* key of a session context; 0: of none */
	int64 sequence;
	int32 chunk;
	int32 chunks;
	int32 contexts;
	int32 exposures;
	int32 goals;
} HeapRow;

/*
 * What follows it: the origin in UTF-8, a note in the database's encoding, the
 * payload.
 */
typedef enum HeapText
{
	HEAP_APPLICATION,
	HEAP_APPLICATION_VERSION,
	HEAP_ENVIRONMENT,
	HEAP_NOTE,
	HEAP_PAYLOAD,
	HEAP_TEXTS
} HeapText;

/* A record to be inserted; its counts are those of the payload. */
typedef struct HeapRecord
{
	int status;
	int64 id; /* 0: a new one */
	Oid database;
	int64 endpoint;
	TimestampTz created;
	const EventOrigin *origin;
	const char *note; /* at most HEAP_MAX_NOTE bytes count */
	const EventPayload *payload;
} HeapRecord;

#define HEAP_MAX_NOTE 512

/*
 * Finds the heaps by their names in the extension's schema; they must belong to
 * it.  Cached.  False if there are none.
 */
extern bool heaps_find(void);

/* Whether a relation is one that only CREATE and DROP EXTENSION may touch. */
extern bool heaps_belongs(Oid relation);

/*
 * Opens a heap, after heaps_find().  The lock is waited for only if wait says
 * so; then it may fail for want of a place in the lock table, too.  NULL if it
 * can't be locked now, or is gone.
 */
extern Relation heaps_open(int place, LOCKMODE mode, bool wait);

/*
 * Looks at all that heaps_insert() has to know of a heap, and raises 55000 if
 * it is not fit for it, so that a commit need not look into catalogs.  Done
 * anew only when something has changed.
 */
extern void heaps_prepare(int place);

/*
 * Keeps places in the lock table for what writing to the heaps locks, so that a
 * commit does not fail for want of them.  They stay with the session until they
 * are needed: so that costs its later transactions next to nothing.  must:
 * raises 53200 if the table is full, else gives false.
 */
extern bool heaps_reserve(bool must);

/* Gives them to whoever needs them, himself first; false: there were none. */
extern bool heaps_unreserve(void);

/*
 * Inserts a record at the end of a heap, in as many tuples as it needs.  There
 * must be an active or a registered snapshot.  inserted, if not NULL, is called
 * with the page of each.
 */
typedef void (*HeapInserted)(void *argument, BlockNumber page);
extern void heaps_insert(Relation relation, const HeapRecord *record,
						 HeapInserted inserted, void *argument);

static inline HeapRow *
heap_row(Page page, ItemId item)
{
	HeapTupleHeader header = (HeapTupleHeader) PageGetItem(page, item);

	return (HeapRow *) ((char *) header + header->t_hoff);
}

/* The word for a heap in the views. */
extern const char *heaps_place(int place);

/* The texts of a row, in place. */
extern void heaps_row_texts(const HeapRow *row, EngineText texts[HEAP_TEXTS]);

/*
 * Registers a page to be changed, and gives the copy to change.  Generic WAL
 * has what was changed, but not the hint bits, which each server sets when it
 * likes, and knows no way to leave them out where a standby's page is compared
 * with ours (wal_consistency_checking).  So then the whole page is logged: that
 * is taken as it is.
 */
extern Page heaps_change_page(GenericXLogState *xlog, Buffer buffer);

/*
 * Walking: visit is called for each row that is committed at this moment and
 * not done.  If it gives true, the row is changed as change says, in place,
 * through generic WAL.  The page is locked meanwhile, shared if change is NULL,
 * and interrupts are held back.
 */
typedef bool (*HeapVisit)(void *argument, const HeapRow *row,
						  const HeapTupleData *tuple);
typedef void (*HeapChange)(void *argument, HeapRow *row);

typedef struct HeapWalk
{
	HeapVisit visit;
	HeapChange change;
	void *argument;
	bool leaving; /* also rows that a running transaction has deleted */
} HeapWalk;

/* Gives the number of rows whose transaction is running, or prepared. */
extern int heaps_walk_page(Relation relation, BlockNumber page,
						   const HeapWalk *walk);
extern void heaps_walk(Relation relation, const HeapWalk *walk);

/*
 * Has on disk what this transaction has changed in place: whoever is told of it
 * does not look again after a crash.
 */
extern void heaps_flush(void);

/*
 * Whether nothing on a page waits, nor may come to wait by a transaction's
 * commit.  The page is locked by the caller.
 */
extern bool heaps_page_is_empty(Relation relation, Buffer buffer);

/*
 * Deletes a row, if it is of that record and there, in this transaction: so
 * that it is there, for everybody, exactly as long as what the transaction
 * writes in its place is not.
 */
extern void heaps_remove(Relation relation, const ItemPointerData *place,
						 int64 record);

#endif /* ABSMARTLY_EVENTS_HEAPS_H */
