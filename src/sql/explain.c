/*
 * explain.c
 *		absmartly_explain(): why these units get this variant.
 */
#include "postgres.h"

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "data/store.h"
#include "engine/json.h"
#include "sql/evaluation.h"
#include "sql/function.h"
#include "sql/jsonb_value.h"
#include "sql/text.h"
#include "sql/units.h"

/* jsonb under construction */
typedef struct Builder
{
	JsonbParseState *state;
	JsonbValue *root;
} Builder;

/* What an explanation is about. */
typedef struct Subject
{
	const DataVersion *version;
	const SnapImage *snapshot;
	const SnapExperiment *experiment; /* NULL: unknown */
	const text *name;
	const int32 *override;
	UnitValue unit;
	Evaluation evaluation;
	Assignment assignment;
	AssignTrace trace;
} Subject;

/*
 * Building jsonb.  A NULL key is that of an array's element.
 */

static void
push(Builder *builder, JsonbIteratorToken token, JsonbValue *value)
{
	builder->root = pushJsonbValue(&builder->state, token, value);
}

static void
put_key(Builder *builder, const char *key)
{
	JsonbValue name;

	if (key == NULL)
		return;
	name.type = jbvString;
	name.val.string.val = unconstify(char *, key);
	name.val.string.len = (int) strlen(key);
	push(builder, WJB_KEY, &name);
}

static void
put_value(Builder *builder, const char *key, JsonbValue *value)
{
	put_key(builder, key);
	push(builder, key ? WJB_VALUE : WJB_ELEM, value);
}

static void
put_null(Builder *builder, const char *key)
{
	JsonbValue value = {.type = jbvNull};

	put_value(builder, key, &value);
}

static void
put_boolean(Builder *builder, const char *key, bool boolean)
{
	JsonbValue value = {.type = jbvBool};

	value.val.boolean = boolean;
	put_value(builder, key, &value);
}

static void
put_integer(Builder *builder, const char *key, int64 integer)
{
	JsonbValue value = {.type = jbvNumeric};

	value.val.numeric = int64_to_numeric(integer);
	put_value(builder, key, &value);
}

static void
put_double(Builder *builder, const char *key, double number)
{
	JsonbValue value = {.type = jbvNumeric};

	value.val.numeric = jsonb_number_from_double(number);
	put_value(builder, key, &value);
}

/* text is in the database's encoding */
static void
put_text(Builder *builder, const char *key, const char *data, size_t length)
{
	JsonbValue value = {.type = jbvString};

	value.val.string.val = unconstify(char *, data);
	value.val.string.len = (int) length;
	put_value(builder, key, &value);
}

static void
put_utf8(Builder *builder, const char *key, EngineText utf8)
{
	const char *message = text_for_message(utf8);

	put_text(builder, key, message, strlen(message));
}

static void
put_jsonb(Builder *builder, const char *key, const Jsonb *jsonb)
{
	JsonbValue value = {.type = jbvBinary};

	value.val.binary.data = unconstify(JsonbContainer *, &jsonb->root);
	value.val.binary.len = (int) (VARSIZE(jsonb) - VARHDRSZ);
	put_value(builder, key, &value);
}

static void
begin_object(Builder *builder, const char *key)
{
	put_key(builder, key);
	push(builder, WJB_BEGIN_OBJECT, NULL);
}

static void
end_object(Builder *builder)
{
	push(builder, WJB_END_OBJECT, NULL);
}

/*
 * A tree as jsonb, null where jsonb cannot hold it.
 */
static void
put_tree(Builder *builder, const char *key, const JsonNode *tree)
{
	SnapshotHost host;
	const void *bytes;
	size_t length;
	EngineStatus status;

	store_host_init(&host, CurrentMemoryContext);
	status = host.store_json(host.context, tree, &bytes, &length);
	/* an interrupt may look like a want of memory */
	CHECK_FOR_INTERRUPTS();
	if (status == ENGINE_NO_MEMORY || status == ENGINE_INTERRUPTED)
		evaluation_raise(status);
	if (status == ENGINE_OK)
		put_jsonb(builder, key, bytes);
	else
		put_null(builder, key);
}

/*
 * Parts of the explanation
 */

/* One of the two choices: the split, the unit's probability, the outcome. */
static void
put_choice(Builder *builder, const char *key, const Subject *subject,
		   const SnapSplit *split, double probability, int choice)
{
	const double *weights = snapshot_at(subject->snapshot, split->weights);
	uint32 index;

	begin_object(builder, key);
	put_key(builder, "split");
	push(builder, WJB_BEGIN_ARRAY, NULL);
	for (index = 0; index < split->count; index++)
	{
		CHECK_FOR_INTERRUPTS();
		put_double(builder, NULL, weights[index]);
	}
	push(builder, WJB_END_ARRAY, NULL);
	if (subject->trace.has_unit)
	{
		put_double(builder, "probability", probability);
		put_integer(builder, "choice", choice);
	}
	else
	{
		put_null(builder, "probability");
		put_null(builder, "choice");
	}
	end_object(builder);
}

