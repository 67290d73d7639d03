/*
 * assign.h
 *		Assignment: the assigner, the choice and the decision table
 *		(protocol 3).
 */
#ifndef ABSMARTLY_ENGINE_ASSIGN_H
#define ABSMARTLY_ENGINE_ASSIGN_H

#include "engine.h"
#include "expression.h"
#include "hash.h"
#include "snapshot.h"

/* Assignment.flags */
#define ASSIGN_ASSIGNED 0x0001
#define ASSIGN_ELIGIBLE 0x0002
#define ASSIGN_OVERRIDDEN 0x0004
#define ASSIGN_FULL_ON 0x0008
#define ASSIGN_CUSTOM 0x0010
#define ASSIGN_AUDIENCE_MISMATCH 0x0020
#define ASSIGN_RULE_OVERRIDE 0x0040
#define ASSIGN_HELD_OUT 0x0080

/* The rows of the decision table (protocol 3) */
typedef enum AssignRow
{
	ASSIGN_ROW_OVERRIDE = 1,
	ASSIGN_ROW_UNKNOWN,
	ASSIGN_ROW_RULE,
	ASSIGN_ROW_STRICT_MISMATCH,
	ASSIGN_ROW_HOLDOUT, /* between 4 and 5 */
	ASSIGN_ROW_FULL_ON,
	ASSIGN_ROW_NO_UNIT,
	ASSIGN_ROW_NOT_ELIGIBLE,
	ASSIGN_ROW_CUSTOM,
	ASSIGN_ROW_CHOSEN
} AssignRow;

typedef enum AudienceVerdict
{
	AUDIENCE_NO_VERDICT = 0,
	AUDIENCE_MATCH,
	AUDIENCE_MISMATCH
} AudienceVerdict;

typedef struct Assignment
{
	int32_t variant;
	uint32_t flags; /* ASSIGN_... */
	int64_t holdout_id; /* 0 unless held out */
} Assignment;

/* How the decision came about, for explanations */
typedef struct AssignTrace
{
	AssignRow row;
	int rule; /* SnapRule.position of the rule, or -1 */
	AudienceVerdict verdict; /* as evaluated, or no verdict */
	bool audience_evaluated;
	bool has_unit;
	UnitHash unit;
	double traffic_probability; /* valid if has_unit */
	int traffic_choice;
	double probability;
	int choice;
	int holdout; /* index of the holdout that holds it out, or -1 */
} AssignTrace;

/*
 * Gives the hash of the unit that the experiment's unit type names; false if
 * it is not set.  Called at most once for an assignment, only if needed.
 */
typedef bool (*AssignUnitSource)(void *context,
								 const SnapExperiment *experiment,
								 UnitHash *hash);

typedef struct AssignRequest
{
	const SnapImage *snapshot;
	const SnapExperiment *experiment; /* NULL: unknown */
	const int32_t *override; /* NULL: none */
	const int32_t *custom; /* NULL: none */
	AssignUnitSource unit;
	void *unit_context;
	EvalContext *eval; /* used only for rules and audiences */
	AssignTrace *trace; /* NULL: not wanted */
} AssignRequest;

/* murmur3 of the twelve bytes, as a double in [0, 1] */
extern double assign_probability(uint32_t unit_murmur, uint32_t seed_hi,
								 uint32_t seed_lo);

/* -1 for an empty split */
extern int assign_choose(const double *split, uint32_t count,
						 double probability);

/* ENGINE_OK, ENGINE_STACK or ENGINE_INTERRUPTED */
extern EngineStatus assign(const AssignRequest *request, Assignment *result);

/*
 * The result of the experiment's rules: true and the variant of the first rule
 * that applies, whatever its range (protocol 3, "Rules"), false if none does.
 * *position is the rule's SnapRule.position.
 */
extern EngineStatus assign_rules(const SnapImage *snapshot,
								 const SnapExperiment *experiment,
								 EvalContext *eval, bool *applies,
								 int32_t *variant, int *position);

/* The audience's verdict. */
extern EngineStatus assign_audience(const SnapImage *snapshot,
									const SnapExperiment *experiment,
									EvalContext *eval,
									AudienceVerdict *verdict);

#endif /* ABSMARTLY_ENGINE_ASSIGN_H */
