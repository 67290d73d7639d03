/*
 * held.h
 *		Where records are parked that session contexts hold.
 *
 * The worker's memory: it finds them there without a search among what stays.
 */
#ifndef ABSMARTLY_EVENTS_HELD_H
#define ABSMARTLY_EVENTS_HELD_H

#include "postgres.h"

#include "storage/block.h"

#include "events/outbox.h"

/* A page on which a context has records. */
typedef struct HeldPage
{
	BlockNumber page;
	uint64 context;
} HeldPage;

/* Once for a process: memory for it. */
extern void held_init(MemoryContext memory);

/* Takes note of a record, also if it is known already. */
extern void held_add(uint64 context, BlockNumber page, uint64 sequence);

/* A page is going to be read: what is still held there is found again. */
extern void held_forget(uint64 context, BlockNumber page);
extern void held_forget_all(void);

/*
 * The pages on which records are free now, in ascending order, palloc'd in the
 * memory of held_init(); NULL: none.
 */
extern HeldPage *held_free_pages(OutboxHolds holds, int *count);

#endif /* ABSMARTLY_EVENTS_HELD_H */
