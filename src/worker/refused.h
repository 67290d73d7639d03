/*
 * refused.h
 *		Events that the collector refuses for good.
 */
#ifndef ABSMARTLY_WORKER_REFUSED_H
#define ABSMARTLY_WORKER_REFUSED_H

#include "postgres.h"

#include "worker/batch.h"

/*
 * The collector blames events of a batch: refuses those that it names, or the
 * only one that there is.  False if that was none, or if the collector names
 * events again and again: the guilty one is to be found by sending less at a
 * time.
 */
extern bool refused_blame(DatabaseState *state, Batch *batch,
						  const HttpAnswer *answer, bool html);

/* Reports what was refused, at most once a minute. */
extern void refused_report(bool in_recovery);

#endif /* ABSMARTLY_WORKER_REFUSED_H */
