/*
 * assign.c
 *		Assignment: the assigner, the choice and the decision table
 *		(protocol 3).
 *
 * assign() is called for every row of a bulk assignment.  Most experiments
 * have neither rules nor audience nor holdouts and let all traffic in; for
 * these it comes down to one unit hash, one murmur3 of twelve bytes and one
 * choice.
 */
#include "assign.h"

/* The unit of one assignment, asked for when it is first needed. */
typedef struct UnitState
{
	bool asked;
	bool present;
	UnitHash hash;
} UnitState;

/* The assigner: the probability of a unit under a pair of seeds. */
double
assign_probability(uint32_t unit_murmur, uint32_t seed_hi, uint32_t seed_lo)
{
	uint32_t hash = 0;

	hash = murmur3_word(hash, seed_lo);
	hash = murmur3_word(hash, seed_hi);
	hash = murmur3_word(hash, unit_murmur);

	/* the product, not the quotient: they differ in the last bit */
	return murmur3_finish(hash, 12) * (1.0 / 4294967295.0);
}

/* chooseVariant(): plain sums in doubles, from left to right. */
int
assign_choose(const double *split, uint32_t count, double probability)
{
	double sum = 0.0;

	for (uint32_t i = 0; i < count; i++)
	{
		sum += split[i];
		if (probability < sum)
			return (int) i;
	}
	return (int) count - 1;
}

static inline double
split_probability(const SnapSplit *split, const UnitHash *unit)
{
	return assign_probability(unit->murmur, split->seed_hi, split->seed_lo);
}

static inline int
split_choose(const SnapImage *snapshot, const SnapSplit *split,
			 double probability)
{
	return assign_choose(snapshot_at(snapshot, split->weights), split->count,
						 probability);
}

/* Whether the unit is set; asks the caller once at most. */
static inline bool
unit_is_set(const AssignRequest *request, UnitState *unit)
{
	if (!unit->asked)
	{
		unit->asked = true;
		unit->present =
			(request->experiment->flags & SNAP_HAS_UNIT_TYPE) != 0 &&
			request->unit(request->unit_context, request->experiment,
						  &unit->hash);
	}
	return unit->present;
}

/*
 * The first rule that applies.  What can be decided without attributes, the
 * environment above all, the compiler has decided; a rule whose conditions
 * abort does not apply.
 */
EngineStatus
assign_rules(const SnapImage *snapshot, const SnapExperiment *experiment,
			 EvalContext *eval, bool *applies, int32_t *variant, int *position)
{
	const SnapRule *rules = snapshot_at(snapshot, experiment->rules);

	*applies = false;
	*variant = 0;
	*position = -1;
	for (uint32_t i = 0; i < experiment->nrules; i++)
	{
		if (rules[i].conditions != 0)
		{
			EngineStatus status;
			Value value;
			bool aborted;

			status =
				expression_evaluate(snapshot_at(snapshot, rules[i].conditions),
									eval, &value, &aborted);
			if (status != ENGINE_OK)
				return status;
			if (aborted || !value_to_boolean(&value))
				continue;
		}
		*applies = true;
		*variant = rules[i].variant;
		*position = rules[i].position;
		return ENGINE_OK;
	}
	return ENGINE_OK;
}

/* The audience's verdict (protocol 6, "Audience string"). */
EngineStatus
assign_audience(const SnapImage *snapshot, const SnapExperiment *experiment,
				EvalContext *eval, AudienceVerdict *verdict)
{
	EngineStatus status;
	Value value;
	bool aborted;

	*verdict = AUDIENCE_NO_VERDICT;
	if (experiment->audience == 0)
		return ENGINE_OK;
	status = expression_evaluate(snapshot_at(snapshot, experiment->audience),
								 eval, &value, &aborted);
	if (status == ENGINE_OK && !aborted)
		*verdict =
			value_to_boolean(&value) ? AUDIENCE_MATCH : AUDIENCE_MISMATCH;
	return status;
}

/* The first of the experiment's holdouts that holds the unit out, or -1. */
static int
find_holdout(const SnapImage *snapshot, const SnapExperiment *experiment,
			 const UnitHash *unit)
{
	const SnapHoldout *holdouts = snapshot_at(snapshot, snapshot->holdouts);
	const uint32_t *indexes = snapshot_at(snapshot, experiment->holdouts);

	for (uint32_t i = 0; i < experiment->nholdouts; i++)
	{
		const SnapSplit *split = &holdouts[indexes[i]].split;

		if (split_choose(snapshot, split, split_probability(split, unit)) == 0)
			return (int) indexes[i];
	}
	return -1;
}

/*
 * The decision table.  trace, if given, gets what was found out on the way;
 * the flags that rows have in common come in with *result.
 */
