/*
 * context_assignment.c
 *		What the session's context assigns, exposes and tracks (DESIGN 3.2,
 *		protocol 4, 5, 8).
 *
 * Before the context is ready there is nothing: variant 0, the default, no
 * event, no error.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "context/assignments.h"
#include "context/context.h"
#include "context/events.h"
#include "events/buffer.h"
#include "sql/convert.h"
#include "sql/evaluation.h"
#include "sql/function.h"
#include "sql/jsonb_value.h"
#include "sql/recording.h"
#include "sql/text.h"
#include "sql/variables.h"

/* state of a call site: the experiment asked for last */
typedef struct TreatmentSite
{
	uint64 key; /* of the context; 0: nothing is cached */
	ContextEntry *entry;
	size_t length;
	char name[2 * ENGINE_MAX_NAME]; /* in the database's encoding */
} TreatmentSite;

typedef struct VariableSite
{
	Target target;
} VariableSite;

/*
 * Treatments
 */

static inline bool
site_holds(const TreatmentSite *site, const Context *context, const text *name)
{
	return site->key == context->key &&
		   site->length == VARSIZE_ANY_EXHDR(name) &&
		   memcmp(site->name, VARDATA_ANY(name), site->length) == 0;
}

/* The entry of an experiment by its name. */
static ContextEntry *
find_entry(TreatmentSite *site, Context *context, const text *name)
{
	ContextEntry *entry;
	size_t length = VARSIZE_ANY_EXHDR(name);
	bool kept;

	if (likely(site_holds(site, context, name)))
		return site->entry;
	entry = assignments_use(
		context, evaluation_name(name, "name of an experiment"), &kept);
	site->key = 0;
	if (kept && length <= sizeof(site->name))
	{
		site->key = context->key;
		site->entry = entry;
		site->length = length;
		memcpy(site->name, VARDATA_ANY(name), length);
	}
	return entry;
}

/*
 * The entry with the assignment of this moment; NULL: there is no data yet.
 */
static inline ContextEntry *
assign_argument(FunctionCallInfo fcinfo, Context *context)
{
	TreatmentSite *site = call_site_state(fcinfo, sizeof(TreatmentSite));
	ContextEntry *entry;

	if (unlikely(context->state != CONTEXT_READY))
	{
		context_require_open(context);
		return NULL;
	}
	entry = find_entry(site, context, PG_GETARG_TEXT_PP(0));
	assignments_assign(context, entry);
	return entry;
}

PG_FUNCTION_INFO_V1(absmartly_context_peek_treatment);

/*
 * absmartly_context_peek_treatment(experiment text) -> int; strict
 *
 * The variant, 0 before the context is ready.  55000 without a context, or if
 * it is finalized; 22023 for a name that is too long, 54001 for expressions
 * that are nested too deep.
 */
SQL_FUNCTION(absmartly_context_peek_treatment)
{
	const ContextEntry *entry = assign_argument(fcinfo, context_current());

	PG_RETURN_INT32(entry ? entry->assignment.variant : 0);
}

PG_FUNCTION_INFO_V1(absmartly_context_treatment);

/*
 * absmartly_context_treatment(experiment text) -> int; strict
 *
 * The same, and queues the exposure unless that was done for this assignment.
 * Errors also of recording (events/buffer.h).
 */
SQL_FUNCTION(absmartly_context_treatment)
{
	Context *context = context_current();
	ContextEntry *entry = assign_argument(fcinfo, context);
	int32 variant;

	if (entry == NULL)
		PG_RETURN_INT32(0);
	/* an event logger may see to it that there is another one afterwards */
	variant = entry->assignment.variant;
	context_expose(context, entry);
	PG_RETURN_INT32(variant);
}

/*
 * Variables
 */

/* A variable's value among those of an assignment; NULL: it has none. */
static const Jsonb *
member_value(const Jsonb *variables, const text *key)
{
	JsonbValue found;

	if (getKeyJsonValueFromContainer(
			unconstify(JsonbContainer *, &variables->root), VARDATA_ANY(key),
			(int) VARSIZE_ANY_EXHDR(key), &found) == NULL)
		return NULL;
	return JsonbValueToJsonb(&found);
}

