/*
 * publish.c
 *		Delivery: what is sent when, and what the answers mean (DESIGN 6.2).
 *
 * A pass reads what was committed before it into batches; several of them are
 * in flight at once.  A batch that failed waits in memory and is sent again: a
 * round is an attempt and its retries, and rounds that failed are followed by
 * pauses that grow.  The pause is for all batches, unless another one has been
 * delivered since this one was first tried: then it is this one's alone, and
 * does not stop the others.
 *
 * Each lane has its passes and batches.  What is live goes first; bulk gets
 * what that leaves, and at least one request in so many.  It leaves one
 * connection free as soon as something live is committed, and at all times
 * where requests take long.  A pause for failures of bulk is for bulk alone:
 * only the collector itself can ask for one that is for all.
 *
 * Who has a session context published waits for that context's events alone:
 * until they are delivered, or a round with them has failed.  Those of a
 * context that holds its events leave their batch then.
 *
 * Nothing that fails on this side of the connection may end the worker: each
 * step that reads or writes the database is tried, reported, and tried again.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "data/store.h"
#include "events/endpoints.h"
#include "events/logger.h"
#include "events/outbox.h"
#include "events/queue.h"
#include "events/replicated.h"
#include "events/takeback.h"
#include "settings.h"
#include "worker/batch.h"
#include "worker/collector.h"
#include "worker/contexts.h"
#include "worker/drain.h"
#include "worker/leave.h"
#include "worker/publish.h"
#include "worker/refused.h"
#include "worker/response.h"
#include "worker/step.h"
#include "worker/worker.h"

#define MAX_ANSWER ((size_t) 1024 * 1024)
/* below that batches are not made smaller because of a 413, but halved */
#define LEAST_BATCH_BYTES ((size_t) 16 * 1024)
/* how long batches stay small, before larger ones are tried again */
#define SMALL_MS 60000
/* a pass without being told of events, for what nobody tells */
#define FALLBACK_MS 300000
/* marks of delivered records get to disk at least that often, when busy */
#define FLUSH_MS 50
#define BLOCKED_PAUSE_MS 200
/* between two looks whether what waits can be read again */
#define CLAIM_PAUSE_MS 50
/* batches that have failed and wait, beside those that may be in flight */
#define MAX_FAILED 16
#define MAX_FAILED_BYTES ((Size) 16 * 1024 * 1024)
/* after so many requests that are live comes one that is bulk, if any waits */
#define LIVE_RUN 8
/* bulk takes the last connection if its requests take no longer than that */
#define QUICK_MS 500
/* after so many rounds one of them is halved: one of its events may be why */
#define ROUNDS_ALONE 2
/* between two reports of dropped events */
#define DROPS_REPORT_MS 60000
/* how long running requests may take when the worker has to end soon */
#define SHUTDOWN_MS 500
#define STANDBY_SHUTDOWN_MS 2000
/* how long a transaction may take from its last look at the worker to its end
 */
#define LEAVE_MS 50

static bool recovery;
static bool started = false; /* the outbox knows this worker */
static bool held_up = false; /* the worker before this one waits for answers */

typedef struct Lane
{
	/* batches */
	dlist_head waiting;
	int nbatches; /* waiting and running */
	int nrunning;
	double last_ms; /* that a request took; 0: none has come to its end */

	/* reading */
	uint64 told; /* contexts that were committed since the pass */
	CollectorPause company; /* how long they wait for others */
	bool pass_wanted;
	CollectorPause fallback;

	/* what the collector thinks of it */
	CollectorPause pause;
	int failed_rounds;

	/* the request of absmartly_publish() that is being served */
	bool ticket_pass; /* its pass has begun */
	bool ticket_read; /* and come to its end */
	uint64 ticket_serial; /* of the last batch that it is about */
} Lane;

static Lane lanes[LANE_COUNT] = {
	[LANE_LIVE] = {.waiting = DLIST_STATIC_INIT(lanes[LANE_LIVE].waiting)},
	[LANE_BULK] = {.waiting = DLIST_STATIC_INIT(lanes[LANE_BULK].waiting)}};

#define foreach_lane(which) \
	for (EventLane which = LANE_LIVE; which < LANE_COUNT; which++)

/* batches of both */
static dlist_head running = DLIST_STATIC_INIT(running);
static dlist_head delivered = DLIST_STATIC_INIT(delivered); /* to be logged */
static int nrunning = 0;
static uint64 last_serial = 0;
static int live_sent = 0; /* requests since the last one that was bulk */

/* reading */
static CollectorPause read_pause;
static CollectorPause claim_pause;
static bool giving_way = false; /* to who takes back what waits */
static bool given_up = false; /* what was read, and is still to be marked */
static size_t batch_bytes; /* at which a batch is full */
static CollectorPause small_pause; /* before that grows again */

/* what the collector thinks of it */
static CollectorPause pause_asked; /* by the collector: Retry-After */
static uint64 endpoints = 0; /* how many the worker has had before */
static uint64 rounds_failed = 0; /* ever */
static uint64 successes = 0; /* batches delivered, ever */
static bool failure_reported = false;
static FailureKind reported_kind;
static bool batch_missing = false; /* there is no /context/batch */
static bool batch_missing_told = false;

static CollectorPause flush_pause; /* before the next flush, if still busy */
static int unflushed = 0; /* batches delivered whose marks may not be on disk */
static CollectorPause maintenance;

/* the request of absmartly_publish() that is being served */
static uint64 ticket = 0; /* 0: none */
static uint64 ticket_moment; /* a pass that judges by this one serves it */
static int64 ticket_delivered; /* events, at its beginning */
static int64 events_delivered = 0; /* ever */

/* there may be items in batches that their contexts hold again */
static bool drop_wanted = false;

/* Starts a pause at this moment. */
static void
pause_for(CollectorPause *pause, int64 ms)
{
	collector_pause(pause, GetCurrentTimestamp(), ms);
}

/*
 * Waiters
 */

/* Ends absmartly_publish() for those who wait; error is NULL if it went well */
static void
finish_ticket(DatabaseState *state, int code, const char *error)
{
	if (ticket == 0)
		return;
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->publish_finished = Max(state->publish_finished, ticket);
	if (error == NULL)
	{
		state->publish_succeeded = Max(state->publish_succeeded, ticket);
		state->publish_delivered = events_delivered - ticket_delivered;
	}
	state->publish_error_code = code;
	collector_copy_error(state->publish_error, error ? error : "");
	LWLockRelease(&state->lock);
	ConditionVariableBroadcast(&state->changed);
	ticket = 0;
}

