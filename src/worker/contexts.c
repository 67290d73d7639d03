/*
 * contexts.c
 *		What session contexts ask of the worker: to hold their events, and to
 *		publish them.
 *
 * A context may be gone at any time: then nobody waits for it, and what it has
 * left is nobody's and not held.
 */
#include "postgres.h"

#include "lib/ilist.h"
#include "storage/condition_variable.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "data/context_slot.h"
#include "events/replicated.h"
#include "worker/batch.h"
#include "worker/collector.h"
#include "worker/contexts.h"
#include "worker/worker.h"

/* Somebody waits for a context to be published. */
typedef struct Request
{
	dlist_node node;
	uint64 key;
	uint64 number; /* of the slot's publish_requested */
	uint64 moment; /* a pass that judges by this one serves it */
	bool pass; /* a pass has begun after it */
	bool read; /* and come to its end */
	char *refused; /* the collector's words on an event; NULL: none */
} Request;

/*
 * What was let go for a publishing that has failed, until the session has taken
 * that back.
 */
typedef struct FailedContext
{
	uint64 key; /* first: the hash table's */
	uint64 released; /* as it was then */
} FailedContext;

/*
 * A context that has failed: what it has left is dropped, also when it is gone.
 */
typedef struct DiscardedContext
{
	uint64 key; /* first: the hash table's */
	bool gone; /* since before the pass began */
} DiscardedContext;

/* What is known of a context at the beginning of a pass. */
typedef struct PassContext
{
	uint64 key; /* first: the hash table's */
	uint64 committed;
	uint64 released;
	TimestampTz due;
} PassContext;

static MemoryContext contexts_context = NULL;
static dlist_head requests = DLIST_STATIC_INIT(requests);
static HTAB *failures = NULL;
static HTAB *discarded = NULL;
static HTAB *pass_contexts = NULL;
static TimestampTz pass_time;
static bool looked = false;
static uint32 changes_seen;
static TimestampTz next_due; /* of a context; DT_NOEND: none */
static bool let_go = false;

static void
free_request(Request *request)
{
	dlist_delete(&request->node);
	if (request->refused != NULL)
		pfree(request->refused);
	pfree(request);
}