static void
put_unit(Builder *builder, const Subject *subject)
{
	const SnapExperiment *experiment = subject->experiment;

	begin_object(builder, "unit");
	if (experiment->flags & SNAP_HAS_UNIT_TYPE)
		put_utf8(builder, "type",
				 snapshot_text(subject->snapshot, experiment->unit_type));
	else
		put_null(builder, "type");
	if (subject->trace.has_unit)
		put_text(builder, "hash", subject->trace.unit.text, UNIT_HASH_LENGTH);
	else
		put_null(builder, "hash");
	end_object(builder);
}

/* The operand of a list, or of an "and", with that index. */
static const JsonNode *
find_operand(const JsonNode *list, int index)
{
	if (list->kind == JSON_OBJECT && list->count > 0)
		list = json_member_value(list, 0);
	if (list->kind != JSON_ARRAY || (uint32_t) index >= list->count)
		return NULL;
	return json_element(list, (uint32_t) index);
}

/*
 * The innermost clause of a filter that made it fail, NULL if there is no
 * telling.  *first is the index of the clause of the filter that it is in.
 */
static const JsonNode *
find_deciding_clause(Subject *subject, const JsonNode *filter, int *first)
{
	const ExprNode *expression =
		snapshot_at(subject->snapshot, subject->experiment->audience);
	const JsonNode *clause = NULL;

	*first = -1;
	while (filter != NULL)
	{
		int index;
		EngineStatus status = expression_deciding_clause(
			expression, &subject->evaluation.context, &expression, &index);

		if (status != ENGINE_OK)
			evaluation_raise(status);
		if (expression == NULL)
			break;
		if (*first < 0)
			*first = index;
		filter = find_operand(filter, index);
		if (filter != NULL)
			clause = filter;
	}
	return clause;
}

/*
 * The audience: its text as JSON if it is any, its verdict, and the clause
 * that made it a mismatch.  The verdict stands here also where something
 * else has decided.
 */
static void
put_audience(Builder *builder, Subject *subject)
{
	static const char *const verdicts[] = {"none", "match", "mismatch"};
	const SnapExperiment *experiment = subject->experiment;
	EngineText source =
		snapshot_text(subject->snapshot, experiment->audience_text);
	AudienceVerdict verdict = AUDIENCE_NO_VERDICT;
	const JsonNode *tree = NULL;
	const JsonNode *clause_tree;
	ArenaSource chunks;
	Arena arena;
	int first;
	EngineStatus status = ENGINE_OK;

	if (experiment->audience_text.offset == 0 || source.length == 0)
	{
		put_null(builder, "audience");
		return;
	}
	if (experiment->audience != 0)
		status = assign_audience(subject->snapshot, experiment,
								 &subject->evaluation.context, &verdict);
	if (status != ENGINE_OK)
		evaluation_raise(status);

	store_arena_source(&chunks, CurrentMemoryContext);
	arena_init(&arena, &chunks);
	status = json_parse(source.data, source.length, ENGINE_MAX_DEPTH, &arena,
						&tree, NULL);
	CHECK_FOR_INTERRUPTS();
	if (status == ENGINE_NO_MEMORY)
		evaluation_raise(status);

	begin_object(builder, "audience");
	if (status == ENGINE_OK)
		put_tree(builder, "expression", tree);
	else
	{
		tree = NULL;
		put_utf8(builder, "expression", source);
	}
	put_boolean(builder, "strict",
				(experiment->flags & SNAP_AUDIENCE_STRICT) != 0);
	put_text(builder, "verdict", verdicts[verdict], strlen(verdicts[verdict]));
	clause_tree = NULL;
	if (tree != NULL && verdict == AUDIENCE_MISMATCH)
		clause_tree =
			find_deciding_clause(subject, json_get(tree, "filter"), &first);
	if (clause_tree != NULL)
	{
		put_integer(builder, "clause_index", first);
		put_tree(builder, "clause", clause_tree);
	}
	end_object(builder);
	arena_release(&arena);
}