static void
end_pauses(void)
{
	dlist_iter iter;

	pause_asked.until = 0;
	read_pause.until = 0;
	step_end_pause();
	dlist_foreach(iter, &running)
	{
		Batch *batch = dlist_container(Batch, node, iter.cur);

		batch->attempts = 1;
	}
	foreach_lane(lane)
	{
		lanes[lane].pause.until = 0;
		dlist_foreach(iter, &lanes[lane].waiting)
		{
			Batch *batch = dlist_container(Batch, node, iter.cur);

			batch->pause.until = 0;
			batch->attempts = 0;
		}
	}
}

/* Wants a pass of each lane. */
static void
want_passes(void)
{
	foreach_lane(lane)
	{
		lanes[lane].pass_wanted = true;
	}
}

/* Whether all that was committed is delivered, as far as is known. */
static bool
nothing_left(void)
{
	foreach_lane(lane)
	{
		if (lanes[lane].nbatches > 0 || lanes[lane].pass_wanted ||
			batch_more(lane))
			return false;
	}
	return true;
}

/*
 * Takes the next request: one pass of each lane from here on sees all that was
 * committed before it.
 */
static void
take_ticket(DatabaseState *state)
{
	if (ticket != 0 || state->publish_requested <= state->publish_finished)
		return;
	LWLockAcquire(&state->lock, LW_SHARED);
	ticket = state->publish_requested;
	LWLockRelease(&state->lock);
	foreach_lane(lane)
	{
		lanes[lane].ticket_pass = false;
		lanes[lane].ticket_read = false;
	}
	ticket_moment = replicated_next_moment();
	ticket_delivered = events_delivered;
	want_passes();
	end_pauses();
}

/*
 * Looks at what session contexts want.  Everybody may have them: their requests
 * end no pause, but wait for the round that follows it.
 */
static void
look_at_contexts(DatabaseState *state)
{
	if (contexts_look(state))
	{
		lanes[LANE_LIVE].pass_wanted = true;
		drop_wanted = true;
	}
}

/*
 * What keeps events from being sent, NULL: nothing.  They are kept then.
 */
static const char *
obstacle(const DatabaseState *state)
{
	if (state->target.endpoint[0] == '\0')
		return "\"absmartly.endpoint\" is not set";
	/* the collector refuses all that comes without them */
	if (state->target.application[0] == '\0')
		return "\"absmartly.application\" is not set";
	if (state->target.environment[0] == '\0')
		return "\"absmartly.environment\" is not set";
	return settings_publishing ? NULL : "\"absmartly.publishing\" is off";
}

/* Says once why nothing is sent, where that looks like an oversight. */
static void
report_obstacle(const DatabaseState *state, const char *reason)
{
	static bool reported = false;
	bool oversight = reason != NULL && state->target.endpoint[0] != '\0' &&
					 settings_publishing;

	if (oversight && !reported)
		ereport(WARNING, (errmsg("absmartly: events are kept, and not sent: %s",
								 reason)));
	reported = oversight;
}

/*
 * Sending
 */

static void
put_aside(Batch *batch)
{
	Lane *lane = &lanes[batch->lane];

	collector_forget_key(&batch->key);
	dlist_push_tail(&lane->waiting, &batch->node);
	lane->nbatches++;
}

/* Takes a batch from where it waits or runs. */
static void
take_out(Batch *batch)
{
	dlist_delete(&batch->node);
	lanes[batch->lane].nbatches--;
}

/* A batch is too large, or something in it is wrong and nobody says what. */
static void
halve(Batch *batch)
{
	Batch *half = batch_split(batch);

	batch->attempts = 0;
	half->blamed = batch->blamed;
	half->tried = batch->tried;
	half->successes_before = batch->successes_before;
	half->rounds = batch->rounds;
	half->failed_rounds = batch->failed_rounds;
	half->reported = batch->reported;
	half->pause = batch->pause;
	put_aside(batch);
	put_aside(half);
}

/*
 * A batch could not be delivered: tells who waits for it, and the event logger.
 * Whose context's error it is has no other one; if nothing that is live gets
 * through, it is that of all who wait.
 */
static void
tell_failure(DatabaseState *state, const Batch *batch, bool alone,
			 const char *error)
{
	bool others = false;

	for (int i = batch->first; i < batch->nitems && !others; i++)
		others = !contexts_requested(batch->items[i].context);
	if (others)
		worker_log_error(state, 0, error);
	if (!alone && batch->lane == LANE_LIVE)
		contexts_fail(state, 0, ERRCODE_CONNECTION_FAILURE, error);
	else
		for (int i = batch->first; i < batch->nitems; i++)
			if (batch->items[i].context != 0)
				contexts_fail(state, batch->items[i].context,
							  ERRCODE_CONNECTION_FAILURE, error);
	drop_wanted = true;
	finish_ticket(state, ERRCODE_CONNECTION_FAILURE, error);
}

/*
 * A round has failed.  It is reported once for as long as the reason stays the
 * same: an outage of days shall not fill the log.
 */
static void
fail_round(DatabaseState *state, Batch *batch, const Failure *failure,
		   int64 first_ms)
{
	bool alone = successes > batch->successes_before;

	batch->attempts = 0;
	batch->rounds++;
	if (failure->retry_after > 0)
		pause_for(&pause_asked,
				  collector_round_ms(first_ms, 0, failure->retry_after));
	if (alone)
		pause_for(&batch->pause,
				  collector_round_ms(first_ms, batch->failed_rounds++,
									 failure->retry_after));
	else
	{
		Lane *lane = &lanes[batch->lane];
		dlist_iter iter;

		/* after the pause rounds begin anew */
		foreach_lane(other)
		{
			if (batch->lane != LANE_LIVE && other != batch->lane)
				continue;
			dlist_foreach(iter, &lanes[other].waiting)
			{
				dlist_container(Batch, node, iter.cur)->attempts = 0;
			}
		}
		pause_for(&lane->pause,
				  collector_round_ms(first_ms, lane->failed_rounds++,
									 failure->retry_after));
		rounds_failed++;
	}

	if (alone ? !batch->reported
			  : (!failure_reported ||
				 !collector_same_failure(&failure->kind, &reported_kind)))
		ereport(
			WARNING,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("absmartly: could not publish events: %s", failure->error),
			 alone ? errdetail("Other events are published meanwhile.")
				   : errdetail("They are kept.  It is tried again and "
							   "again, and reported anew only if the "
							   "reason changes.")));
	if (alone)
		batch->reported = true;
	else
	{
		failure_reported = true;
		reported_kind = failure->kind;
	}
	tell_failure(state, batch, alone, failure->error);
	if (alone && batch->failed_rounds >= ROUNDS_ALONE &&
		batch_events(batch) > 1)
	{
		take_out(batch);
		halve(batch);
	}
}