void
contexts_start(void)
{
	if (contexts_context == NULL)
	{
		/* it is the caller's until all is in it */
		MemoryContext memory = AllocSetContextCreate(
			CurrentMemoryContext, "absmartly contexts", ALLOCSET_SMALL_SIZES);
		HASHCTL control = {0};

		control.keysize = sizeof(uint64);
		control.entrysize = sizeof(FailedContext);
		control.hcxt = memory;
		failures = hash_create("absmartly failed publishing", 16, &control,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		control.entrysize = sizeof(PassContext);
		pass_contexts =
			hash_create("absmartly contexts of a pass", 64, &control,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		control.entrysize = sizeof(DiscardedContext);
		discarded = hash_create("absmartly failed contexts", 16, &control,
								HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		MemoryContextSetParent(memory, TopMemoryContext);
		contexts_context = memory;
	}
	while (!dlist_is_empty(&requests))
		free_request(dlist_head_element(Request, node, &requests));
	looked = false;
}

static Request *
find_request(uint64 key)
{
	dlist_iter iter;

	dlist_foreach(iter, &requests)
	{
		Request *request = dlist_container(Request, node, iter.cur);

		if (request->key == key)
			return request;
	}
	return NULL;
}

/* Takes the request of a context's slot, if there is a new one. */
static void
take_request(DatabaseState *state, ContextSlot *slot)
{
	Request *request;
	uint64 key;
	uint64 number = 0;

	LWLockAcquire(&state->lock, LW_SHARED);
	key = pg_atomic_read_u64(&slot->key);
	pg_read_barrier();
	if (key != 0 && slot->database == state->database &&
		slot->publish_requested > slot->publish_finished)
		number = slot->publish_requested;
	LWLockRelease(&state->lock);
	if (number == 0)
		return;

	request = find_request(key);
	if (request == NULL)
	{
		request = MemoryContextAllocZero(contexts_context, sizeof(Request));
		request->key = key;
		dlist_push_tail(&requests, &request->node);
	}
	else if (request->number == number)
		return;
	else if (request->refused != NULL)
	{
		pfree(request->refused);
		request->refused = NULL;
	}
	request->number = number;
	request->moment = replicated_next_moment();
	request->pass = false;
	request->read = false;
	(void) hash_search(failures, &key, HASH_REMOVE, NULL);
}

/* Forgets failures that their sessions have taken note of. */
static void
forget_failures(void)
{
	HASH_SEQ_STATUS scan;
	FailedContext *failure;

	hash_seq_init(&scan, failures);
	while ((failure = hash_seq_search(&scan)) != NULL)
	{
		ContextSlot *slot = context_slot_find(failure->key);

		if (slot == NULL ||
			pg_atomic_read_u64(&slot->released) != failure->released)
			(void) hash_search(failures, &failure->key, HASH_REMOVE, NULL);
	}
}

/* Takes note of a context that has failed. */
static void
note_discard(uint64 key)
{
	DiscardedContext *context;

	if (key == 0 || !context_slot_discards(key))
		return;
	context = hash_search(discarded, &key, HASH_ENTER, NULL);
	context->gone = false;
}

bool
contexts_discard(uint64 key)
{
	return hash_search(discarded, &key, HASH_FIND, NULL) != NULL ||
		   context_slot_discards(key);
}

bool
contexts_look(DatabaseState *state)
{
	uint32 changes = pg_atomic_read_u32(&state->contexts_changed);
	TimestampTz now;
	ContextSlot *slot;
	int at = 0;

	if (looked && changes == changes_seen &&
		(next_due == DT_NOEND || next_due > GetCurrentTimestamp()))
		return false;
	looked = true;
	changes_seen = changes;
	pg_memory_barrier();

	forget_failures();
	while ((slot = context_slot_next(state->database, &at)) != NULL)
	{
		take_request(state, slot);
		note_discard(pg_atomic_read_u64(&slot->key));
	}
	now = GetCurrentTimestamp();
	next_due = context_slots_next_due(state->database, now);
	return true;
}

long
contexts_timeout(void)
{
	if (!looked)
		return 0;
	if (next_due == DT_NOEND)
		return -1;
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(), next_due);
}

/* Whether what was released was for a publishing that has failed. */
static bool
has_failed(uint64 key, uint64 released)
{
	const FailedContext *failure;

	if (hash_get_num_entries(failures) == 0)
		return false;
	failure = hash_search(failures, &key, HASH_FIND, NULL);
	return failure != NULL && failure->released == released;
}

bool
contexts_hold(uint64 key, uint64 sequence)
{
	ContextSlot *slot = let_go ? NULL : context_slot_find(key);
	uint64 released;

	if (slot == NULL ||
		(TimestampTz) pg_atomic_read_u64(&slot->due) != DT_NOEND)
		return false;
	released = pg_atomic_read_u64(&slot->released);
	return sequence > released || has_failed(key, released);
}

bool
contexts_hold_in_pass(uint64 key, uint64 sequence, bool old, TimestampTz *until)
{
	const PassContext *context =
		hash_search(pass_contexts, &key, HASH_FIND, NULL);

	if (let_go)
		return false;
	if (context == NULL || (sequence > context->committed && !old))
	{
		/* what has come since is for the next pass */
		*until = pass_time;
		return context != NULL || context_slot_find(key) != NULL;
	}
	*until = context->due;
	if (sequence > context->released)
		return context->due > pass_time;
	return context->due == DT_NOEND && has_failed(key, context->released);
}

/* Takes note of how things are with all contexts. */
static void
note_contexts(DatabaseState *state)
{
	HASH_SEQ_STATUS scan;
	PassContext *context;
	ContextSlot *slot;
	int at = 0;

	hash_seq_init(&scan, pass_contexts);
	while ((context = hash_seq_search(&scan)) != NULL)
		(void) hash_search(pass_contexts, &context->key, HASH_REMOVE, NULL);
	pass_time = GetCurrentTimestamp();
	while ((slot = context_slot_next(state->database, &at)) != NULL)
	{
		PassContext seen = {.key = pg_atomic_read_u64(&slot->key)};

		pg_read_barrier();
		seen.committed = pg_atomic_read_u64(&slot->committed);
		seen.released = pg_atomic_read_u64(&slot->released);
		seen.due = (TimestampTz) pg_atomic_read_u64(&slot->due);
		pg_read_barrier();
		if (seen.key == 0 || pg_atomic_read_u64(&slot->key) != seen.key)
			continue;
		context = hash_search(pass_contexts, &seen.key, HASH_ENTER, NULL);
		*context = seen;
	}
}

void
contexts_let_go(void)
{
	let_go = true;
}

/*
 * Requests and passes
 */

bool
contexts_want_pass(void)
{
	dlist_iter iter;

	dlist_foreach(iter, &requests)
	{
		if (!dlist_container(Request, node, iter.cur)->pass)
			return true;
	}
	return false;
}

bool
contexts_in_pass(void)
{
	dlist_iter iter;

	dlist_foreach(iter, &requests)
	{
		const Request *request = dlist_container(Request, node, iter.cur);

		if (request->pass && !request->read)
			return true;
	}
	return false;
}

void
contexts_pass_begun(DatabaseState *state)
{
	HASH_SEQ_STATUS scan;
	DiscardedContext *context;
	dlist_iter iter;

	hash_seq_init(&scan, discarded);
	while ((context = hash_seq_search(&scan)) != NULL)
		context->gone = context_slot_find(context->key) == NULL;
	note_contexts(state);

	dlist_foreach(iter, &requests)
	{
		dlist_container(Request, node, iter.cur)->pass = true;
	}
}

void
contexts_pass_read(uint64 moment)
{
	HASH_SEQ_STATUS scan;
	DiscardedContext *context;
	dlist_iter iter;

	/* the pass has seen all that these have left */
	hash_seq_init(&scan, discarded);
	while ((context = hash_seq_search(&scan)) != NULL)
		if (context->gone)
			(void) hash_search(discarded, &context->key, HASH_REMOVE, NULL);

	dlist_foreach(iter, &requests)
	{
		Request *request = dlist_container(Request, node, iter.cur);

		if (request->moment > moment)
			request->pass = request->read;
		request->read = request->pass;
	}
}

void
contexts_pass_lost(void)
{
	dlist_iter iter;

	dlist_foreach(iter, &requests)
	{
		Request *request = dlist_container(Request, node, iter.cur);

		request->pass = request->read;
	}
}

bool
contexts_requested(uint64 key)
{
	return find_request(key) != NULL;
}

void
contexts_refused(uint64 key, const char *words)
{
	Request *request = find_request(key);

	if (request != NULL && request->refused == NULL)
		request->refused = MemoryContextStrdup(contexts_context, words);
}

/* Ends a request; error is NULL if it went well. */
static void
finish(DatabaseState *state, Request *request, int code, const char *error)
{
	ContextSlot *slot = context_slot_find(request->key);

	if (error != NULL && slot != NULL)
	{
		FailedContext *failure =
			hash_search(failures, &request->key, HASH_ENTER, NULL);

		failure->released = pg_atomic_read_u64(&slot->released);
		worker_log_error(state, request->key, error);
	}
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	/* it may have gone */
	slot = context_slot_find(request->key);
	if (slot != NULL)
	{
		slot->publish_finished = Max(slot->publish_finished, request->number);
		if (error == NULL)
			slot->publish_succeeded =
				Max(slot->publish_succeeded, request->number);
		slot->publish_error_code = code;
		collector_copy_error(slot->publish_error, error ? error : "");
	}
	LWLockRelease(&state->lock);
	ConditionVariableBroadcast(&state->changed);
	free_request(request);
}

void
contexts_fail(DatabaseState *state, uint64 key, int code, const char *error)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &requests)
	{
		Request *request = dlist_container(Request, node, iter.cur);

		/* what has just been delivered has not failed */
		if (key == 0 ? !request->read || batch_has_undone(request->key)
					 : request->key == key)
			finish(state, request, code, error);
	}
}

static bool
is_served(const Request *request)
{
	return request->read && !batch_has_context(request->key);
}

bool
contexts_are_served(void)
{
	dlist_iter iter;

	dlist_foreach(iter, &requests)
	{
		if (is_served(dlist_container(Request, node, iter.cur)))
			return true;
	}
	return false;
}

void
contexts_finish_served(DatabaseState *state)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &requests)
	{
		Request *request = dlist_container(Request, node, iter.cur);

		if (is_served(request))
			finish(state, request,
				   request->refused ? ERRCODE_CONNECTION_FAILURE : 0,
				   request->refused);
	}
}
