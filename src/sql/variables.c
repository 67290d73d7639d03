/*
 * variables.c
 *		Variables, custom fields and the list of experiments (protocol 4, 5).
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/memutils.h"

#include "data/shared.h"
#include "sql/convert.h"
#include "sql/evaluation.h"
#include "sql/exposure.h"
#include "sql/function.h"
#include "sql/jsonb_value.h"
#include "sql/text.h"
#include "sql/units.h"
#include "sql/variables.h"

/* columns of absmartly_experiments_get() */
#define EXPERIMENTS_COLUMNS 14

/* state of a call site of a function that gives a variable's value */
typedef struct VariableSite
{
	NameCache key;
	Target target;
} VariableSite;

/* Arguments of one call, as all its assignments see them. */
typedef struct VariableCall
{
	ExposureCall *exposure; /* NULL: it peeks */
	UnitList *list; /* the units of a call that exposes */
	UnitSlots units; /* of one that peeks */
	bool has_attributes;
	Datum attributes;
	bool begun; /* evaluation is set up */
	Evaluation evaluation;
} VariableCall;

static text *
stored_text(const SnapImage *snapshot, SnapStored stored)
{
	return (text *) DatumGetPointer(evaluation_stored(snapshot, stored));
}

/* The assignment of the call's units to one experiment. */
static void
assign_call(VariableCall *call, const DataVersion *version,
			const SnapExperiment *experiment, Assignment *assignment)
{
	const SnapImage *snapshot = data_version_snapshot(version);
	AssignRequest request = {0};
	EngineStatus status;

	if (!call->begun && evaluation_needed(experiment))
	{
		evaluation_begin(&call->evaluation, version,
						 settings_include_system_attributes,
						 call->has_attributes, call->attributes);
		call->begun = true;
	}
	request.snapshot = snapshot;
	request.experiment = experiment;
	request.override =
		evaluation_override(stored_text(snapshot, experiment->name_text));
	if (call->exposure != NULL)
	{
		unit_list_choose(call->list, exposure_unit_type(snapshot, experiment));
		request.unit = unit_from_list;
		request.unit_context = call->list;
	}
	else
	{
		request.unit = unit_from_slots;
		request.unit_context = &call->units;
	}
	request.eval = &call->evaluation.context;
	status = assign(&request, assignment);
	if (status != ENGINE_OK)
		evaluation_raise(status);
}

/*
 * The value of a variable for the call's units (protocol 4): that of the first
 * of its experiments, lowest id first, that gives one.  NULL: none does.  All
 * that are looked at on the way are exposed, also those that give no value.
 */
static const Jsonb *
find_value(VariableCall *call, const DataVersion *version,
		   const SnapVariable *variable)
{
	const SnapImage *snapshot = data_version_snapshot(version);
	const uint32_t *indexes = snapshot_at(snapshot, variable->experiments);
	const EngineText no_name = {NULL, 0};
	uint32 index;

	for (index = 0; index < variable->nexperiments; index++)
	{
		const SnapExperiment *experiment =
			snapshot_experiment(snapshot, indexes[index]);
		Assignment assignment;
		const SnapStored *value;

		CHECK_FOR_INTERRUPTS();
		/* experiments are asked for by name, so a later namesake answers */
		if (experiment->flags & SNAP_SHADOWED)
		{
			EngineText name = snapshot_text(snapshot, experiment->name);

			experiment =
				snapshot_find_experiment(snapshot, name.data, name.length);
		}
		assign_call(call, version, experiment, &assignment);
		if (assignment.variant < 0 ||
			(uint32) assignment.variant >= experiment->nvariants)
			continue;
		if (call->exposure != NULL)
			exposure_queue(call->exposure, snapshot, experiment, no_name,
						   exposure_identity(snapshot, experiment, no_name),
						   &assignment, call->list);
		if ((assignment.flags &
			 (ASSIGN_ASSIGNED | ASSIGN_OVERRIDDEN | ASSIGN_RULE_OVERRIDE)) == 0)
			continue;
		value = snapshot_variant_value(
			snapshot,
			snapshot_variant(snapshot, experiment, (uint32) assignment.variant),
			variable);
		if (value != NULL)
			return snapshot_at(snapshot, value->offset);
	}
	return NULL;
}