/* Milliseconds of the pause after a lane's failed rounds. */
static long
round_pause_left(EventLane lane)
{
	/* what stops the live ones stops all */
	return Max(collector_pause_left(&lanes[LANE_LIVE].pause),
			   collector_pause_left(&lanes[lane].pause));
}

/*
 * An attempt has failed: plans a retry or ends the round.  A pause that the
 * collector asks for is for all.
 */
static void
fail_attempt(DatabaseState *state, Batch *batch, const Failure *failure)
{
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->publish.failures++;
	state->publish.last_error_at = GetCurrentTimestamp();
	collector_copy_error(state->publish.last_error, failure->error);
	LWLockRelease(&state->lock);

	put_aside(batch);
	if (batch->rounds_before != rounds_failed &&
		round_pause_left(batch->lane) > 0)
		batch->attempts = 0; /* others have found out already */
	else if (failure->kind.result == ATTEMPT_FAULT)
		fail_round(state, batch, failure, COLLECTOR_FAULT_PAUSE_MS);
	else if (batch->attempts > settings_max_retries ||
			 failure->retry_after > COLLECTOR_MAX_RETRY_AFTER_S)
		fail_round(state, batch, failure, COLLECTOR_ROUND_PAUSE_MS);
	else
	{
		int64 pause_ms =
			collector_retry_ms(batch->attempts, failure->retry_after);

		pause_for(&batch->pause, pause_ms);
		if (failure->retry_after > 0)
			pause_for(&pause_asked, pause_ms);
	}
}

/* An attempt has failed without a request. */
static void
fail_unasked(DatabaseState *state, Batch *batch, AttemptResult result,
			 char *error)
{
	Failure failure = {.kind = {.result = result, .outcome = -1},
					   .retry_after = -1,
					   .error = error};

	fail_attempt(state, batch, &failure);
}

/* Sends a batch that is in no list. */
static void
send_batch(DatabaseState *state, HttpClient *client, Batch *batch)
{
	CollectorCall call = {
		.method = HTTP_PUT,
		.endpoint = state->target.endpoint,
		.path = batch_count(batch) == 1 ? "/context" : "/context/batch",
		.application = batch->origin->application,
		.application_version = batch->origin->application_version,
		.environment = batch->origin->environment,
		.max_answer = MAX_ANSWER,
		.tag = batch};
	char *error;

	if (!batch->tried)
		batch->successes_before = successes;
	if (batch->attempts == 0)
		batch->rounds_before = rounds_failed;
	batch->tried = true;
	batch->endpoint = endpoints;
	batch->attempts++;

	error = collector_read_key(&batch->key);
	if (error != NULL)
	{
		fail_unasked(state, batch, ATTEMPT_FAULT, error);
		return;
	}
	call.body = batch_body(batch, &call.body_length);
	batch->request = collector_start(client, &call, &batch->key);
	if (batch->request == NULL)
	{
		collector_forget_key(&batch->key);
		fail_unasked(state, batch, ATTEMPT_RETRY, "out of memory");
		return;
	}
	dlist_push_tail(&running, &batch->node);
	lanes[batch->lane].nbatches++;
	lanes[batch->lane].nrunning++;
	nrunning++;
	live_sent = batch->lane == LANE_LIVE ? live_sent + 1 : 0;

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->publish.requests++;
	if (batch->attempts > 1)
		state->publish.retries++;
	state->publish.bytes_sent += (int64) call.body_length;
	LWLockRelease(&state->lock);
}

/* Milliseconds of the pauses that are for all of a lane. */
static long
pause_left(EventLane lane)
{
	return Max(round_pause_left(lane), collector_pause_left(&pause_asked));
}

/* Where there is no batch endpoint, items leave their batch one by one. */
static bool
must_carve(const Batch *batch)
{
	return batch_missing && batch_count(batch) > 1;
}

/*
 * Whether a lane may have another batch.  Those that have failed do not count,
 * so that others have a chance to show whether it is them or the collector;
 * within limits.
 */
static bool
may_add(EventLane lane)
{
	Size bytes = 0;
	int failed = 0;
	dlist_iter iter;

	dlist_foreach(iter, &lanes[lane].waiting)
	{
		const Batch *batch = dlist_container(Batch, node, iter.cur);

		bytes += batch->body.len;
		if (batch->rounds > 0)
			failed++;
	}
	if (bytes > MAX_FAILED_BYTES)
		failed = 0;
	return lanes[lane].nbatches - Min(failed, MAX_FAILED) <=
		   settings_max_connections;
}

/* Milliseconds until a waiting batch may be sent; -1: others come first. */
static long
batch_left(const Batch *batch)
{
	if (must_carve(batch) && !may_add(batch->lane))
		return -1;
	return Max(collector_pause_left(&batch->pause), pause_left(batch->lane));
}

static bool
wants_to_start(void)
{
	return !started && !recovery;
}

/* Whether a lane has something to read. */
static bool
has_to_read(EventLane lane)
{
	return (giving_way ? batch_reading(lane)
					   : lanes[lane].pass_wanted || batch_more(lane)) &&
		   !wants_to_start();
}

/* Milliseconds until a lane may be read. */
static long
read_left(EventLane lane)
{
	return Max(Max(collector_pause_left(&read_pause), step_pause_left()),
			   pause_left(lane));
}

/* Whether something live can be sent at once. */
static bool
live_is_ready(void)
{
	dlist_iter iter;

	dlist_foreach(iter, &lanes[LANE_LIVE].waiting)
	{
		if (batch_left(dlist_container(Batch, node, iter.cur)) == 0)
			return true;
	}
	return has_to_read(LANE_LIVE) && may_add(LANE_LIVE) &&
		   read_left(LANE_LIVE) <= 0;
}