/* The rule that applies, whether or not it decided. */
static void
put_rules(Builder *builder, Subject *subject)
{
	const SnapExperiment *experiment = subject->experiment;
	const SnapRule *rules = snapshot_at(subject->snapshot, experiment->rules);
	bool applies = false;
	int32_t variant;
	int position;
	EngineStatus status;
	uint32 index;

	if (experiment->rules_text.offset == 0 ||
		experiment->rules_text.length == 0)
	{
		put_null(builder, "rule");
		return;
	}
	status = assign_rules(subject->snapshot, experiment,
						  &subject->evaluation.context, &applies, &variant,
						  &position);
	if (status != ENGINE_OK)
		evaluation_raise(status);
	if (!applies)
	{
		put_null(builder, "rule");
		return;
	}

	begin_object(builder, "rule");
	put_integer(builder, "position", position);
	put_integer(builder, "variant", variant);
	put_boolean(builder, "in_range",
				variant >= 0 && (uint32_t) variant < experiment->nvariants);
	put_null(builder, "name");
	for (index = 0; index < experiment->nrules; index++)
	{
		if (rules[index].position == position && rules[index].name.offset != 0)
			put_utf8(builder, "name",
					 snapshot_text(subject->snapshot, rules[index].name));
	}
	end_object(builder);
}

/* The experiment's holdouts, and which of them holds the unit out. */
static void
put_holdouts(Builder *builder, const Subject *subject)
{
	const SnapExperiment *experiment = subject->experiment;
	const SnapHoldout *holdouts =
		snapshot_at(subject->snapshot, subject->snapshot->holdouts);
	const uint32_t *indexes =
		snapshot_at(subject->snapshot, experiment->holdouts);
	uint32 index;

	put_key(builder, "holdouts");
	push(builder, WJB_BEGIN_ARRAY, NULL);
	for (index = 0; index < experiment->nholdouts; index++)
	{
		const SnapHoldout *holdout = &holdouts[indexes[index]];
		double probability = 0;
		int choice = -1;

		CHECK_FOR_INTERRUPTS();
		begin_object(builder, NULL);
		put_integer(builder, "id", holdout->id);
		if (subject->trace.has_unit)
		{
			probability = assign_probability(subject->trace.unit.murmur,
											 holdout->split.seed_hi,
											 holdout->split.seed_lo);
			choice = assign_choose(
				snapshot_at(subject->snapshot, holdout->split.weights),
				holdout->split.count, probability);
		}
		put_choice(builder, "membership", subject, &holdout->split, probability,
				   choice);
		put_boolean(builder, "held_out", choice == 0);
		end_object(builder);
	}
	push(builder, WJB_END_ARRAY, NULL);
}

static void
put_result(Builder *builder, const Subject *subject)
{
	const Assignment *assignment = &subject->assignment;
	const SnapExperiment *experiment = subject->experiment;
	uint32 flags = assignment->flags;

	begin_object(builder, "result");
	put_integer(builder, "variant", assignment->variant);
	put_boolean(builder, "assigned", (flags & ASSIGN_ASSIGNED) != 0);
	put_boolean(builder, "eligible", (flags & ASSIGN_ELIGIBLE) != 0);
	put_boolean(builder, "overridden", (flags & ASSIGN_OVERRIDDEN) != 0);
	put_boolean(builder, "full_on", (flags & ASSIGN_FULL_ON) != 0);
	put_boolean(builder, "custom", (flags & ASSIGN_CUSTOM) != 0);
	put_boolean(builder, "audience_mismatch",
				(flags & ASSIGN_AUDIENCE_MISMATCH) != 0);
	put_boolean(builder, "rule_override", (flags & ASSIGN_RULE_OVERRIDE) != 0);
	put_boolean(builder, "held_out", (flags & ASSIGN_HELD_OUT) != 0);
	put_integer(builder, "holdout_id", assignment->holdout_id);
	if (experiment != NULL && assignment->variant >= 0 &&
		(uint32) assignment->variant < experiment->nvariants)
		put_jsonb(builder, "variables",
				  snapshot_at(subject->snapshot,
							  snapshot_variant(subject->snapshot, experiment,
											   (uint32) assignment->variant)
								  ->variables.offset));
	else
		put_null(builder, "variables");
	end_object(builder);
}