/*
 * Whether nobody of the session has warned yet.  Parallel workers ask their
 * leader's slot, which remembers for whom it was, since it has been others'.
 * Without shared memory each worker is on its own.
 */
static bool
is_first_warning(void)
{
	static bool warned = false;
	uint32 session;
	int number;

	if (warned)
		return false;
	warned = true;
	if (!shared_available())
		return true;
	if (IsParallelWorker())
	{
		session = (uint32) MyProc->lockGroupLeader->pid;
		number = parallel_leader_slot_number();
	}
	else
	{
		session = (uint32) MyProcPid;
		number = backend_slot_number();
	}
	return pg_atomic_exchange_u32(&shared_slot(number)->warned, session) !=
		   session;
}

/* Says that a value does not fit, once in a session. */
static void
warn_unfit(const text *key, Oid type)
{
	if (!is_first_warning())
		return;
	ereport(WARNING,
			(errcode(ERRCODE_DATATYPE_MISMATCH),
			 errmsg("the value of variable \"%s\" does not fit type %s",
					text_to_cstring(key), format_type_be(type)),
			 errdetail("The default is used instead. Further warnings of this "
					   "kind are suppressed in this session."),
			 errhint("Use a default of type jsonb to get the value as it "
					 "is.")));
}

/* Nothing that was looked up is used once the value has been converted. */
Datum
variable_result(FunctionCallInfo fcinfo, Target *target, const text *key,
				const Jsonb *value, int argument)
{
	Datum result;
	bool is_null;

	if (value != NULL)
	{
		if (unlikely(!OidIsValid(target->type)))
		{
			Oid type = get_fn_expr_argtype(fcinfo->flinfo, argument);

			if (!OidIsValid(type))
				elog(ERROR, "could not determine the type of the default");
			target_init(target, type, fcinfo->flinfo->fn_mcxt);
		}
		if (target_convert(target, value, &result, &is_null))
		{
			if (is_null)
				PG_RETURN_NULL();
			return result;
		}
		warn_unfit(key, target->type);
	}
	if (PG_ARGISNULL(argument))
		PG_RETURN_NULL();
	return PG_GETARG_DATUM(argument);
}

/*
 * The arguments of both functions begin with (units jsonb, key text,
 * default_value, attributes jsonb).  The caller has checked attributes; with
 * exposure, list is where the units go.
 */
static Datum
variable_value(FunctionCallInfo fcinfo, ExposureCall *exposure, UnitList *list)
{
	VariableSite *site = call_site_state(fcinfo, sizeof(VariableSite));
	const DataVersion *version;
	const SnapVariable *variable = NULL;
	const Jsonb *units;
	const Jsonb *value = NULL;
	JsonbBuffer buffer;
	const text *key;
	VariableCall call;

	units = jsonb_argument(PG_GETARG_DATUM(0), &buffer);
	key = PG_GETARG_TEXT_PP(1);

	call.exposure = exposure;
	call.list = list;
	call.has_attributes = !PG_ARGISNULL(3);
	call.attributes = PG_GETARG_DATUM(3);
	call.begun = false;

	version = evaluation_data();
	if (version != NULL)
		variable = evaluation_variable(&site->key, version, key);
	if (exposure != NULL)
		unit_list_read(units, list);
	else if (variable != NULL)
		units_read(units, data_version_snapshot(version), &call.units);
	else
	{
		UnitValue none;

		units_find(units, (EngineText){NULL, 0}, &none);
	}
	if (variable != NULL)
		value = find_value(&call, version, variable);
	return variable_result(fcinfo, &site->target, key, value, 2);
}

PG_FUNCTION_INFO_V1(absmartly_peek_variable_value);

/*
 * absmartly_peek_variable_value(units jsonb, key text,
 *								 default_value anycompatible, attributes jsonb)
 * -> anycompatible
 *
 * The value of a variable for these units, or the default, which may be NULL.
 *NULL units or key give NULL.  A value that does not fit the type (convert.h)
 *gives the default and one warning per session.  Errors as
 *absmartly_peek_treatment().
 */
