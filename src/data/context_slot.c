/*
 * context_slot.c
 *		What a session and the worker share about the session's context.
 *
 * A key has the number of its slot in its low bits, so that the worker finds
 * the slot of a record without a search.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "datatype/timestamp.h"
#include "miscadmin.h"

#include "compat.h"
#include "data/context_slot.h"

/* MaxBackends has 18 bits at most, and auxiliary processes are few */
#define SLOT_BITS 20
#define SLOT_MASK ((UINT64CONST(1) << SLOT_BITS) - 1)

void
context_slot_id(uint64 key, char id[CONTEXT_ID_SIZE])
{
	snprintf(id, CONTEXT_ID_SIZE, "%016llx", (unsigned long long) key);
}

static int
my_number(void)
{
	int number = backend_slot_number();

	return shared_available() && number >= 0 && number < backend_slot_count()
			   ? number
			   : -1;
}

ContextSlot *
context_slot_mine(void)
{
	int number = my_number();

	return number >= 0 ? &shared_slot(number)->context : NULL;
}

uint64
context_slot_new_key(void)
{
	uint64 number = (uint64) Max(my_number(), 0);
	uint64 key = pg_prng_uint64(&pg_global_prng_state) >> 1;

	/* never 0, and a bigint above 0 */
	return (key & ~SLOT_MASK) | (UINT64CONST(1) << SLOT_BITS) | number;
}

/*
 * What the worker does to a slot it does under the lock of the state, after a
 * look at the key: so it never meets another context's.
 */
static void
set_key(ContextSlot *slot, DatabaseState *state, uint64 key)
{
	if (state != NULL)
		LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	/* a full barrier: who sees the key sees the rest */
	(void) pg_atomic_exchange_u64(&slot->key, key);
	if (state != NULL)
		LWLockRelease(&state->lock);
}

void
context_slot_leave(void)
{
	ContextSlot *slot = context_slot_mine();
	DatabaseState *state;

	if (slot == NULL || pg_atomic_read_u64(&slot->key) == 0)
		return;
	state = shared_my_database();
	/* before it is gone, lest the worker sends what it must drop */
	if (state != NULL && pg_atomic_read_u32(&slot->discards) != 0)
	{
		LWLockAcquire(&state->lock, LW_EXCLUSIVE);
		state->discarded[state->discarded_next] =
			pg_atomic_read_u64(&slot->key);
		state->discarded_next =
			(state->discarded_next + 1) % SHARED_MAX_DISCARDED;
		LWLockRelease(&state->lock);
	}
	set_key(slot, state, 0);
	if ((int64) pg_atomic_read_u64(&slot->pending) != 0)
		context_slots_changed(state);
}

void
context_slot_enter(uint64 key, bool held)
{
	ContextSlot *slot = context_slot_mine();

	if (slot == NULL)
		return;
	context_slot_leave();
	slot->database = MyDatabaseId;
	slot->publish_requested = 0;
	slot->publish_finished = 0;
	slot->publish_succeeded = 0;
	slot->publish_error_code = 0;
	slot->publish_error[0] = '\0';
	slot->refresh_ticket = 0;
	pg_atomic_write_u64(&slot->committed, 0);
	pg_atomic_write_u64(&slot->released, 0);
	pg_atomic_write_u64(&slot->due, held ? (uint64) DT_NOEND : 0);
	pg_atomic_write_u32(&slot->discards, 0);
	pg_atomic_write_u64(&slot->pending, 0);
	set_key(slot, shared_my_database(), key);
}

void
context_slot_commit(uint64 key, uint64 sequence)
{
	ContextSlot *slot = context_slot_mine();

	if (slot != NULL && pg_atomic_read_u64(&slot->key) == key)
		pg_atomic_write_u64(&slot->committed, sequence);
}

void
context_slots_changed(DatabaseState *state)
{
	if (state == NULL)
		return;
	pg_atomic_fetch_add_u32(&state->contexts_changed, 1);
	shared_wake_worker(state);
}

ContextSlot *
context_slot_find(uint64 key)
{
	uint64 number = key & SLOT_MASK;
	ContextSlot *slot;

	if (!shared_available() || number >= (uint64) backend_slot_count())
		return NULL;
	slot = &shared_slot((int) number)->context;
	return pg_atomic_read_u64(&slot->key) == key ? slot : NULL;
}

bool
context_slot_holds(uint64 key, uint64 sequence, TimestampTz now)
{
	ContextSlot *slot = context_slot_find(key);

	return slot != NULL && sequence > pg_atomic_read_u64(&slot->released) &&
		   (TimestampTz) pg_atomic_read_u64(&slot->due) > now;
}

bool
context_slot_discards(uint64 key)
{
	ContextSlot *slot = context_slot_find(key);
	DatabaseState *state = shared_my_database();
	bool gone = false;

	if (slot != NULL)
		return pg_atomic_read_u32(&slot->discards) != 0;
	if (state == NULL)
		return false;
	LWLockAcquire(&state->lock, LW_SHARED);
	for (int i = 0; i < SHARED_MAX_DISCARDED && !gone; i++)
		gone = state->discarded[i] == key;
	LWLockRelease(&state->lock);
	return gone;
}

TimestampTz
context_slots_next_due(Oid database, TimestampTz now)
{
	TimestampTz next = DT_NOEND;
	ContextSlot *slot;
	int at = 0;

	while ((slot = context_slot_next(database, &at)) != NULL)
	{
		TimestampTz due = (TimestampTz) pg_atomic_read_u64(&slot->due);

		if (due > now && due < next &&
			(int64) pg_atomic_read_u64(&slot->pending) > 0)
			next = due;
	}
	return next;
}

void
context_slot_settle(uint64 key, uint64 events)
{
	DatabaseState *state = shared_my_database();
	ContextSlot *slot;

	if (state == NULL)
		return;
	LWLockAcquire(&state->lock, LW_SHARED);
	slot = context_slot_find(key);
	if (slot != NULL)
		pg_atomic_fetch_sub_u64(&slot->pending, (int64) events);
	LWLockRelease(&state->lock);
}

void
context_slot_count(uint64 key, uint64 events)
{
	context_slot_settle(key, (uint64) - (int64) events);
}

ContextSlot *
context_slot_next(Oid database, int *at)
{
	while (*at < backend_slot_count())
	{
		ContextSlot *slot = &shared_slot((*at)++)->context;

		if (pg_atomic_read_u64(&slot->key) != 0 && slot->database == database)
			return slot;
	}
	return NULL;
}
