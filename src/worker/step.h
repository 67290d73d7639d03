/*
 * step.h
 *		Steps of the delivery that may raise, without ending the worker.
 */
#ifndef ABSMARTLY_WORKER_STEP_H
#define ABSMARTLY_WORKER_STEP_H

#include "postgres.h"

#include "data/shared.h"

typedef void (*StepFunction)(DatabaseState *state, void *argument);

/*
 * Runs a step, outside of transactions.  False if it raised: what the error
 * left behind is cleared away, it is reported (at most once a minute, as
 * "what: message"), and steps should rest for a while before it is tried
 * again.  False, too, if the worker is to leave: that ends the step.
 */
extern bool step_try(DatabaseState *state, const char *what, StepFunction step,
					 void *argument);

/* After an error: transaction, locks and scans that it has left are ended. */
extern void step_clean_up(void);

/* Milliseconds that steps should rest. */
extern long step_pause_left(void);
extern void step_end_pause(void);

#endif /* ABSMARTLY_WORKER_STEP_H */
