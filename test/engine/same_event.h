/*
 * same_event.h
 *		Whether events are the same, for tests of the encoding.
 */
#ifndef ABSMARTLY_TEST_SAME_EVENT_H
#define ABSMARTLY_TEST_SAME_EVENT_H

#include <string.h>

#include "events/encoding.h"

static inline bool
same_text(EngineText left, EngineText right)
{
	return (left.data == NULL) == (right.data == NULL) &&
		   left.length == right.length &&
		   (left.length == 0 ||
			memcmp(left.data, right.data, left.length) == 0);
}

static inline bool
same_context(const EventContext *left, const EventContext *right)
{
	bool same = left->nunits == right->nunits &&
				left->nattributes == right->nattributes &&
				left->historic == right->historic &&
				(left->nattributes == 0 ||
				 (left->own_times == right->own_times &&
				  (left->own_times || left->set_at == right->set_at)));

	for (uint32_t i = 0; same && i < left->nunits; i++)
		same = same_text(left->units[i].type, right->units[i].type) &&
			   memcmp(left->units[i].hash, right->units[i].hash,
					  ENCODING_UNIT_BYTES) == 0;
	for (uint32_t i = 0; same && i < left->nattributes; i++)
		same =
			same_text(left->attributes[i].name, right->attributes[i].name) &&
			same_text(left->attributes[i].value, right->attributes[i].value) &&
			(!left->own_times ||
			 left->attributes[i].set_at == right->attributes[i].set_at);
	return same;
}

static inline bool
same_exposure(const EventExposure *left, const EventExposure *right)
{
	return left->id == right->id && same_text(left->name, right->name) &&
		   same_text(left->unit_type, right->unit_type) &&
		   left->variant == right->variant && left->flags == right->flags &&
		   left->has_holdouts == right->has_holdouts &&
		   left->holdout_id == right->holdout_id &&
		   left->exposed_at == right->exposed_at;
}

static inline bool
same_goal(const EventGoal *left, const EventGoal *right)
{
	return same_text(left->name, right->name) &&
		   same_text(left->properties, right->properties) &&
		   left->achieved_at == right->achieved_at;
}

#endif /* ABSMARTLY_TEST_SAME_EVENT_H */