/* Whether bulk goes first for once. */
static bool
bulk_is_due(void)
{
	return live_sent >= LIVE_RUN;
}

/* Whether there is a connection for a request of a lane. */
static bool
may_send(EventLane lane)
{
	if (nrunning >= settings_max_connections)
		return false;
	if (lane == LANE_LIVE)
		return true;
	if (live_is_ready())
		return bulk_is_due();
	/* one is left to those that wait for company, and to those that may come */
	return (lanes[LANE_LIVE].told == 0 && lanes[lane].last_ms > 0 &&
			lanes[lane].last_ms <= QUICK_MS) ||
		   lanes[lane].nrunning < Max(settings_max_connections - 1, 1);
}

static void
send_some(DatabaseState *state, HttpClient *client, EventLane lane, bool fresh)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &lanes[lane].waiting)
	{
		Batch *batch = dlist_container(Batch, node, iter.cur);

		if (fresh && batch->rounds > 0)
			continue;
		if (batch->has_contexts && batch_left(batch) == 0)
		{
			batch_drop_held(batch);
			if (batch_count(batch) == 0)
			{
				take_out(batch);
				batch_free(batch);
				continue;
			}
		}
		while (must_carve(batch) && batch_left(batch) == 0 && may_send(lane))
			send_batch(state, client, batch_carve(batch));
		if (!may_send(lane))
			break;
		if (must_carve(batch) || batch_left(batch) != 0)
			continue;
		take_out(batch);
		send_batch(state, client, batch);
	}
}

/*
 * As long as nothing gets through, those that have not been tried come first:
 * it may be the events of the others that the collector fails with.
 */
static void
send_lane(DatabaseState *state, HttpClient *client, EventLane lane)
{
	if (lanes[lane].failed_rounds > 0)
		send_some(state, client, lane, true);
	send_some(state, client, lane, false);
}

/* failed: also of a lane of which nothing gets through. */
static void
send_waiting(DatabaseState *state, HttpClient *client, bool failed)
{
	if (bulk_is_due() && (failed || lanes[LANE_BULK].failed_rounds == 0))
		send_lane(state, client, LANE_BULK);
	foreach_lane(lane)
	{
		if (failed || lanes[lane].failed_rounds == 0)
			send_lane(state, client, lane);
	}
}

/* Lets items leave their batches whose contexts hold them again. */
static void
drop_held(void)
{
	dlist_mutable_iter iter;

	if (!drop_wanted)
		return;
	drop_wanted = false;
	/* what is held is live */
	dlist_foreach_modify(iter, &lanes[LANE_LIVE].waiting)
	{
		Batch *batch = dlist_container(Batch, node, iter.cur);

		batch_drop_held(batch);
		if (batch_count(batch) == 0)
		{
			take_out(batch);
			batch_free(batch);
		}
	}
}

/*
 * Reading
 */

/* Takes note of what was committed. */
static void
listen_to_backends(DatabaseState *state)
{
	foreach_lane(which)
	{
		Lane *lane = &lanes[which];
		uint64 contexts = shared_events_take(state, which);

		if (contexts > 0)
		{
			if (lane->told == 0)
				pause_for(&lane->company, settings_publish_delay);
			lane->told += contexts;
		}
		if (lane->told > 0 && (lane->told >= (uint64) settings_batch_size ||
							   collector_pause_left(&lane->company) <= 0))
		{
			lane->told = 0;
			lane->pass_wanted = true;
		}
		if (collector_pause_left(&lane->fallback) <= 0)
			lane->pass_wanted = true;
	}
}

/* Makes the worker known to the outbox, also while nothing may be sent. */
static void
step_start(DatabaseState *state, void *argument)
{
	if (takeback_wanted(state) || !takeback_claim())
	{
		/* somebody takes back what waits */
		pause_for(&claim_pause, CLAIM_PAUSE_MS);
		return;
	}
	outbox_list_endpoints(state);
	outbox_worker_start(state, contexts_hold_in_pass);
	started = true;
}

static void
step_adopt(DatabaseState *state, void *argument)
{
	outbox_list_endpoints(state);
	outbox_adopt(state);
}

/* Whether what waits for an endpoint of before has not got the new stamp. */
static bool
wants_to_adopt(const DatabaseState *state)
{
	return started && !recovery && endpoints_adoption_wanted(state);
}

static void
step_begin_pass(DatabaseState *state, void *argument)
{
	contexts_pass_begun(state);
}

static void
step_pass(DatabaseState *state, void *argument)
{
	batch_pass(state, *(const EventLane *) argument);
}

typedef struct FillStep
{
	EventLane lane;
	Batch *batch;
	BatchRead result;
} FillStep;

static void
step_fill(DatabaseState *state, void *argument)
{
	FillStep *fill = argument;

	fill->batch = batch_create(++last_serial, fill->lane);
	fill->result = batch_fill(state, fill->batch, batch_bytes);
	batch_flush();
}

/* Whether a lane has something to read, and room for it. */
static bool
wants_to_read(EventLane lane)
{
	return has_to_read(lane) && may_add(lane) && may_send(lane);
}

/* The lane that is read now; LANE_COUNT: none. */
static EventLane
lane_to_read(void)
{
	bool can[LANE_COUNT];

	foreach_lane(lane)
	{
		can[lane] = wants_to_read(lane) && read_left(lane) <= 0;
	}
	if (can[LANE_LIVE] && !(can[LANE_BULK] && bulk_is_due()))
		return LANE_LIVE;
	return can[LANE_BULK] ? LANE_BULK : LANE_COUNT;
}

/* Whether what was begun with is read to its end; not during a pause. */
static bool
reads_on(void)
{
	foreach_lane(lane)
	{
		if (wants_to_read(lane) && pause_left(lane) <= 0)
			return true;
	}
	return false;
}

/*
 * Whether a pass of a lane is to begin.  Who waits is served by one that begins
 * after him, even if another one goes on; but each that serves somebody comes
 * to its end.
 */
static bool
must_begin_pass(EventLane which)
{
	const Lane *lane = &lanes[which];
	bool live = which == LANE_LIVE;

	if (!lane->pass_wanted)
		return false;
	if (!batch_more(which))
		return true;
	if ((ticket != 0 && lane->ticket_pass && !lane->ticket_read) ||
		(live && contexts_in_pass()))
		return false;
	return (ticket != 0 && !lane->ticket_pass) ||
		   (live && contexts_want_pass());
}

