/*
 * shared.h
 *		The extension's shared memory: one state for each database.
 *
 * Fixed-size shared memory holds the directory of databases, a slot for each
 * backend, and the first part of a DSA area.  Experiments (data/version.h) live
 * in the area.  All of it is made anew after a crash restart.
 */
#ifndef ABSMARTLY_DATA_SHARED_H
#define ABSMARTLY_DATA_SHARED_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/dsa.h"

/* Bytes of experiments as JSON text, however they come. */
#define DATA_MAX_TEXT (64 * 1024 * 1024)

#define SHARED_MAX_ENDPOINT 1024 /* bytes, with the terminating NUL */
#define SHARED_MAX_NAME 256
#define SHARED_MAX_ERROR 512
#define SHARED_MAX_HOLDERS 8

/* What data is fetched for; a change of the first three is a new epoch. */
typedef struct DataTarget
{
	char endpoint[SHARED_MAX_ENDPOINT];
	char application[SHARED_MAX_NAME];
	char environment[SHARED_MAX_NAME];
	char application_version[SHARED_MAX_NAME];
} DataTarget;

/* What is known about the extension in a database. */
typedef enum ExtensionPresence
{
	EXTENSION_UNKNOWN = 0, /* a worker must look */
	EXTENSION_PRESENT,
	EXTENSION_ABSENT
} ExtensionPresence;

typedef enum WorkerState
{
	WORKER_NONE = 0,
	WORKER_NO_SLOT, /* none, since the server had no slot for it */
	WORKER_STARTING,
	WORKER_IDLE, /* nothing to do: no endpoint, or up to date */
	WORKER_FETCHING,
	WORKER_RETRYING, /* between attempts of a round */
	WORKER_BACKING_OFF, /* between rounds that failed */
	WORKER_PUBLISHING, /* sends events */
	WORKER_LOGGING /* runs the event logger */
} WorkerState;

/* Counters of one database; written by its worker, under the state's lock. */
typedef struct FetchStats
{
	int64 requests;
	int64 failures; /* attempts that failed */
	int64 retries;
	int64 bytes_received;
	double latency_total_ms;
	double latency_last_ms;
	TimestampTz last_success_at; /* 0: none */
	TimestampTz last_error_at;
	char last_error[SHARED_MAX_ERROR];
	TimestampTz reset_at;
} FetchStats;

/* Counters of the delivery; written by the worker, under the state's lock. */
typedef struct PublishStats
{
	int64 requests;
	int64 failures; /* requests that failed */
	int64 retries;
	int64 bytes_sent;
	double latency_total_ms;
	double latency_last_ms;
	int64 exposures_sent;
	int64 goals_sent;
	int64 exposures_rejected; /* refused by the collector for good */
	int64 goals_rejected;
	int64 warnings; /* in answers that took the events in */
	TimestampTz last_success_at; /* 0: none */
	TimestampTz last_error_at;
	char last_error[SHARED_MAX_ERROR];
	char last_warning[SHARED_MAX_ERROR];
} PublishStats;

/*
 * Events come in two lanes, so that those of this moment do not wait behind
 * masses: historic ones, and those of large transactions.
 */
typedef enum EventLane
{
	LANE_LIVE,
	LANE_BULK
} EventLane;

#define LANE_COUNT 2

/* What backends count at the ends of their transactions. */
typedef enum EventCounter
{
	COUNTER_EXPOSURES_QUEUED,
	COUNTER_GOALS_QUEUED,
	COUNTER_EXPOSURES_DEDUPLICATED,
	COUNTER_EXPOSURES_DROPPED, /* no room for them */
	COUNTER_GOALS_DROPPED,
	COUNTER_EXPOSURES_IMPOSSIBLE, /* the collector takes none like them */
	COUNTER_EXPOSURES_TAKEN_BACK, /* by absmartly_take_back() */
	COUNTER_GOALS_TAKEN_BACK,
	COUNTER_COUNT
} EventCounter;

/*
 * An event logger that takes too long rests, also if the worker had to be ended
 * with it.  Written by the worker alone.
 */
typedef struct LoggerRest
{
	uint32 name; /* hash of the logger that this is about */
	uint32 rests; /* since it last came to its end in time */
	TimestampTz until; /* 0: it does not rest */
} LoggerRest;

/* endpoints that were in force in the life of this data directory */
#define SHARED_MAX_ENDPOINTS 8
#define SHARED_MAX_DISCARDED 64

