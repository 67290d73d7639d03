/*
 * refused.c
 *		Events that the collector refuses for good.
 *
 * They are kept as dead letters, with its words; a standby, which has no place
 * for them, drops them.  Everything else of the request is delivered.
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "data/store.h"
#include "worker/contexts.h"
#include "worker/refused.h"
#include "worker/response.h"

#define REPORT_MS 60000

static int64 unreported = 0; /* events */
static char *last_words = NULL; /* of the collector, on one of them */
static CollectorPause report_pause;

/* An item is not going to be taken. */
static void
refuse(DatabaseState *state, Batch *batch, int item, const char *words)
{
	const BatchItem *which = &batch->items[item];
	char *before = last_words;

	/* without control characters, in the database's encoding */
	last_words = store_message(words, TopMemoryContext);
	if (before != NULL)
		pfree(before);
	if (which->context != 0)
		contexts_refused(which->context, last_words);
	batch_refuse(batch, item, last_words);

	unreported += which->exposures + which->goals;
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->publish.exposures_rejected += which->exposures;
	state->publish.goals_rejected += which->goals;
	LWLockRelease(&state->lock);
}

bool
refused_blame(DatabaseState *state, Batch *batch, const HttpAnswer *answer,
			  bool html)
{
	Response response;
	char *words;
	bool found = false;

	response_parse(&response, answer->body, answer->body_length, &batch->key);
	if (batch_count(batch) == 1)
	{
		if (response.nerrors > 0)
			words = response.errors[0].text;
		else if (html || answer->body_length == 0)
			words = psprintf("status %d", answer->status);
		else
			words = collector_quote(&batch->key, answer->body);
		refuse(state, batch, batch->first, words);
		return true;
	}

	for (int i = 0; i < response.nerrors; i++)
	{
		int index = response.errors[i].batch_index;

		if (index < 0 || index >= batch_count(batch) ||
			batch_is_refused(batch, batch->first + index))
			continue;
		refuse(state, batch, batch->first + index, response.errors[i].text);
		found = true;
	}
	return found;
}

void
refused_report(bool in_recovery)
{
	if (unreported == 0 || collector_pause_left(&report_pause) > 0)
		return;
	ereport(WARNING,
			(errmsg_plural("absmartly: the collector has refused %lld event",
						   "absmartly: the collector has refused %lld events",
						   (unsigned long) unreported, (long long) unreported),
			 errdetail("The last reason: %s.", last_words),
			 in_recovery ? errhint("A standby can not keep them.")
						 : errhint("The view \"absmartly_dead_letters\" shows "
								   "them.")));
	unreported = 0;
	collector_pause(&report_pause, GetCurrentTimestamp(), REPORT_MS);
}