SQL_FUNCTION(absmartly_peek_variable_value)
{
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	if (!PG_ARGISNULL(3))
		evaluation_check_object(PG_GETARG_DATUM(3), "attributes");
	return variable_value(fcinfo, NULL, NULL);
}

PG_FUNCTION_INFO_V1(absmartly_variable_value);

/*
 * absmartly_variable_value(units jsonb, key text, default_value anycompatible,
 *							attributes jsonb, exposed_at timestamptz,
 *							historic boolean) -> anycompatible
 *
 * The same as absmartly_peek_variable_value(), and queues the exposures of the
 * experiments that it consults.  Errors also as absmartly_treatment().
 */
SQL_FUNCTION(absmartly_variable_value)
{
	ExposureCall exposure;
	UnitList list;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	exposure_begin(&exposure, fcinfo, 3, 4);
	return variable_value(fcinfo, &exposure, &list);
}

static void
push_text(JsonbParseState **state, JsonbIteratorToken token, const text *string)
{
	JsonbValue value = {.type = jbvString};

	value.val.string.val = VARDATA_ANY(string);
	value.val.string.len = (int) VARSIZE_ANY_EXHDR(string);
	pushJsonbValue(state, token, &value);
}

Jsonb *
variable_keys(const SnapImage *snapshot)
{
	JsonbParseState *state = NULL;
	JsonbValue *root;
	uint32 index;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (index = 0; snapshot != NULL && index < snapshot->nvariables; index++)
	{
		const SnapVariable *variable =
			(const SnapVariable *) snapshot_at(snapshot, snapshot->variables) +
			index;
		const uint32_t *experiments =
			snapshot_at(snapshot, variable->experiments);
		uint32 at;

		CHECK_FOR_INTERRUPTS();
		push_text(&state, WJB_KEY, stored_text(snapshot, variable->key_text));
		pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
		for (at = 0; at < variable->nexperiments; at++)
		{
			CHECK_FOR_INTERRUPTS();
			push_text(
				&state, WJB_ELEM,
				stored_text(
					snapshot,
					snapshot_experiment(snapshot, experiments[at])->name_text));
		}
		pushJsonbValue(&state, WJB_END_ARRAY, NULL);
	}
	root = pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	return JsonbValueToJsonb(root);
}

PG_FUNCTION_INFO_V1(absmartly_variable_keys);

/*
 * absmartly_variable_keys() -> jsonb
 *
 * Each variable with the names of the experiments that have it, lowest id
 * first.
 */
SQL_FUNCTION(absmartly_variable_keys)
{
	const DataVersion *version = evaluation_data();

	PG_RETURN_JSONB_P(
		variable_keys(version ? data_version_snapshot(version) : NULL));
}

/*
 * Arrays
 */

static Datum
make_text_array(Datum *elements, uint32 count)
{
	return PointerGetDatum(construct_array(elements, (int) count, TEXTOID, -1,
										   false, TYPALIGN_INT));
}

static Datum
make_float8_array(const double *numbers, uint32 count)
{
	Datum *elements = palloc(Max(count, 1) * sizeof(Datum));
	uint32 index;

	for (index = 0; index < count; index++)
		elements[index] = Float8GetDatum(numbers[index]);
	return PointerGetDatum(construct_array(elements, (int) count, FLOAT8OID,
										   sizeof(float8), FLOAT8PASSBYVAL,
										   TYPALIGN_DOUBLE));
}

/*
 * Custom fields
 */

PG_FUNCTION_INFO_V1(absmartly_custom_field_keys);

/*
 * absmartly_custom_field_keys() -> text[]
 *
 * The names of custom fields of all experiments, each once, in the order of
 * their appearance.
 */
SQL_FUNCTION(absmartly_custom_field_keys)
{
	const DataVersion *version = evaluation_data();
	const SnapImage *snapshot;
	const SnapName *keys;
	Datum *elements;
	uint32 index;

	if (version == NULL)
		PG_RETURN_DATUM(make_text_array(NULL, 0));
	snapshot = data_version_snapshot(version);
	keys = snapshot_at(snapshot, snapshot->field_keys);
	elements = palloc(Max(snapshot->nfield_keys, 1) * sizeof(Datum));
	for (index = 0; index < snapshot->nfield_keys; index++)
		elements[index] = evaluation_stored(snapshot, keys[index].text);
	PG_RETURN_DATUM(make_text_array(elements, snapshot->nfield_keys));
}