typedef struct DatabaseState
{
	Oid database; /* InvalidOid: free; changes only under the
				   * directory's lock */
	LWLock lock; /* protects all that follows */

	/* where data comes from, as the worker last confirmed it */
	bool target_known;
	bool suspended; /* a setting changed that the worker has not
					 * looked at yet: no data is in force */
	DataTarget target; /* a change of it begins a new epoch */

	/* the data (data/version.c) */
	dsa_pointer current; /* DataVersion in force, or invalid */
	dsa_pointer retired; /* list of those that are still pinned */
	uint32 nretired;
	uint64 version_bytes; /* of the one in force and the retired */
	uint64 generation; /* of the last version published */
	uint64 saved_generation; /* of the data in the file; 0: not known */
	int source; /* DataSource of the data in force */
	TimestampTz fetched_at; /* when the data in force was last confirmed */

	/* the worker */
	ExtensionPresence extension;
	pid_t worker_pid; /* 0: none */
	PGPROC *worker_proc; /* whose latch wakes it; NULL: none */
	pid_t leaver_pid; /* the one before it, which waits for answers to what it
					   * has sent: nothing else is sent meanwhile; 0: none */
	WorkerState worker_state;
	bool restart_requested; /* the worker shall exit and come back */
	pg_atomic_uint32 look_wanted; /* not 0: a prepared transaction has
								   * committed, which may have changed the
								   * catalogs */
	pid_t holders[SHARED_MAX_HOLDERS]; /* backends that keep workers
										* away; 0: unused */
	TimestampTz launched_at; /* by the launcher; 0 once it has attached */
	LoggerRest logger;

	/*
	 * Fetches on request.  A caller draws a ticket; a fetch that starts takes
	 * the last one drawn, and at its end finishes all up to it.  Only for a
	 * ticket of an administrator's a fetch starts before its time.
	 */
	uint64 refresh_requested;
	uint64 refresh_urgent; /* the last one that an administrator has drawn */
	uint64 refresh_finished;
	uint64 refresh_succeeded; /* of those, the last one that went well */
	char refresh_error[SHARED_MAX_ERROR];
	ConditionVariable changed; /* broadcast when any of this changes */

	FetchStats fetch;

	/*
	 * Events.  What is atomic is read and written without the lock.
	 */
	pg_atomic_uint32 target_serial; /* grows with each change of the target */
	pg_atomic_uint32 outbox_active[LANE_COUNT]; /* the lane's heap that writers
												 * use: 0 or 1 */
	pg_atomic_uint32 outbox_blocks[2 * LANE_COUNT + 1]; /* sizes of the heaps,
														 * as last seen */
	pg_atomic_uint32 outbox_empty[2 * LANE_COUNT]; /* pages of these on which
													* nothing is left,
													* delivered or rolled back
													*/
	pg_atomic_uint32 outbox_settled[2 * LANE_COUNT]; /* pages below are not
													  * looked at again once
													  * they are empty */
	pg_atomic_uint32 outbox_rescan; /* something came to such a page: bits of
									 * the heaps, the parked one included */
	pg_atomic_uint32 outbox_wanted; /* not 0: the worker is to let go of what
									 * it has read (events/takeback.h) */
	pg_atomic_uint64 pending[LANE_COUNT]; /* contexts committed since the
										   * worker looked */
	pg_atomic_uint32 wake_at[LANE_COUNT]; /* wake the worker at so many; 0:
										   * don't */
	pg_atomic_uint64 counters[COUNTER_COUNT];
	uint64 endpoints[SHARED_MAX_ENDPOINTS]; /* hashes of those that were this
											 * server's, the present one last
											 * (events/endpoints.h); 0: unused
											 */
	bool endpoints_saved; /* the file has them */
	bool endpoints_adopted; /* what waited for the others was given the stamp
							 * of the last one */
	bool worker_leaves; /* what comes to the memory queue may stay there */

	/* publishing on request, as above for fetches */
	uint64 publish_requested;
	uint64 publish_finished;
	uint64 publish_succeeded;
	int64 publish_delivered; /* events, in the last one that went well */
	char publish_error[SHARED_MAX_ERROR];
	int publish_error_code; /* its SQLSTATE */

	PublishStats publish;

	/*
	 * Session contexts (data/context_slot.h).
	 */
	uint64 fetch_rounds; /* rounds that have ended; the present or next one has
						  * this number + 1 */
	bool fetch_running; /* a round has begun and not ended */
	uint64 data_round; /* the round with which data came in force for the
						* present epoch, or, if it did not come from a
						* fetch, the one that was present or next then; 0:
						* there is none */
	pg_atomic_uint32 contexts_changed; /* grows when the worker should look at
										* the slots of contexts */
	uint64 discarded[SHARED_MAX_DISCARDED]; /* keys of contexts that had failed
											 * and have gone, 0: none; the
											 * newest ones */
	uint32 discarded_next; /* where the next one goes */

	/* the memory queue (events/queue.c), under the queue's own lock */
	int32 queue_first[LANE_COUNT]; /* entry that waits; -1: none */
	int32 queue_last[LANE_COUNT];
	int32 queue_taken; /* list of those that the worker has taken */
	int64 queue_entries;
	int64 queue_bytes;
} DatabaseState;