/* The row of the decision table, as a word and as a sentence. */
static void
put_reason(Builder *builder, const Subject *subject)
{
	const char *reason = "";
	const char *sentence = "";
	int variant = (int) subject->assignment.variant;

	switch (subject->trace.row)
	{
		case ASSIGN_ROW_OVERRIDE:
			reason = "override";
			sentence = psprintf(
				"absmartly.overrides sets variant %d for this experiment.",
				variant);
			break;
		case ASSIGN_ROW_UNKNOWN:
			reason = "unknown_experiment";
			sentence = "The data has no experiment of this name.";
			break;
		case ASSIGN_ROW_RULE:
			reason = "rule";
			sentence = psprintf("The assignment rule at position %d applies "
								"and gives variant %d.",
								subject->trace.rule, variant);
			break;
		case ASSIGN_ROW_STRICT_MISMATCH:
			reason = "audience_mismatch";
			sentence = "The attributes do not match the audience, which is "
					   "strict.";
			break;
		case ASSIGN_ROW_HOLDOUT:
			reason = "held_out";
			sentence = psprintf("Holdout %lld holds the unit out.",
								(long long) subject->assignment.holdout_id);
			break;
		case ASSIGN_ROW_FULL_ON:
			reason = "full_on";
			sentence = psprintf("The experiment is full on: everybody gets "
								"variant %d.",
								variant);
			break;
		case ASSIGN_ROW_NO_UNIT:
			reason = "no_unit";
			if (subject->experiment->flags & SNAP_HAS_UNIT_TYPE)
				sentence = psprintf(
					"No unit of type \"%s\" is given.",
					text_for_message(snapshot_text(
						subject->snapshot, subject->experiment->unit_type)));
			else
				sentence = "The experiment has no unit type.";
			break;
		case ASSIGN_ROW_NOT_ELIGIBLE:
			reason = "not_eligible";
			sentence = "The traffic split leaves the unit out.";
			break;
		case ASSIGN_ROW_CUSTOM:
			reason = "custom";
			sentence =
				psprintf("A custom assignment sets variant %d.", variant);
			break;
		case ASSIGN_ROW_CHOSEN:
			reason = "split";
			sentence =
				psprintf("The split gives the unit variant %d.", variant);
			break;
	}
	put_text(builder, "reason", reason, strlen(reason));
	put_text(builder, "explanation", sentence, strlen(sentence));
}

static void
put_experiment(Builder *builder, Subject *subject)
{
	const SnapExperiment *experiment = subject->experiment;

	put_integer(builder, "id", experiment->id);
	put_integer(builder, "iteration", experiment->iteration);
	put_integer(builder, "full_on_variant", experiment->full_on_variant);
	put_unit(builder, subject);
	put_rules(builder, subject);
	put_audience(builder, subject);
	put_holdouts(builder, subject);
	put_choice(builder, "traffic", subject, &experiment->traffic,
			   subject->trace.traffic_probability,
			   subject->trace.traffic_choice);
	put_choice(builder, "assignment", subject, &experiment->split,
			   subject->trace.probability, subject->trace.choice);
}

PG_FUNCTION_INFO_V1(absmartly_explain);

/*
 * absmartly_explain(units jsonb, experiment text, attributes jsonb) -> jsonb
 *
 * Everything that decides on the variant.  NULL units or experiment give NULL,
 * and so does data that is missing while on_not_ready is control.  Errors as
 * absmartly_peek_treatment().
 */
SQL_FUNCTION(absmartly_explain)
{
	AssignRequest request = {0};
	EngineText unit_type = {NULL, 0};
	Builder builder = {0};
	Subject subject = {0};
	EngineText name;
	EngineStatus status;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	if (!PG_ARGISNULL(2))
		evaluation_check_object(PG_GETARG_DATUM(2), "attributes");
	subject.name = PG_GETARG_TEXT_PP(1);
	name = evaluation_name(subject.name, "name of an experiment");
	subject.version = evaluation_data();
	if (subject.version == NULL)
		PG_RETURN_NULL();

	subject.snapshot = data_version_snapshot(subject.version);
	subject.experiment =
		snapshot_find_experiment(subject.snapshot, name.data, name.length);
	if (subject.experiment != NULL &&
		(subject.experiment->flags & SNAP_HAS_UNIT_TYPE))
		unit_type =
			snapshot_text(subject.snapshot, subject.experiment->unit_type);
	units_find(PG_GETARG_JSONB_P(0), unit_type, &subject.unit);
	evaluation_begin(&subject.evaluation, subject.version,
					 settings_include_system_attributes, !PG_ARGISNULL(2),
					 PG_GETARG_DATUM(2));
	subject.override = evaluation_override(subject.name);

	request.snapshot = subject.snapshot;
	request.experiment = subject.experiment;
	request.override = subject.override;
	request.unit = unit_from_value;
	request.unit_context = &subject.unit;
	request.eval = &subject.evaluation.context;
	request.trace = &subject.trace;
	status = assign(&request, &subject.assignment);
	if (status != ENGINE_OK)
		evaluation_raise(status);

	begin_object(&builder, NULL);
	put_text(&builder, "experiment", VARDATA_ANY(subject.name),
			 VARSIZE_ANY_EXHDR(subject.name));
	put_boolean(&builder, "known", subject.experiment != NULL);
	put_integer(&builder, "generation", (int64) subject.version->generation);
	put_utf8(&builder, "environment",
			 snapshot_text(subject.snapshot, subject.snapshot->environment));
	if (subject.override != NULL)
		put_integer(&builder, "override", *subject.override);
	else
		put_null(&builder, "override");
	if (subject.experiment != NULL)
		put_experiment(&builder, &subject);
	put_result(&builder, &subject);
	put_reason(&builder, &subject);
	end_object(&builder);
	PG_RETURN_JSONB_P(JsonbValueToJsonb(builder.root));
}