/* A custom field, by the arguments (experiment, name); NULL if unknown. */
static const SnapField *
find_field(FunctionCallInfo fcinfo, const DataVersion *version)
{
	const SnapImage *snapshot = data_version_snapshot(version);
	const SnapExperiment *experiment =
		evaluation_experiment(call_site_state(fcinfo, sizeof(NameCache)),
							  version, PG_GETARG_TEXT_PP(0));
	EngineText name =
		evaluation_name(PG_GETARG_TEXT_PP(1), "name of a custom field");

	if (experiment == NULL)
		return NULL;
	return snapshot_find_field(snapshot, experiment, name.data, name.length);
}

static Datum
stored_copy(const SnapImage *snapshot, SnapStored stored)
{
	return datumCopy(evaluation_stored(snapshot, stored), false, -1);
}

PG_FUNCTION_INFO_V1(absmartly_custom_field_value);

/*
 * absmartly_custom_field_value(experiment text, name text) -> jsonb; strict
 *
 * NULL for a field or an experiment that is unknown, a null, and a number that
 * is none.
 */
SQL_FUNCTION(absmartly_custom_field_value)
{
	const DataVersion *version = evaluation_data();
	const SnapField *field = version ? find_field(fcinfo, version) : NULL;

	if (field == NULL || field->state != SNAP_FIELD_VALUE)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(stored_copy(data_version_snapshot(version), field->value));
}

PG_FUNCTION_INFO_V1(absmartly_custom_field_value_type);

/*
 * absmartly_custom_field_value_type(experiment text, name text) -> text; strict
 *
 * The type as declared, also one that is not known; NULL if there is no such
 * field.
 */
SQL_FUNCTION(absmartly_custom_field_value_type)
{
	const DataVersion *version = evaluation_data();
	const SnapField *field = version ? find_field(fcinfo, version) : NULL;

	if (field == NULL || field->type_text.offset == 0)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(
		stored_copy(data_version_snapshot(version), field->type_text));
}

/*
 * The list of experiments
 */

/* UTF-8 text of the data, NULL if absent. */
static void
put_data_text(Datum *value, bool *is_null, const SnapImage *snapshot,
			  SnapText source)
{
	*is_null = source.offset == 0;
	if (!*is_null)
		*value = CStringGetTextDatum(
			text_for_message(snapshot_text(snapshot, source)));
}

static int
compare_numbers(const void *left, const void *right)
{
	uint32 a = *(const uint32 *) left;
	uint32 b = *(const uint32 *) right;

	return a < b ? -1 : a > b;
}

/*
 * Names of the variables that any variant of the experiment has, in the data's
 * order.  What this takes goes by the experiment's own variables, not by all
 * that there are.
 */
static Datum
experiment_variables(const SnapImage *snapshot,
					 const SnapExperiment *experiment)
{
	const SnapVariable *variables = snapshot_at(snapshot, snapshot->variables);
	Datum *elements;
	uint32 *numbers;
	uint32 nmembers = 0;
	uint32 count = 0;

	for (uint32 i = 0; i < experiment->nvariants; i++)
		nmembers += snapshot_variant(snapshot, experiment, i)->nmembers;
	numbers =
		palloc_extended(Max(nmembers, 1) * sizeof(uint32), MCXT_ALLOC_HUGE);
	nmembers = 0;
	for (uint32 i = 0; i < experiment->nvariants; i++)
	{
		const SnapVariant *variant = snapshot_variant(snapshot, experiment, i);
		const SnapMember *members = snapshot_at(snapshot, variant->members);

		for (uint32 j = 0; j < variant->nmembers; j++)
			numbers[nmembers++] = members[j].variable;
	}
	qsort(numbers, nmembers, sizeof(uint32), compare_numbers);

	elements =
		palloc_extended(Max(nmembers, 1) * sizeof(Datum), MCXT_ALLOC_HUGE);
	for (uint32 i = 0; i < nmembers; i++)
	{
		if (i == 0 || numbers[i] != numbers[i - 1])
			elements[count++] =
				evaluation_stored(snapshot, variables[numbers[i]].key_text);
	}
	return make_text_array(elements, count);
}

