/*
 * outbox.h
 *		The outbox: events that are committed and not delivered yet
 *		(DESIGN 6.1).
 *
 * Heaps without indexes, two for each lane.  Writers append to one of the two,
 * the active one; the worker empties the other one and truncates it.  What must
 * stay (dead letters, foreign records, what can't be read) is parked in one
 * more.  A delivered record is marked so in place, through generic WAL: that
 * takes no transaction id, makes no dead tuples, is independent of snapshots,
 * and logical decoding sees nothing of it.
 */
#ifndef ABSMARTLY_EVENTS_OUTBOX_H
#define ABSMARTLY_EVENTS_OUTBOX_H

#include "postgres.h"

#include "utils/rel.h"

#include "events/record.h"

/* Column status; its values are part of the interface of the views. */
typedef enum OutboxStatus
{
	OUTBOX_WAITING = 0,
	OUTBOX_DONE = 1, /* delivered, or parked */
	/* where records are parked only: */
	OUTBOX_FOREIGN = 2, /* of another database or endpoint */
	OUTBOX_DEAD = 3, /* refused by the collector for good */
	OUTBOX_UNREADABLE = 4, /* of a version that this library does not know */
	OUTBOX_PROGRESS = 5, /* how far a backfill has got */
	OUTBOX_HELD = 6, /* of a session context that is not to be sent yet */
	/* anywhere again: */
	OUTBOX_PREPARED = 7, /* waits as well, of a session context in a transaction
						  * that was prepared: not counted as pending */
	/* parked again: */
	OUTBOX_ENDPOINTS = 8 /* no event, but a list for standbys (endpoints.c) */
} OutboxStatus;

/*
 * The note of goals that are sent whether a synchronous standby has them or
 * not.
 */
#define OUTBOX_NOTE_LOCAL "(waits for no standby)"

/*
 * Writers
 */

/*
 * Finds the outbox of this database, at the moment when an event is recorded:
 * raises 55000 if the extension is not there.  Cached.
 */
extern void outbox_require(void);

/*
 * Bytes of the pages of a lane, which are written and emptied in turns, on
 * which something waits, as far as is known without looking.  What is parked
 * does not count: delivery makes no room there.
 */
extern uint64 outbox_size(EventLane lane);

/* The heap to which a lane's writers append, at this moment. */
extern int outbox_active_heap(EventLane lane);

/*
 * Writing to a lane at the end of a transaction: PRE_COMMIT or PRE_PREPARE.
 * begin gives NULL if the outbox is gone, which this transaction itself has
 * dropped.  Writers of both lanes may be at work at the same time.
 */
typedef struct OutboxWriter OutboxWriter;
extern OutboxWriter *outbox_write_begin(EventLane lane, bool prepare);
extern void outbox_write(OutboxWriter *writer, const EventPayload *payload);
extern void outbox_write_record(OutboxWriter *writer,
								const EventRecord *record);
/* What is written from here on gets a note; gives the time of the records. */
extern TimestampTz outbox_write_note(OutboxWriter *writer, const char *note);
extern void outbox_write_end(OutboxWriter *writer);

/*
 * Opens a heap that somebody may have locked.  At the end of a transaction the
 * statement's time limit is over, so it begins anew: who waits can be ended by
 * what ends a statement.  NULL: it is gone.
 */
extern Relation outbox_open_waiting(int place);

/*
 * The worker's side.  Everything here is called outside of transactions, but
 * between outbox_read_begin() and outbox_read_end(), which are one.
 */

/*
 * Says whether a record of a session context has to wait, and if so until when
 * at the latest; DT_NOEND: somebody will tell.  The answer is the same all
 * through a pass, so that of a context's records none is left behind whose
 * followers are not.  old: the record was there when the pass began, whatever
 * its number.
 */
typedef bool (*OutboxHolds)(uint64 context, uint64 sequence, bool old,
							TimestampTz *until);

/*
 * Starts afresh, at the worker's start, and after an error: nothing is in
 * flight, all is to be read.  Records for the endpoints that were this server's
 * (endpoints.h) are this worker's own.
 */