/* Reads the next batch of a lane and lets it wait to be sent. */
static void
read_batch(DatabaseState *state, EventLane which)
{
	Lane *lane = &lanes[which];
	bool live = which == LANE_LIVE;
	FillStep fill = {.lane = which, .result = BATCH_NO_MORE};

	if (must_begin_pass(which))
	{
		/* what was committed by now is seen by this pass */
		(void) shared_events_take(state, which);
		lane->told = 0;
		/* what is sent may fail for days: all of it has to be safe */
		if ((live && !step_try(state, "could not read events", step_begin_pass,
							   NULL)) ||
			(!recovery && queue_oldest(state) != 0 &&
			 !step_try(state, "could not write exposures to the outbox",
					   drain_queue, NULL)) ||
			!step_try(state, "could not read events", step_pass, &which))
		{
			if (live)
				contexts_pass_lost();
			return;
		}
		lane->pass_wanted = false;
		lane->ticket_pass = ticket != 0;
		pause_for(&lane->fallback, FALLBACK_MS);
	}

	if (!step_try(state, "could not read events", step_fill, &fill))
	{
		batch_recover(state, which, fill.batch);
		/* what it has left in the batch is sent */
		batch_flush();
		lane->pass_wanted = true;
		lane->ticket_pass = false;
		if (live)
			contexts_pass_lost();
	}
	else if (fill.result == BATCH_BLOCKED)
		pause_for(&read_pause, BLOCKED_PAUSE_MS);

	if (fill.batch != NULL && batch_count(fill.batch) > 0)
		put_aside(fill.batch);
	else if (fill.batch != NULL)
		batch_free(fill.batch);
	if (batch_more(which))
		return;
	if (ticket != 0 && lane->ticket_pass && !lane->ticket_read)
	{
		/* if something was left that it is about it gets another pass */
		lane->ticket_pass = ticket_moment <= replicated_pass_moment(which);
		lane->ticket_read = lane->ticket_pass;
		lane->ticket_serial = last_serial;
	}
	if (live)
		contexts_pass_read(replicated_pass_moment(which));
	/* it may have come upon something to tidy up */
	maintenance.until = 0;
}

/*
 * What has waited in memory for long is written, lest a crash takes it: others
 * than the worker cannot, or do not want to.
 */
static void
save_queue(DatabaseState *state)
{
	if (recovery || drain_left(state) != 0 || step_pause_left() > 0 ||
		!step_try(state, "could not write exposures to the outbox", drain_queue,
				  NULL))
		return;
	/*
	 * A pass that has begun would not find them where they are now.  It serves
	 * its ticket nevertheless: what had come before that was written when the
	 * pass began.
	 */
	foreach_lane(lane)
	{
		if (batch_more(lane))
			lanes[lane].pass_wanted = true;
	}
}

/* Nothing is known of what was read. */
static void
begin_anew(DatabaseState *state)
{
	started = false;
	given_up = false;
	held_up = state->leaver_pid != 0;
	if (held_up)
		return;
	contexts_start();
	batch_start(recovery);
	queue_worker_start(state);
	want_passes();
	maintenance.until = DT_NOEND;
}

/* Milliseconds until the outbox may be looked at; if it wants_to_start(). */
static long
start_left(void)
{
	return Max(step_pause_left(), collector_pause_left(&claim_pause));
}

static void let_go(DatabaseState *state);

/*
 * Somebody wants to take back what waits: nothing more is read.  What has been
 * is sent, so that of a record of which some is delivered nothing stays behind;
 * unless it can't be sent now.
 */
static void
look_who_takes_back(DatabaseState *state)
{
	giving_way = !recovery && takeback_wanted(state) && takeback_claimed();
	batch_stop_reading(giving_way);
}

void
publish_begin(DatabaseState *state, HttpClient *client)
{
	const char *reason = obstacle(state);
	EventLane lane;

	if (held_up)
		begin_anew(state);
	if (held_up)
	{
		save_queue(state);
		return;
	}
	if (given_up)
	{
		/* nothing else begins with what is given up */
		save_queue(state);
		let_go(state);
		return;
	}
	look_who_takes_back(state);
	take_ticket(state);
	look_at_contexts(state);
	drop_held();
	if (wants_to_start() && start_left() <= 0)
		(void) step_try(state, "could not look at the outbox", step_start,
						NULL);
	if (wants_to_adopt(state) && step_pause_left() <= 0)
		(void) step_try(state, "could not look at the outbox", step_adopt,
						NULL);
	save_queue(state);
	report_obstacle(state, reason);
	if (reason != NULL)
	{
		contexts_fail(state, 0, ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
					  reason);
		finish_ticket(state, ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, reason);
		if (giving_way)
			let_go(state);
		return;
	}

	listen_to_backends(state);
	foreach_lane(each)
	{
		if (replicated_due(each))
			lanes[each].pass_wanted = true;
	}
	if (pause_left(LANE_LIVE) <= 0)
	{
		send_waiting(state, client, false);
		lane = lane_to_read();
		if (lane != LANE_COUNT)
			read_batch(state, lane);
		send_waiting(state, client, true);
	}
	if (giving_way && !reads_on())
		let_go(state);
}

/*
 * Answers
 */

bool
publish_owns(const HttpRequest *request)
{
	return http_answer(request)->tag != NULL;
}

/* Adds up the events of a batch. */
static void
count_events(const Batch *batch, int64 *exposures, int64 *goals)
{
	*exposures = 0;
	*goals = 0;
	for (int i = batch->first; i < batch->nitems; i++)
	{
		*exposures += batch->items[i].exposures;
		*goals += batch->items[i].goals;
	}
}

/*
 * Batches are small for a while after a 413, then twice as large, and so on:
 * what is too large is not tried all the time.
 */
static void
grow_batches(void)
{
	size_t most = (size_t) settings_batch_bytes * 1024;

	if (batch_bytes >= most || collector_pause_left(&small_pause) > 0)
		return;
	batch_bytes = Min(most, batch_bytes * 2);
	pause_for(&small_pause, SMALL_MS);
}