static Datum
experiment_fields(const SnapImage *snapshot, const SnapExperiment *experiment)
{
	const SnapField *fields = snapshot_at(snapshot, experiment->fields);
	Datum *elements = palloc(Max(experiment->nfields, 1) * sizeof(Datum));
	uint32 index;

	for (index = 0; index < experiment->nfields; index++)
		elements[index] = CStringGetTextDatum(
			text_for_message(snapshot_text(snapshot, fields[index].name)));
	return make_text_array(elements, experiment->nfields);
}

static Datum
experiment_holdouts(const SnapImage *snapshot, const SnapExperiment *experiment)
{
	const SnapHoldout *holdouts = snapshot_at(snapshot, snapshot->holdouts);
	const uint32_t *indexes = snapshot_at(snapshot, experiment->holdouts);
	Datum *elements = palloc(Max(experiment->nholdouts, 1) * sizeof(Datum));
	uint32 index;

	for (index = 0; index < experiment->nholdouts; index++)
		elements[index] = Int32GetDatum((int32) holdouts[indexes[index]].id);
	return PointerGetDatum(construct_array(elements,
										   (int) experiment->nholdouts, INT4OID,
										   sizeof(int32), true, TYPALIGN_INT));
}

static void
put_experiment(ReturnSetInfo *result_info, const SnapImage *snapshot,
			   const SnapExperiment *experiment)
{
	Datum values[EXPERIMENTS_COLUMNS] = {0};
	bool nulls[EXPERIMENTS_COLUMNS] = {false};
	int column = 0;

	values[column++] = evaluation_stored(snapshot, experiment->name_text);
	values[column++] = Int32GetDatum((int32) experiment->id);
	values[column++] = Int32GetDatum((int32) experiment->iteration);
	if (experiment->flags & SNAP_HAS_UNIT_TYPE)
		values[column] =
			evaluation_stored(snapshot, experiment->unit_type_text);
	else
		nulls[column] = true;
	column++;
	values[column++] = Int32GetDatum((int32) experiment->nvariants);
	values[column++] =
		make_float8_array(snapshot_at(snapshot, experiment->split.weights),
						  experiment->split.count);
	values[column++] =
		make_float8_array(snapshot_at(snapshot, experiment->traffic.weights),
						  experiment->traffic.count);
	values[column++] = Int32GetDatum(experiment->full_on_variant);
	put_data_text(&values[column], &nulls[column], snapshot,
				  experiment->audience_text);
	column++;
	values[column++] =
		BoolGetDatum((experiment->flags & SNAP_AUDIENCE_STRICT) != 0);
	put_data_text(&values[column], &nulls[column], snapshot,
				  experiment->rules_text);
	column++;
	values[column++] = experiment_holdouts(snapshot, experiment);
	values[column++] = experiment_variables(snapshot, experiment);
	values[column++] = experiment_fields(snapshot, experiment);
	tuplestore_putvalues(result_info->setResult, result_info->setDesc, values,
						 nulls);
}

PG_FUNCTION_INFO_V1(absmartly_experiments_get);

/*
 * absmartly_experiments_get() -> table; the view absmartly_experiments
 *
 * All experiments in the data's order, those that a later one of the same name
 * hides included.
 */
SQL_FUNCTION(absmartly_experiments_get)
{
	ReturnSetInfo *result_info = (ReturnSetInfo *) fcinfo->resultinfo;
	const DataVersion *version;
	const SnapImage *snapshot;
	MemoryContext row;
	MemoryContext previous;
	uint32 index;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	version = evaluation_data();
	if (version == NULL)
		return (Datum) 0;
	snapshot = data_version_snapshot(version);
	row = AllocSetContextCreate(CurrentMemoryContext, "absmartly experiment",
								ALLOCSET_DEFAULT_SIZES);
	previous = MemoryContextSwitchTo(row);
	for (index = 0; index < snapshot->nexperiments; index++)
	{
		CHECK_FOR_INTERRUPTS();
		put_experiment(result_info, snapshot,
					   snapshot_experiment(snapshot, index));
		MemoryContextReset(row);
	}
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(row);
	return (Datum) 0;
}
