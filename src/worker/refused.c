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
/* so many answers about a batch are believed when they name events */
#define MAX_BLAMED 3

static int64 unreported = 0; /* events */
static char *last_words = NULL; /* of the collector, on one of them */
static CollectorPause report_pause;

/* An event of an item is not going to be taken. */
static void
refuse(DatabaseState *state, Batch *batch, int item, uint32 number, bool goal)
{
	if (!batch_refuse(batch, item, number, goal, last_words))
		return;
	unreported++;
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	if (goal)
		state->publish.goals_rejected++;
	else
		state->publish.exposures_rejected++;
	LWLockRelease(&state->lock);
}

/* Takes note of what the collector says about events of an item. */
static void
take_words(const Batch *batch, int item, const char *words)
{
	uint64 context = batch->items[item].context;
	char *before = last_words;

	/* without control characters, in the database's encoding */
	last_words = store_message(words, TopMemoryContext);
	if (before != NULL)
		pfree(before);
	if (context != 0)
		contexts_refused(context, last_words);
}

static void
refuse_all(DatabaseState *state, Batch *batch, int item, const BatchList *list,
		   const char *words)
{
	take_words(batch, item, words);
	for (uint32 i = 0; i < list->nexposures; i++)
		refuse(state, batch, item, list->exposures[i], false);
	for (uint32 i = 0; i < list->ngoals; i++)
		refuse(state, batch, item, list->goals[i], true);
}

/*
 * Refuses what an error is about.  False if it does not say which event that
 * is: an index without a list may be of either, if there are both.
 */
static bool
refuse_named(DatabaseState *state, Batch *batch, int item,
			 const BatchList *list, const ResponseMessage *error)
{
	bool goal = error->part == RESPONSE_GOALS ||
				(error->part == RESPONSE_UNKNOWN && list->nexposures == 0);
	uint32 index = (uint32) error->event_index;

	if (error->part == RESPONSE_SHARED || list->nexposures + list->ngoals == 1)
	{
		refuse_all(state, batch, item, list, error->text);
		return true;
	}
	if (error->part == RESPONSE_UNKNOWN && list->nexposures > 0 &&
		list->ngoals > 0)
		return false;
	if (error->event_index < 0 ||
		index >= (goal ? list->ngoals : list->nexposures))
		return false;
	take_words(batch, item, error->text);
	refuse(state, batch, item,
		   goal ? list->goals[index] : list->exposures[index], goal);
	return true;
}

/* The words for a request of one event. */
static const char *
words_for_one(const Batch *batch, const Response *response,
			  const HttpAnswer *answer, bool html)
{
	if (response->nerrors > 0)
		return response->errors[0].text;
	if (html || answer->body_length == 0)
		return psprintf("status %d", answer->status);
	return collector_quote(&batch->key, answer->body);
}

bool
refused_blame(DatabaseState *state, Batch *batch, const HttpAnswer *answer,
			  bool html)
{
	int nitems = batch_count(batch);
	BatchList *lists = palloc0(nitems * sizeof(BatchList));
	Response response;
	bool found = false;

	(void) response_parse(&response, answer->body, answer->body_length,
						  &batch->key);
	if (batch_events(batch) == 1)
	{
		batch_list_events(batch, batch->first, &lists[0]);
		refuse_all(state, batch, batch->first, &lists[0],
				   words_for_one(batch, &response, answer, html));
		return true;
	}
	/* it may be wrong about them */
	if (batch->blamed == MAX_BLAMED)
		return false;

	for (int i = 0; i < response.nerrors; i++)
	{
		const ResponseMessage *error = &response.errors[i];
		int index = error->batch_index;

		if (index < 0 && nitems == 1)
			index = 0;
		if (index < 0 || index >= nitems)
			continue;
		/* as they were when the request was sent */
		if (lists[index].exposures == NULL)
			batch_list_events(batch, batch->first + index, &lists[index]);
		found |= refuse_named(state, batch, batch->first + index, &lists[index],
							  error);
	}
	if (found)
		batch->blamed++;
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