static void
succeed(DatabaseState *state, Batch *batch, const Response *response)
{
	TimestampTz now = GetCurrentTimestamp();
	int remarks = response->nwarnings + response->nerrors;
	int64 exposures;
	int64 goals;

	count_events(batch, &exposures, &goals);
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->publish.exposures_sent += exposures;
	state->publish.goals_sent += goals;
	state->publish.last_success_at = now;
	state->publish.last_error[0] = '\0';
	LWLockRelease(&state->lock);
	if (remarks > 0)
	{
		/* an error in a good answer stops nothing, either */
		char *remark =
			store_message(response->first_warning ? response->first_warning
												  : response->errors[0].text,
						  CurrentMemoryContext);

		LWLockAcquire(&state->lock, LW_EXCLUSIVE);
		state->publish.warnings += remarks;
		collector_copy_error(state->publish.last_warning, remark);
		LWLockRelease(&state->lock);
	}

	if (batch_missing && !batch_missing_told)
	{
		ereport(LOG, (errmsg("absmartly: the collector takes no batches: "
							 "events are sent one context at a time")));
		batch_missing_told = true;
	}
	if (failure_reported)
		ereport(LOG, (errmsg("absmartly: publishing events works again")));
	failure_reported = false;
	foreach_lane(lane)
	{
		lanes[lane].failed_rounds = 0;
		lanes[lane].pause.until = 0;
	}
	successes++;
	unflushed++;
	events_delivered += exposures + goals;
	grow_batches();

	batch_done(batch);
	collector_forget_key(&batch->key);
	if (logger_wanted())
		dlist_push_tail(&delivered, &batch->node);
	else
		batch_free(batch);
}

/* The collector blames events: others are delivered. */
static void
blame(DatabaseState *state, Batch *batch, const HttpAnswer *answer, bool html)
{
	if (!refused_blame(state, batch, answer, html))
	{
		halve(batch);
		return;
	}
	batch_compact(batch);
	batch->attempts = 0;
	if (batch_count(batch) > 0)
		put_aside(batch);
	else
		batch_free(batch);
}

/* The collector finds a request too large. */
static void
shrink(DatabaseState *state, Batch *batch, const HttpAnswer *answer, bool html)
{
	size_t length;

	(void) batch_body(batch, &length);
	batch_bytes = Max(Min(batch_bytes, length / 2), LEAST_BATCH_BYTES);
	pause_for(&small_pause, SMALL_MS);
	if (batch_events(batch) > 1)
		halve(batch);
	else
		blame(state, batch, answer, html);
}

/*
 * Whether an answer says that the request was taken: what answers so may be a
 * portal, or a proxy.  That there is no body is part of status 204.
 */
static bool
is_taken(const Batch *batch, const HttpAnswer *answer, Response *response,
		 Failure *failure)
{
	if (collector_judge(answer, &batch->key, failure) != ATTEMPT_GOOD)
		return false;
	if (response_parse(response, answer->body, answer->body_length,
					   &batch->key) ||
		(answer->status == 204 && answer->body_length == 0))
		return true;
	collector_disown(answer, &batch->key, failure);
	return false;
}

static bool
no_endpoint_status(int status)
{
	return status == 404 || status == 405 || status == 501;
}

void
publish_finish(DatabaseState *state, HttpClient *client, HttpRequest *request)
{
	const HttpAnswer *answer = http_answer(request);
	Batch *batch = answer->tag;
	int status = answer->status;
	bool complete =
		answer->outcome == HTTP_ANSWERED || answer->outcome == HTTP_TOO_LARGE;
	Response response;
	Failure failure;

	Assert(batch->request == request);
	take_out(batch);
	lanes[batch->lane].nrunning--;
	lanes[batch->lane].last_ms = answer->elapsed_ms;
	nrunning--;
	batch->request = NULL;

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->publish.latency_last_ms = answer->elapsed_ms;
	state->publish.latency_total_ms += answer->elapsed_ms;
	LWLockRelease(&state->lock);

	if (is_taken(batch, answer, &response, &failure))
		succeed(state, batch, &response);
	else if (batch->endpoint != endpoints)
	{
		/* a former endpoint's failure says nothing of this one */
		batch->attempts = 0;
		put_aside(batch);
	}
	else if (complete && status == 413)
		shrink(state, batch, answer, failure.kind.html);
	else if (complete && !failure.kind.html && (status == 400 || status == 422))
		blame(state, batch, answer, false);
	else if (complete && no_endpoint_status(status) && batch_count(batch) > 1)
	{
		/* where single requests are refused like it, all of them are */
		if (round_pause_left(batch->lane) <= 0)
			batch_missing = true;
		batch->attempts = 0;
		put_aside(batch);
	}
	else
	{
		if (complete && no_endpoint_status(status))
			batch_missing = false;
		fail_attempt(state, batch, &failure);
	}
	http_release(client, request);
}

/*
 * Settling
 */

static void
step_park(DatabaseState *state, void *argument)
{
	batch_park(state);
}

static void
step_acknowledge(DatabaseState *state, void *argument)
{
	batch_acknowledge(state, *(bool *) argument);
}

typedef struct MaintainStep
{
	bool idle;
	long again;
} MaintainStep;

static void
step_maintain(DatabaseState *state, void *argument)
{
	MaintainStep *maintain = argument;

	maintain->again = outbox_maintain(state, maintain->idle);
}

/* Whether nothing is under way, and nothing waits as far as is known. */
static bool
is_idle(void)
{
	foreach_lane(lane)
	{
		if (lanes[lane].told > 0 || replicated_awaited(lane))
			return false;
	}
	return nothing_left() && !batch_have_done() && !batch_have_to_park();
}

static void
log_delivered(DatabaseState *state)
{
	while (!dlist_is_empty(&delivered))
	{
		Batch *batch =
			dlist_container(Batch, node, dlist_pop_head_node(&delivered));

		for (int i = batch->first; i < batch->nitems; i++)
			worker_log_event(state, batch->items[i].context, "publish",
							 batch_item_text(batch, i), batch->items[i].length);
		batch_free(batch);
	}
}

/* Whether the ticket is about a batch. */
static bool
is_of_ticket(const Batch *batch)
{
	return batch->serial <= lanes[batch->lane].ticket_serial;
}