static EngineStatus
decide(const AssignRequest *request, UnitState *unit, Assignment *result,
	   AssignRow *row, AssignTrace *trace)
{
	const SnapImage *snapshot = request->snapshot;
	const SnapExperiment *experiment = request->experiment;
	EngineStatus status;

	result->variant = 0;
	result->flags = ASSIGN_ELIGIBLE;
	result->holdout_id = 0;

	if (request->override != NULL)
	{
		result->variant = *request->override;
		result->flags |= ASSIGN_OVERRIDDEN;
		*row = ASSIGN_ROW_OVERRIDE;
		return ENGINE_OK;
	}
	if (experiment == NULL)
	{
		*row = ASSIGN_ROW_UNKNOWN;
		return ENGINE_OK;
	}

	if (experiment->nrules > 0)
	{
		bool applies;
		int32_t variant;
		int position;

		status = assign_rules(snapshot, experiment, request->eval, &applies,
							  &variant, &position);
		if (status != ENGINE_OK)
			return status;
		if (applies && variant >= 0 &&
			(uint32_t) variant < experiment->nvariants)
		{
			result->variant = variant;
			result->flags |= ASSIGN_RULE_OVERRIDE;
			*row = ASSIGN_ROW_RULE;
			if (trace != NULL)
				trace->rule = position;
			return ENGINE_OK;
		}
	}

	if (experiment->audience != 0)
	{
		AudienceVerdict verdict;

		status = assign_audience(snapshot, experiment, request->eval, &verdict);
		if (status != ENGINE_OK)
			return status;
		if (trace != NULL)
		{
			trace->audience_evaluated = true;
			trace->verdict = verdict;
		}
		if (verdict == AUDIENCE_MISMATCH)
		{
			result->flags |= ASSIGN_AUDIENCE_MISMATCH;
			if ((experiment->flags & SNAP_AUDIENCE_STRICT) != 0)
			{
				*row = ASSIGN_ROW_STRICT_MISMATCH;
				return ENGINE_OK;
			}
		}
	}

	if (experiment->nholdouts > 0 && unit_is_set(request, unit))
	{
		int holdout = find_holdout(snapshot, experiment, &unit->hash);

		if (holdout >= 0)
		{
			const SnapHoldout *holdouts =
				snapshot_at(snapshot, snapshot->holdouts);

			result->flags |= ASSIGN_ASSIGNED | ASSIGN_HELD_OUT;
			result->holdout_id = holdouts[holdout].id;
			*row = ASSIGN_ROW_HOLDOUT;
			if (trace != NULL)
				trace->holdout = holdout;
			return ENGINE_OK;
		}
	}

	if (experiment->full_on_variant != 0)
	{
		result->variant = experiment->full_on_variant;
		result->flags |= ASSIGN_ASSIGNED | ASSIGN_FULL_ON;
		*row = ASSIGN_ROW_FULL_ON;
		return ENGINE_OK;
	}

	if (!unit_is_set(request, unit))
	{
		*row = ASSIGN_ROW_NO_UNIT;
		return ENGINE_OK;
	}

	result->flags |= ASSIGN_ASSIGNED;
	if ((experiment->flags & SNAP_ALL_TRAFFIC) == 0)
	{
		const SnapSplit *traffic = &experiment->traffic;

		if (split_choose(snapshot, traffic,
						 split_probability(traffic, &unit->hash)) != 1)
		{
			result->flags &= ~(uint32_t) ASSIGN_ELIGIBLE;
			*row = ASSIGN_ROW_NOT_ELIGIBLE;
			return ENGINE_OK;
		}
	}

	if (request->custom != NULL)
	{
		result->variant = *request->custom;
		result->flags |= ASSIGN_CUSTOM;
		*row = ASSIGN_ROW_CUSTOM;
		return ENGINE_OK;
	}

	result->variant =
		split_choose(snapshot, &experiment->split,
					 split_probability(&experiment->split, &unit->hash));
	*row = ASSIGN_ROW_CHOSEN;
	return ENGINE_OK;
}

/* Both choices, whether they decided or not: explanations show them. */
static void
trace_choices(const AssignRequest *request, UnitState *unit, AssignTrace *trace)
{
	const SnapExperiment *experiment = request->experiment;

	if (experiment == NULL || !unit_is_set(request, unit))
		return;
	trace->has_unit = true;
	trace->unit = unit->hash;
	trace->traffic_probability =
		split_probability(&experiment->traffic, &unit->hash);
	trace->traffic_choice = split_choose(
		request->snapshot, &experiment->traffic, trace->traffic_probability);
	trace->probability = split_probability(&experiment->split, &unit->hash);
	trace->choice =
		split_choose(request->snapshot, &experiment->split, trace->probability);
}

/* One assignment; see assign.h. */
EngineStatus
assign(const AssignRequest *request, Assignment *result)
{
	AssignTrace *trace = request->trace;
	EngineStatus status;
	UnitState unit = {.asked = false};
	AssignRow row;

	if (ENGINE_LIKELY(trace == NULL))
		return decide(request, &unit, result, &row, NULL);

	*trace = (AssignTrace){.rule = -1,
						   .verdict = AUDIENCE_NO_VERDICT,
						   .traffic_choice = -1,
						   .choice = -1,
						   .holdout = -1};
	status = decide(request, &unit, result, &row, trace);
	if (status != ENGINE_OK)
		return status;
	trace->row = row;
	trace_choices(request, &unit, trace);
	return ENGINE_OK;
}