/*
 * The value of a variable: that of the first of its experiments, lowest id
 * first, whose assignment gives one.  NULL: none does.  All that are looked at
 * on the way are exposed, also those that give no value.
 */
static const Jsonb *
find_value(Context *context, const text *key, bool expose)
{
	EngineText utf8 = evaluation_name(key, "key of a variable");
	uint64 context_key = context->key;
	uint64 data_number = context->data_number;
	const SnapVariable *variable = NULL;

	if (context->snapshot != NULL)
		variable =
			snapshot_find_variable(context->snapshot, utf8.data, utf8.length);
	for (uint32 i = 0; variable != NULL && i < variable->nexperiments; i++)
	{
		const SnapImage *snapshot = context->snapshot;
		const uint32_t *indexes = snapshot_at(snapshot, variable->experiments);
		const SnapExperiment *experiment =
			snapshot_experiment(snapshot, indexes[i]);
		const Jsonb *value = NULL;
		ContextEntry *entry;
		bool kept;

		CHECK_FOR_INTERRUPTS();
		entry = assignments_use(
			context, snapshot_text(snapshot, experiment->name), &kept);

		assignments_assign(context, entry);
		if (entry->variables == NULL)
			continue;
		/* before an event logger sees to it that there are other ones */
		if (entry->assignment.flags &
			(ASSIGN_ASSIGNED | ASSIGN_OVERRIDDEN | ASSIGN_RULE_OVERRIDE))
			value = member_value(entry->variables, key);
		if (expose)
			context_expose(context, entry);
		if (value != NULL)
			return value;
		/* or that there are other experiments, or none */
		context = context_of_key(context_key);
		if (context == NULL || context->data_number != data_number)
			break;
	}
	return NULL;
}

/*
 * The value is a copy: making it one of the default's type may run code of the
 * user's, and this may end the context.
 */
static Datum
variable_value(FunctionCallInfo fcinfo, bool expose)
{
	Context *context = context_current();
	VariableSite *site = call_site_state(fcinfo, sizeof(VariableSite));
	const Jsonb *value = NULL;
	const text *key;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	key = PG_GETARG_TEXT_PP(0);
	context_require_open(context);
	if (context->state == CONTEXT_READY)
		value = find_value(context, key, expose);
	return variable_result(fcinfo, &site->target, key, value, 1);
}

PG_FUNCTION_INFO_V1(absmartly_context_peek_variable_value);

/*
 * absmartly_context_peek_variable_value(key text, default_value anycompatible)
 * -> anycompatible
 *
 * The default, which may be NULL, before the context is ready.  A NULL key
 * gives NULL.
 */
SQL_FUNCTION(absmartly_context_peek_variable_value)
{
	return variable_value(fcinfo, false);
}

PG_FUNCTION_INFO_V1(absmartly_context_variable_value);

/*
 * absmartly_context_variable_value(key text, default_value anycompatible)
 * -> anycompatible
 *
 * The same, and exposes the experiments that it consults.
 */
SQL_FUNCTION(absmartly_context_variable_value)
{
	return variable_value(fcinfo, true);
}

PG_FUNCTION_INFO_V1(absmartly_context_variable_keys);

/* absmartly_context_variable_keys() -> jsonb: key -> names of experiments */
SQL_FUNCTION(absmartly_context_variable_keys)
{
	Context *context = context_current();

	context_require_open(context);
	PG_RETURN_JSONB_P(variable_keys(context->snapshot));
}

/*
 * Custom fields
 */

PG_FUNCTION_INFO_V1(absmartly_context_custom_field_keys);

/*
 * absmartly_context_custom_field_keys() -> jsonb
 *		An array of the names over all experiments, in order of appearance.
 */