/* Whether all that the ticket is about has been delivered. */
static bool
ticket_served(void)
{
	dlist_iter iter;

	if (ticket == 0 || batch_have_done() || batch_have_to_park())
		return false;
	foreach_lane(lane)
	{
		if (!lanes[lane].ticket_read)
			return false;
		dlist_foreach(iter, &lanes[lane].waiting)
		{
			if (is_of_ticket(dlist_container(Batch, node, iter.cur)))
				return false;
		}
	}
	dlist_foreach(iter, &running)
	{
		if (is_of_ticket(dlist_container(Batch, node, iter.cur)))
			return false;
	}
	return true;
}

/* Marks as delivered what is, and keeps what was refused. */
static void
acknowledge(DatabaseState *state, bool flush)
{
	if (batch_have_to_park() &&
		!step_try(state, "could not keep events", step_park, NULL))
		return;
	if (!batch_have_done())
		return;
	if (nothing_left())
		flush = true;
	/* a crash repeats no more than may be in flight */
	if (unflushed >= settings_max_connections)
		flush = true;
	if (collector_pause_left(&flush_pause) <= 0)
		flush = true;
	if (!step_try(state, "could not acknowledge delivered events",
				  step_acknowledge, &flush))
		return;
	if (flush)
	{
		pause_for(&flush_pause, FLUSH_MS);
		unflushed = 0;
	}
	/* there may be something to tidy up */
	maintenance.until = 0;
}

static void
maintain(DatabaseState *state)
{
	MaintainStep maintain = {.idle = is_idle()};

	if (recovery || !started || collector_pause_left(&maintenance) > 0 ||
		maintenance.until == DT_NOEND)
		return;
	if (!step_try(state, "could not tidy up the outbox", step_maintain,
				  &maintain))
		return;
	if (maintain.again >= 0)
		pause_for(&maintenance, maintain.again);
	else
		maintenance.until = DT_NOEND;
}

/* Says what was dropped for want of room, at most once a minute. */
static void
report_drops(const DatabaseState *state)
{
	static CollectorPause pause;
	static uint64 reported[2];
	const pg_atomic_uint64 *counters = state->counters;
	uint64 exposures = pg_atomic_read_u64(
		unconstify(pg_atomic_uint64 *, &counters[COUNTER_EXPOSURES_DROPPED]));
	uint64 goals = pg_atomic_read_u64(
		unconstify(pg_atomic_uint64 *, &counters[COUNTER_GOALS_DROPPED]));

	if (exposures == reported[0] && goals == reported[1])
		return;
	/* they have been set to zero */
	if (exposures < reported[0] || goals < reported[1])
		reported[0] = reported[1] = 0;
	if (collector_pause_left(&pause) > 0)
		return;
	ereport(WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("absmartly: " UINT64_FORMAT " exposures and " UINT64_FORMAT
					" goals were dropped",
					exposures - reported[0], goals - reported[1]),
			 errdetail("The outbox has reached \"absmartly.outbox_max_size\", "
					   "or the memory queue is full."),
			 errhint("The view absmartly_stat tells what stands in the way of "
					 "delivery.")));
	reported[0] = exposures;
	reported[1] = goals;
	pause_for(&pause, DROPS_REPORT_MS);
}

void
publish_settle(DatabaseState *state)
{
	/* of what is given up nobody is to be told that it was delivered */
	if (held_up || given_up)
		return;
	report_drops(state);
	drop_held();
	if (step_pause_left() <= 0)
	{
		acknowledge(state, false);
		maintain(state);
	}
	log_delivered(state);
	refused_report(recovery);
	contexts_finish_served(state);
	if (ticket_served())
		finish_ticket(state, 0, NULL);
}

/*
 * Life
 */

/* Nothing is known of the collector. */
static void
forget_collector(void)
{
	end_pauses();
	foreach_lane(lane)
	{
		lanes[lane].failed_rounds = 0;
	}
	batch_missing = false;
	batch_missing_told = false;
	batch_bytes = (size_t) settings_batch_bytes * 1024;
}

void
publish_start(DatabaseState *state)
{
	recovery = RecoveryInProgress();
	begin_anew(state);
	forget_collector();
	failure_reported = false;
}

static dlist_head *const batch_lists[] = {
	&lanes[LANE_LIVE].waiting, &lanes[LANE_BULK].waiting, &running, &delivered};

/* There are no batches any more. */
static void
count_no_batches(void)
{
	foreach_lane(lane)
	{
		lanes[lane].nbatches = 0;
		lanes[lane].nrunning = 0;
	}
	nrunning = 0;
}

void
publish_begin_anew(DatabaseState *state)
{
	for (int i = 0; i < (int) lengthof(batch_lists); i++)
	{
		dlist_iter iter;

		dlist_foreach(iter, batch_lists[i])
		{
			collector_forget_key(&dlist_container(Batch, node, iter.cur)->key);
		}
		dlist_init(batch_lists[i]);
	}
	count_no_batches();
	/* whoever waits is served by a new pass */
	ticket = 0;
	begin_anew(state);
}

void
publish_settings_changed(void)
{
	forget_collector();
	foreach_lane(lane)
	{
		lanes[lane].told = 0;
	}
	want_passes();
}

/*
 * Milliseconds until a lane has something to do, -1: not until something
 * happens.  Tells committing backends when to wake the worker for it.
 */
static long
lane_timeout(DatabaseState *state, EventLane which)
{
	Lane *lane = &lanes[which];
	bool may = may_send(which);
	/* what comes may have to wait for a connection that bulk has */
	bool listens = may || (which == LANE_LIVE && lanes[LANE_BULK].nrunning > 0);
	long timeout = -1;
	uint32 wake_at = 0;
	dlist_iter iter;

	if (may)
		dlist_foreach(iter, &lane->waiting)
		{
			Batch *batch = dlist_container(Batch, node, iter.cur);

			timeout = collector_earlier(timeout, batch_left(batch));
		}
	if (!lane->pass_wanted)
		timeout = collector_earlier(timeout, replicated_left(which));
	if (may && wants_to_read(which))
		timeout = collector_earlier(timeout, read_left(which));
	else if (listens && may_add(which) && pause_left(which) <= 0)
	{
		timeout =
			collector_earlier(timeout, collector_pause_left(&lane->fallback));
		wake_at = 1;
		if (lane->told > 0)
		{
			timeout = collector_earlier(timeout,
										collector_pause_left(&lane->company));
			wake_at = (uint32) Max(settings_batch_size - (int64) lane->told, 1);
		}
	}
	return shared_events_sleep(state, which, wake_at) ? timeout : 0;
}

