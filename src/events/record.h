/*
 * record.h
 *		Records: what waits in the outbox and in the memory queue.
 *
 * A record is a payload (encoding.h) with what it is sent under.  A large one
 * is spread over several tuples of the outbox, its chunks.
 */
#ifndef ABSMARTLY_EVENTS_RECORD_H
#define ABSMARTLY_EVENTS_RECORD_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "storage/itemptr.h"

#include "data/shared.h"

/*
 * What an event's request says about where it comes from, and which collector
 * it is for.  What is not known when it is recorded (no worker has confirmed
 * the settings yet) is the worker's to fill in.
 */
typedef struct EventOrigin
{
	bool known;
	uint64 endpoint; /* record_endpoint_hash(); 0: not known */
	char application[SHARED_MAX_NAME];
	char application_version[SHARED_MAX_NAME];
	char environment[SHARED_MAX_NAME];
} EventOrigin;

/* A finished payload on its way to the outbox or the memory queue. */
typedef struct EventPayload
{
	const char *data;
	uint32 length;
	uint32 contexts;
	uint32 exposures;
	uint32 goals;
	uint64 context; /* key of a session context; 0: of none */
	uint64 sequence; /* grows with each record of the context */
	EventLane lane;
	bool prepared; /* of a session context in a transaction that is prepared:
					* nobody counts its events as pending when it commits */
} EventPayload;

/* where a record came from: a lane has two heaps, 0 and 1 */
#define RECORD_HEAP(lane, number) (2 * (int) (lane) + (int) (number))
#define RECORD_OTHER_HEAP(place) ((place) ^ 1)
#define RECORD_LANE(place) ((EventLane) ((place) / 2))
#define RECORD_PARKED (2 * LANE_COUNT)
#define RECORD_MEMORY (RECORD_PARKED + 1)

/*
 * A record that the worker has read.  One allocation in the memory context of
 * the reader's caller: pfree() frees it.
 */
typedef struct EventRecord
{
	int place; /* RECORD_... */
	int64 id;
	TimestampTz created;
	const EventOrigin *origin; /* lives as long as the process */
	EventPayload payload;
	const char *note; /* of its row; not RECORD_MEMORY */
	int32 entry; /* RECORD_MEMORY: the queue's entry */
	TransactionId mover; /* and the transaction that takes it elsewhere */
	int ntids; /* else: its tuples */
	ItemPointerData *tids;
} EventRecord;

/* The stamp of an endpoint; never 0.  A "/" at its end makes no difference. */
extern uint64 record_endpoint_hash(const char *endpoint);

/*
 * The origin of events of this database at this moment: from shared memory, or
 * without the library preloaded from the data's target, or else from the
 * configuration.  Cached; raises nothing where there is shared memory.
 */
extern const EventOrigin *record_current_origin(void);

/*
 * What an origin comes to when its events are sent: what was not known, or not
 * set, when they were recorded is as it is now.  A collector takes nothing
 * without an application and an environment.
 */
extern const EventOrigin *record_complete_origin(const EventOrigin *origin);

/* The process's one copy of an origin. */
extern const EventOrigin *record_intern_origin(const EventOrigin *origin);

#endif /* ABSMARTLY_EVENTS_RECORD_H */