SQL_FUNCTION(absmartly_context_custom_field_keys)
{
	Context *context = context_current();
	const SnapImage *snapshot = context->snapshot;
	JsonbParseState *state = NULL;
	JsonbValue *root;

	context_require_open(context);
	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (uint32 i = 0; snapshot != NULL && i < snapshot->nfield_keys; i++)
	{
		const SnapName *keys = snapshot_at(snapshot, snapshot->field_keys);
		const text *name = (const text *) DatumGetPointer(
			evaluation_stored(snapshot, keys[i].text));
		JsonbValue value = {.type = jbvString};

		CHECK_FOR_INTERRUPTS();
		value.val.string.val = VARDATA_ANY(name);
		value.val.string.len = (int) VARSIZE_ANY_EXHDR(name);
		pushJsonbValue(&state, WJB_ELEM, &value);
	}
	root = pushJsonbValue(&state, WJB_END_ARRAY, NULL);
	PG_RETURN_JSONB_P(JsonbValueToJsonb(root));
}

/* A custom field, by the arguments (experiment, name); NULL if unknown. */
static const SnapField *
find_field(FunctionCallInfo fcinfo, Context *context)
{
	EngineText experiment_name =
		evaluation_name(PG_GETARG_TEXT_PP(0), "name of an experiment");
	EngineText name =
		evaluation_name(PG_GETARG_TEXT_PP(1), "name of a custom field");
	const SnapExperiment *experiment;

	context_require_open(context);
	if (context->snapshot == NULL)
		return NULL;
	experiment = snapshot_find_experiment(
		context->snapshot, experiment_name.data, experiment_name.length);
	if (experiment == NULL)
		return NULL;
	return snapshot_find_field(context->snapshot, experiment, name.data,
							   name.length);
}

PG_FUNCTION_INFO_V1(absmartly_context_custom_field_value);

/*
 * absmartly_context_custom_field_value(experiment text, name text) -> jsonb;
 * strict
 *
 * NULL for a field or an experiment that is unknown, a null, and a number that
 * is none.
 */
SQL_FUNCTION(absmartly_context_custom_field_value)
{
	Context *context = context_current();
	const SnapField *field = find_field(fcinfo, context);

	if (field == NULL || field->state != SNAP_FIELD_VALUE)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(datumCopy(
		evaluation_stored(context->snapshot, field->value), false, -1));
}

PG_FUNCTION_INFO_V1(absmartly_context_custom_field_value_type);

/*
 * absmartly_context_custom_field_value_type(experiment text, name text) ->
 * text; strict
 */
SQL_FUNCTION(absmartly_context_custom_field_value_type)
{
	Context *context = context_current();
	const SnapField *field = find_field(fcinfo, context);

	if (field == NULL || field->type_text.offset == 0)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(datumCopy(
		evaluation_stored(context->snapshot, field->type_text), false, -1));
}

/*
 * Goals
 */

/* The properties as JSON text, data NULL for null. */
static EngineText
goal_properties(FunctionCallInfo fcinfo, EngineText goal)
{
	EngineText none = {NULL, 0};
	JsonbValue scalar;

	if (PG_ARGISNULL(1))
		return none;
	if (jsonb_datum_is_object(PG_GETARG_DATUM(1)))
		return recording_json(PG_GETARG_DATUM(1), "properties");
	if (!JsonbExtractScalar(&PG_GETARG_JSONB_P(1)->root, &scalar) ||
		scalar.type != jbvNull)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("Goal '%s' properties must be of type object.",
							   text_for_message(goal))));
	return none;
}

PG_FUNCTION_INFO_V1(absmartly_context_track);

/*
 * absmartly_context_track(goal text, properties jsonb,
 *						   achieved_at timestamptz) -> void
 *
 * Queues a goal; a NULL one queues nothing.  22023 for properties that are no
 * object and a name that cannot be, 22008 for an infinite time, 55000 if the
 * context is finalized, and the errors of recording (events/buffer.h).
 */
SQL_FUNCTION(absmartly_context_track)
{
	Context *context = context_current();
	EngineText properties;
	EngineText goal;
	int64 achieved_at;

	if (PG_ARGISNULL(0))
		PG_RETURN_VOID();
	context_require_open(context);
	goal = recording_goal_name(PG_GETARG_TEXT_PP(0));
	properties = goal_properties(fcinfo, goal);
	achieved_at = PG_ARGISNULL(2) ? buffer_time_ms(GetCurrentTimestamp())
								  : recording_time_ms(PG_GETARG_TIMESTAMPTZ(2),
													  "achieved_at");
	context_track(context, goal, properties, achieved_at);
	PG_RETURN_VOID();
}