void
publish_endpoint_changed(void)
{
	endpoints++;
	failure_reported = false;
	publish_settings_changed();
}

/* No commit is to wake the worker. */
static void
wake_for_nothing(DatabaseState *state)
{
	foreach_lane(lane)
	{
		(void) shared_events_sleep(state, lane, 0);
	}
}

/* Marks what is done; false if some of it could not be marked. */
static bool
settle(DatabaseState *state)
{
	acknowledge(state, true);
	return !batch_have_done() && !batch_have_to_park();
}

/*
 * Lets go of all that was read and is not on its way, and of the right to read
 * more.
 */
static void
let_go(DatabaseState *state)
{
	if (nrunning > 0 || step_pause_left() > 0)
		return;
	if (!settle(state))
		return;
	log_delivered(state);
	batch_give_up();
	given_up = true;
	/* what was delivered is marked, or it would be sent again */
	if (!settle(state))
		return;
	publish_begin_anew(state);
	giving_way = false;
	takeback_yield();
}

long
publish_timeout(DatabaseState *state)
{
	long timeout = -1;

	/* who puts something into an empty queue wakes the worker */
	if (!recovery)
	{
		long left = drain_left(state);

		if (left >= 0)
			timeout = Max(left, step_pause_left());
	}
	if (held_up)
	{
		wake_for_nothing(state);
		return state->leaver_pid == 0 ? 0 : timeout;
	}
	if (given_up)
		return collector_earlier(timeout, step_pause_left());
	if (wants_to_start())
		timeout = collector_earlier(timeout, start_left());
	if (wants_to_adopt(state))
		timeout = collector_earlier(timeout, step_pause_left());
	if (giving_way)
		timeout = collector_earlier(timeout, CLAIM_PAUSE_MS);
	if (ticket_served() || contexts_are_served())
		timeout = 0;
	else if (batch_have_done() || batch_have_to_park())
		timeout = collector_earlier(timeout, step_pause_left());
	if (started && !recovery && maintenance.until != DT_NOEND)
		timeout =
			collector_earlier(timeout, Max(collector_pause_left(&maintenance),
										   step_pause_left()));
	if (obstacle(state) != NULL)
	{
		wake_for_nothing(state);
		return timeout;
	}
	timeout = collector_earlier(timeout, contexts_timeout());
	foreach_lane(lane)
	{
		timeout = collector_earlier(timeout, lane_timeout(state, lane));
	}
	return timeout;
}

WorkerState
publish_state(void)
{
	if (nrunning > 0)
		return WORKER_PUBLISHING;
	foreach_lane(lane)
	{
		if (lanes[lane].failed_rounds > 0)
			return WORKER_BACKING_OFF;
	}
	foreach_lane(lane)
	{
		if (lanes[lane].nbatches > 0)
			return WORKER_RETRYING;
	}
	return WORKER_IDLE;
}

/*
 * One process takes from the memory queue at a time.  A worker that has handed
 * over leaves it to its successor, or keeps that from coming.
 */
static bool
keep_queue(DatabaseState *state)
{
	bool mine;

	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	mine = state->worker_pid == 0 || state->worker_pid == MyProcPid;
	if (mine)
	{
		state->worker_pid = MyProcPid;
		state->worker_leaves = true;
	}
	LWLockRelease(&state->lock);
	return mine;
}

void
publish_save_queue(DatabaseState *state)
{
	if (!keep_queue(state))
		return;
	/* twice: for those who are committing at this moment */
	for (int i = 0; i < 2; i++)
	{
		(void) step_try(state,
						"could not move events from memory to the outbox",
						drain_queue, NULL);
		if (i == 0)
			pg_usleep(LEAVE_MS * 1000L);
	}
}

/*
 * A server that stops does not wait, nor does who needs the database for
 * himself, nor who has asked the worker twice.
 */
static bool
has_to_hurry(const DatabaseState *state, bool stops, int terminations)
{
	return stops || shared_database_held(state) ||
		   leave_terminations() != terminations;
}

/*
 * What was delivered is marked, or the next worker would send it again.  So a
 * heap that somebody has locked is waited for, as an answer is.
 */
static void
settle_at_last(DatabaseState *state, bool stops, int terminations)
{
	CollectorPause end;
	long left;

	pause_for(&end, settings_request_timeout);
	while (!settle(state) && (left = collector_pause_left(&end)) > 0 &&
		   !has_to_hurry(state, stops, terminations))
	{
		if (state->leaver_pid != MyProcPid)
			worker_hand_over();
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(left, step_pause_left()), PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

void
publish_shutdown(DatabaseState *state, HttpClient *client, bool stop)
{
	CollectorPause end;
	int terminations = leave_terminations();
	bool stops = stop && drain_server_stops();
	bool send = stops && recovery && !held_up && obstacle(state) == NULL;
	bool hurry = false;

	if (send)
	{
		end_pauses();
		contexts_let_go();
		want_passes();
	}
	if (nrunning > 0 && !has_to_hurry(state, stops, terminations))
		worker_hand_over();
	for (;;)
	{
		HttpRequest *request;
		long left = -1; /* each request has its own limit */

		if (!hurry && has_to_hurry(state, stops, terminations))
		{
			hurry = true;
			pause_for(&end, send ? STANDBY_SHUTDOWN_MS : SHUTDOWN_MS);
		}
		if (hurry && (left = collector_pause_left(&end)) <= 0)
			break;
		if (send)
		{
			long next;

			publish_begin(state, client);
			next = publish_timeout(state);
			if (nothing_left())
				break;
			left = next < 0 ? left : Min(left, next);
		}
		else if (nrunning == 0)
			break;
		http_wait(client, left, PG_WAIT_EXTENSION);
		CHECK_FOR_INTERRUPTS();
		while ((request = http_next_done(client)) != NULL)
			if (publish_owns(request))
				publish_finish(state, client, request);
		acknowledge(state, false);
	}
	/* the rest of records may not come to be kept: that holds up none of it */
	acknowledge(state, true);
	if (!recovery)
		batch_give_up();
	settle_at_last(state, stops, terminations);
	log_delivered(state);
	if (ShutdownRequestPending && !recovery)
		publish_save_queue(state);
}