extern void outbox_worker_start(DatabaseState *state, OutboxHolds holds);

/* Has the heap know which endpoints were, if that is wanted (endpoints.h). */
extern void outbox_list_endpoints(DatabaseState *state);

/* Gives records that wait for one of these the stamp of the present one. */
extern void outbox_adopt(DatabaseState *state);

/*
 * Reading goes in passes, those of each lane for themselves; outbox_read() is
 * about the lane of the last outbox_read_begin().  What was parked and is to be
 * sent again is bulk, what session contexts have held is live.  A pass sees
 * everything of its lane that was committed before outbox_pass_begin(), except
 * what is in flight: read and neither acknowledged nor released.  outbox_read()
 * gives NULL at the pass's end and sets *end, or
 * when it has looked at many pages for nothing and wants a pause.  Foreign and
 * unreadable records are parked on the way and not given, and so are those that
 * session contexts hold for more than a moment: these are found there, without
 * a search, by the pass after they have been let go.  Goals whose commit
 * is not on disk yet are given: call outbox_flush() before sending.  Those that
 * a synchronous standby is to have and has not are left where they are, for
 * another pass (replicated.h).
 * outbox_read_begin() gives false when the outbox can't be read now (DROP
 * EXTENSION is at work): try again later.
 */
extern void outbox_pass_begin(EventLane lane);
extern bool outbox_read_begin(EventLane lane);
extern EventRecord *outbox_read(bool *end);
extern void outbox_read_end(void);

/*
 * An error has ended the reading of a lane: what was not given by then is read
 * again, in the next pass.  Raises nothing.
 */
extern void outbox_read_failed(EventLane lane);

/* Makes sure that what was read is committed for good. */
extern void outbox_flush(void);

/* Forgets that records are in flight: they are read again. */
extern void outbox_release(EventRecord *record);

/*
 * Marks records as delivered.  They are in flight no more; the caller frees
 * them.  flush: with the mark on disk at the end, so that a crash repeats
 * nothing.
 */
extern void outbox_acknowledge(EventRecord **records, int count, bool flush);

/*
 * Parks events, for good: all rows between begin and end, or none.  note is in
 * the database's encoding, for OUTBOX_DEAD the collector's words; it is cut if
 * it is long.
 */
extern void outbox_park_begin(void);
extern void outbox_park_row(const EventOrigin *origin, TimestampTz created,
							const EventPayload *payload, OutboxStatus status,
							const char *note);
/* takes away what a row is a copy of, or of a part: it is there no more */
extern void outbox_park_original(const EventRecord *record);
extern void outbox_park_end(void);

/*
 * Changes heaps and truncates what is empty, where that is worth while.
 * idle: nothing waits.  Gives the milliseconds after which it should be called
 * again; -1: when something has happened.
 */
extern long outbox_maintain(DatabaseState *state, bool idle);

/*
 * SQL's side: in-place changes of parked records, by id (0: all of them).
 * They take effect at once and are not undone by a rollback.  Give the number
 * of events.
 */
extern int64 outbox_requeue(int64 id);
extern int64 outbox_discard(int64 id);

/* Tells the worker that parked records, with so many events, have changed. */
extern void outbox_parked_changed(uint64 events);

/* What waits, for absmartly_stat: looks through the heaps, never waits. */
typedef struct OutboxLaneSummary
{
	int64 records;
	int64 events;
	int64 bytes; /* outbox_size() of it */
	TimestampTz oldest; /* 0: nothing waits */
} OutboxLaneSummary;

typedef struct OutboxSummary
{
	bool known; /* else there is nothing but bytes: a heap is locked */
	OutboxLaneSummary lanes[LANE_COUNT];
	int64 held_records;
	int64 foreign_records;
	int64 dead_events;
} OutboxSummary;
extern void outbox_summary(OutboxSummary *summary);

#endif /* ABSMARTLY_EVENTS_OUTBOX_H */
