/*
 * work.h
 *		Work whose length depends on the data: it is counted, and the host is
 *		asked now and then whether it shall go on.
 *
 * Whoever works through something of any length says what it costs, in units
 * of about a nanosecond, and leaves off when work_goes_on() says so.  What it
 * returns then has no meaning: like an arena that has failed, the Work
 * remembers, and whoever has begun the work looks at stopped.
 */
#ifndef ABSMARTLY_ENGINE_WORK_H
#define ABSMARTLY_ENGINE_WORK_H

#include "engine.h"

/* The host is asked each time that so much has been spent. */
#define WORK_SLICE ((uint64_t) 65536)

/* Bytes that one unit pays for where they are compared or searched. */
#define WORK_BYTES 4

/* Long texts are gone through in pieces of so many bytes. */
#define WORK_PIECE ((size_t) 32768)

typedef struct Work
{
	uint64_t left; /* until the host is asked again */
	uint64_t granted; /* in all, with what is left */
	bool stopped; /* the host wants the work to end */
	bool (*interrupted)(void *context); /* NULL: never */
	void *context;
	bool (*stack_ok)(void); /* whether there is stack left for a recursion;
							 * NULL: always */
} Work;

/* Asks the host; the slow part of work_goes_on(). */
extern bool work_ask(Work *work, uint64_t cost);

/* Counts what is about to be done; false: it shall not be done. */
static inline bool
work_goes_on(Work *work, uint64_t cost)
{
	if (ENGINE_LIKELY(cost < work->left))
	{
		work->left -= cost;
		return true;
	}
	return work_ask(work, cost);
}

static inline bool
work_has_stack(const Work *work)
{
	return work->stack_ok == NULL || work->stack_ok();
}

/* All that has been spent. */
static inline uint64_t
work_spent(const Work *work)
{
	return work->granted - work->left;
}

static inline void
work_begin(Work *work, bool (*interrupted)(void *context), void *context)
{
	work->left = WORK_SLICE;
	work->granted = WORK_SLICE;
	work->stopped = false;
	work->interrupted = interrupted;
	work->context = context;
	work->stack_ok = NULL;
}

#endif /* ABSMARTLY_ENGINE_WORK_H */
