/*
 * batch.h
 *		Batches: what is sent to the collector in one request.
 *
 * A record's contexts become items, each of them a publish request of the
 * protocol.  A batch holds the items of several records; a record that is too
 * large for one batch is spread over several.  So a record is acknowledged
 * when all its items are done: delivered, or kept as dead letters; or when
 * those that are not have become a record of their own.
 *
 * A session context leaves many records, which together become one item: they
 * are set aside until all of the pass has been read.
 */
#ifndef ABSMARTLY_WORKER_BATCH_H
#define ABSMARTLY_WORKER_BATCH_H

#include "postgres.h"

#include "lib/ilist.h"
#include "lib/stringinfo.h"

#include "events/record.h"
#include "worker/collector.h"

/* What items are made of: source.h. */
typedef struct BatchSource BatchSource;

/* One publish request. */
typedef struct BatchItem
{
	BatchSource *source;
	uint64 context; /* key of the session context; 0: of none */
	uint32 offset; /* in the batch's body */
	uint32 length;
	uint32 first_event; /* number of its first event in the source */
	uint32 end_event; /* of the one after its last */
	bool changed; /* its text has events that were refused */
	uint32 exposures;
	uint32 goals;
} BatchItem;

typedef struct Batch
{
	dlist_node node; /* the scheduler's */
	MemoryContext context; /* of all that belongs to it */
	uint64 serial; /* in the order of reading */
	EventLane lane;
	const EventOrigin *origin;
	bool has_contexts; /* there may be items of session contexts */
	StringInfoData body;
	BatchItem *items;
	int max_items;
	int first; /* those before it have left the batch */
	int nitems;

	/* the scheduler's notes */
	HttpRequest *request; /* NULL: not in flight */
	CollectorKey key;
	uint64 endpoint; /* how many there had been when it was sent */
	int attempts; /* made in this round */
	int rounds; /* that have failed */
	int failed_rounds; /* of these, while others did not fail */
	int blamed; /* answers that have named events of it */
	bool tried; /* whether the rest is valid */
	bool reported; /* that it fails while others don't */
	uint64 successes_before; /* others' when it was first tried */
	uint64 rounds_before; /* failed ones when its round began */
	CollectorPause pause;
} Batch;

#define batch_count(batch) ((batch)->nitems - (batch)->first)

/* How reading went on. */
typedef enum BatchRead
{
	BATCH_FULL,
	BATCH_NO_MORE, /* for now: see batch_more() */
	BATCH_BLOCKED /* the outbox can't be read now */
} BatchRead;

/*
 * At the worker's start, or when it begins anew, with whatever was read before
 * forgotten.  recovery says that there is no outbox to write to.
 */
extern void batch_start(bool recovery);

/* Starts a pass over all of a lane that is committed now.  May raise. */
extern void batch_pass(DatabaseState *state, EventLane lane);

/* Whether a lane's pass has not come to its end. */
extern bool batch_more(EventLane lane);

/*
 * Whether records are begun with.  Where they are not, one that has been is
 * read to its end: batch_reading().
 */
extern void batch_stop_reading(bool stop);
extern bool batch_reading(EventLane lane);

/*
 * Reads events of its lane into a new batch.  May raise: batch_recover() leaves
 * in it what was complete by then.  It may be NULL if it could not be made.
 */
extern Batch *batch_create(uint64 serial, EventLane lane);
extern BatchRead batch_fill(DatabaseState *state, Batch *batch,
							size_t max_bytes);
extern void batch_recover(DatabaseState *state, EventLane lane, Batch *batch);

/* Makes sure that goals which were read are committed for good.  May raise. */
extern void batch_flush(void);

/* What to send, with this moment in it.  It stays where it is. */
extern const char *batch_body(Batch *batch, size_t *length);

/* The text of an item. */
extern const char *batch_item_text(const Batch *batch, int item);

/* How many events are left in it. */
extern uint32 batch_events(const Batch *batch);

/*
 * A new batch of the first item, or of the second half: of the items, or of the
 * only item's events, of which there must be more than one.
 */
extern Batch *batch_carve(Batch *batch);
extern Batch *batch_split(Batch *batch);

/* All items that are left are delivered. */
extern void batch_done(Batch *batch);

/* The numbers of an item's events, in the order in which its lists have them.
 */
typedef struct BatchList
{
	uint32 nexposures;
	uint32 *exposures;
	uint32 ngoals;
	uint32 *goals;
} BatchList;
extern void batch_list_events(const Batch *batch, int item, BatchList *list);

/*
 * An event of an item is refused for good, with these words; false if it was
 * before.  batch_compact() takes what was refused out of the batch, before that
 * is used again.
 */
extern bool batch_refuse(Batch *batch, int item, uint32 number, bool goal,
						 const char *words);
extern void batch_compact(Batch *batch);

/*
 * Takes items out of the batch whose session contexts hold them (again), and
 * gives their records back.  Some of what is left may be held nevertheless: the
 * rest of what has been delivered in part, or is in several batches.
 */
extern void batch_drop_held(Batch *batch);

extern void batch_free(Batch *batch);

/*
 * Whether records of a session context were read and not acknowledged, and
 * whether some of these are not done.
 */
extern bool batch_has_context(uint64 context);
extern bool batch_has_undone(uint64 context);

/*
 * Keeps what was refused as dead letters, each event by itself, and what is
 * left of records that are given back in part; acknowledges the records all of
 * whose items are done.  May raise, and may be called again then.
 */
extern bool batch_have_to_park(void);
extern void batch_park(DatabaseState *state);
extern bool batch_have_done(void);
extern void batch_acknowledge(DatabaseState *state, bool flush);

/*
 * The end: what is in batches is not sent any more.  Of records that were
 * delivered in part what is left is to be parked; the others stay where they
 * are, for the next worker.
 */
extern void batch_give_up(void);

#endif /* ABSMARTLY_WORKER_BATCH_H */