/*
 * What a session and the worker know of the session's context
 * (data/context_slot.h).
 */
typedef struct ContextSlot
{
	pg_atomic_uint64 key; /* of the context; 0: there is none */
	Oid database; /* valid while there is a key */
	pg_atomic_uint64 committed; /* records up to this number are there */
	pg_atomic_uint64 released; /* records up to this number may be sent */
	pg_atomic_uint64 due; /* time from which all may be sent; 0: at once,
						   * DT_NOEND: not until they are released */
	pg_atomic_uint32 discards; /* not 0: the context has failed, and what it
								* has recorded is never sent */
	pg_atomic_uint64 pending; /* events that are committed and not delivered, an
							   * int64: it may be below 0 for a moment */

	/* publishing on request, under the lock of the database's state */
	uint64 publish_requested;
	uint64 publish_finished;
	uint64 publish_succeeded;
	int publish_error_code; /* SQLSTATE */
	char publish_error[SHARED_MAX_ERROR];

	uint64 refresh_ticket; /* DatabaseState.refresh_requested that it waits
							* for; 0: none */
} ContextSlot;

/* A place for each process: what it lets others know. */
typedef struct BackendSlot
{
	pg_atomic_uint64 parallel_serial; /* of the version that its parallel
									   * workers see; 0: it has none */
	pg_atomic_uint32 warned; /* process whose session has had the warning of a
							  * value that does not fit; 0: none */
	ContextSlot context;
} BackendSlot;

/* a serial that no version has: parallel workers see no data */
#define PARALLEL_NO_DATA PG_UINT64_MAX

/* Whether the library was loaded by shared_preload_libraries. */
extern bool shared_available(void);

/* Installs the hooks that reserve and initialise shared memory. */
extern void shared_install(void);

/* This process's mapping of the area; attaches at the first call. */
extern dsa_area *shared_area(void);

/*
 * The state of a database, NULL if it has none.  With create, a free one is
 * taken; NULL if there is none left.
 */
extern DatabaseState *shared_database(Oid database, bool create);

/* The state of the present database, cached; NULL if it has none. */
extern DatabaseState *shared_my_database(void);

/*
 * Keeps workers away from a database, until this process lets go or ends.
 * Gives the database's state; NULL if there is no place left for it, or too
 * many others keep workers away.
 */
extern DatabaseState *shared_database_hold(Oid database);
extern void shared_database_release(DatabaseState *state);

/* Whether a living process keeps workers away. */
extern bool shared_database_held(const DatabaseState *state);

#define SHARED_MAX_DATABASES 256

/*
 * Frees the state of a database that has no worker and whose data was
 * withdrawn.  Nothing happens while a statement still reads old data.
 */
extern void shared_forget_database(Oid database);

extern BackendSlot *shared_slot(int number);

/* A number that no two versions share. */
extern uint64 shared_next_serial(void);

/* The launcher's process, for its latch; NULL: it ends. */
extern void shared_set_launcher(PGPROC *proc);
extern bool shared_has_launcher(void);
extern void shared_wake_launcher(void);

/* Wakes the worker of a database, if there is one.  Never fails. */
extern void shared_wake_worker(DatabaseState *state);

/*
 * Tells the worker that so many contexts were committed to a lane, and wakes it
 * if it wants that.  For use at commit: never fails.
 */
extern void shared_events_committed(DatabaseState *state, EventLane lane,
									uint64 contexts);

/* Has the worker look at all of the outbox: there may be more room by now. */
extern void shared_events_undone(DatabaseState *state);

/*
 * The worker's side: takes what was told so far, and forgets it; says at how
 * many it wants to be woken (0: not at all).  False if there are as many
 * already: don't sleep then.
 */
extern uint64 shared_events_take(DatabaseState *state, EventLane lane);
extern bool shared_events_sleep(DatabaseState *state, EventLane lane,
								uint32 wake_at);

/* Adds to a counter of this database, if there is shared memory. */
extern void shared_count(EventCounter counter, uint64 number);

/*
 * Asks the launcher to look whether a database has the extension now.  For use
 * at commit: allocates nothing and never fails.
 */
extern void shared_request_probe(Oid database);

/*
 * Takes the databases to look at: their number, or -1 when too many were asked
 * for to remember and all must be looked at again.
 */
#define SHARED_MAX_PROBES 64
extern int shared_take_probes(Oid *databases);

#endif /* ABSMARTLY_DATA_SHARED_H */
