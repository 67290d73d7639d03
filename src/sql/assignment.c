/*
 * assignment.c
 *		Functions that assign without exposing (DESIGN 3.1).
 *
 * absmartly_peek_treatment() and its kin run once for each row of a bulk
 * assignment.  All that they do besides the hash is kept to a few dozen
 * instructions: the data is pinned already, the experiment is remembered at the
 * call site, the units are read in place, and attributes are left alone unless
 * the experiment asks for them.  Nothing is allocated.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"

#include "sql/assignment.h"
#include "sql/evaluation.h"
#include "sql/function.h"
#include "sql/jsonb_value.h"
#include "sql/text.h"
#include "sql/units.h"

/* columns of absmartly_assignments() */
#define ASSIGNMENTS_COLUMNS 14

/*
 * The assignment of a unit to an experiment, which may be unknown (NULL).
 */
static inline int32
peek(const DataVersion *version, const SnapExperiment *experiment,
	 const text *name, const int32 *custom, UnitValue *unit,
	 bool has_attributes, Datum attributes)
{
	Assignment result;

	if (has_attributes)
		evaluation_check_object(attributes, "attributes");
	assignment_make(version, experiment, name, custom, unit_from_value, unit,
					has_attributes, attributes, &result);
	return result.variant;
}

/*
 * Without data everybody gets control; overrides work.  The arguments in
 * common are (anything, experiment text, attributes jsonb).
 */
static int32
peek_not_ready(FunctionCallInfo fcinfo)
{
	const int32 *override = evaluation_override(PG_GETARG_TEXT_PP(1));

	if (!PG_ARGISNULL(2))
		evaluation_check_object(PG_GETARG_DATUM(2), "attributes");
	return override ? *override : 0;
}

PG_FUNCTION_INFO_V1(absmartly_peek_treatment);

/*
 * absmartly_peek_treatment(units jsonb, experiment text, attributes jsonb,
 *							custom_variant int) -> int
 *
 * The variant of an experiment for these units; 0 if there is no such
 * experiment.  NULL units or experiment give NULL.  22023 for units,
 * attributes, a name or a variant that cannot be; 55000 if there is no data
 *yet.
 */
SQL_FUNCTION(absmartly_peek_treatment)
{
	const DataVersion *version;
	const SnapExperiment *experiment;
	const Jsonb *units;
	JsonbBuffer buffer;
	const text *name;
	EngineText unit_type = {NULL, 0};
	UnitValue unit;
	int32 custom;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	units = jsonb_argument(PG_GETARG_DATUM(0), &buffer);
	name = PG_GETARG_TEXT_PP(1);
	custom = PG_ARGISNULL(3) ? 0 : PG_GETARG_INT32(3);
	evaluation_check_variant(custom);

	version = evaluation_data();
	if (unlikely(version == NULL))
	{
		units_find(units, unit_type, &unit);
		PG_RETURN_INT32(peek_not_ready(fcinfo));
	}
	experiment = evaluation_experiment(
		call_site_state(fcinfo, sizeof(NameCache)), version, name);
	if (experiment != NULL && (experiment->flags & SNAP_HAS_UNIT_TYPE))
		unit_type = snapshot_text(data_version_snapshot(version),
								  experiment->unit_type);
	units_find(units, unit_type, &unit);

	PG_RETURN_INT32(peek(version, experiment, name,
						 PG_ARGISNULL(3) ? NULL : &custom, &unit,
						 !PG_ARGISNULL(2), PG_GETARG_DATUM(2)));
}

/*
 * The three functions that take one unit: (uid, experiment text, attributes
 * jsonb).  The uid is that of whatever unit type the experiment names.
 */
static inline Datum
peek_unit(FunctionCallInfo fcinfo, UnitValue *unit)
{
	const DataVersion *version = evaluation_data();
	const text *name = PG_GETARG_TEXT_PP(1);
	const SnapExperiment *experiment;

	if (unlikely(version == NULL))
		PG_RETURN_INT32(peek_not_ready(fcinfo));
	experiment = evaluation_experiment(
		call_site_state(fcinfo, sizeof(NameCache)), version, name);
	PG_RETURN_INT32(peek(version, experiment, name, NULL, unit,
						 !PG_ARGISNULL(2), PG_GETARG_DATUM(2)));
}

PG_FUNCTION_INFO_V1(absmartly_peek_unit_treatment_text);

/*
 * absmartly_peek_unit_treatment(uid text, experiment text, attributes jsonb)
 * -> int
 *
 * NULL uid or experiment give NULL; 22023 for a blank or overlong uid.
 */
SQL_FUNCTION(absmartly_peek_unit_treatment_text)
{
	const text *uid;
	UnitValue unit;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	uid = PG_GETARG_TEXT_PP(0);
	units_from_text(VARDATA_ANY(uid), VARSIZE_ANY_EXHDR(uid), &unit);
	return peek_unit(fcinfo, &unit);
}

PG_FUNCTION_INFO_V1(absmartly_peek_unit_treatment_bigint);

/* The same for a bigint uid, which stands for its decimal text. */
SQL_FUNCTION(absmartly_peek_unit_treatment_bigint)
{
	char digits[UNITS_BIGINT_LENGTH + 1];
	UnitValue unit;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	units_from_bigint(PG_GETARG_INT64(0), digits, &unit);
	return peek_unit(fcinfo, &unit);
}

PG_FUNCTION_INFO_V1(absmartly_peek_unit_treatment_uuid);

/* The same for a uuid, which stands for its canonical text. */
SQL_FUNCTION(absmartly_peek_unit_treatment_uuid)
{
	char canonical[UUID_TEXT_LENGTH];
	UnitValue unit;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	units_from_uuid(PG_GETARG_UUID_P(0), canonical, &unit);
	return peek_unit(fcinfo, &unit);
}

/* One row of absmartly_assignments() */
static void
put_assignment(ReturnSetInfo *result_info, const SnapImage *snapshot,
			   const SnapExperiment *experiment, const Assignment *assignment)
{
	Datum values[ASSIGNMENTS_COLUMNS];
	bool nulls[ASSIGNMENTS_COLUMNS] = {false};
	uint32 flags = assignment->flags;
	int column = 0;

	values[column++] = evaluation_stored(snapshot, experiment->name_text);
	values[column++] = Int32GetDatum((int32) experiment->id);
	if (experiment->flags & SNAP_HAS_UNIT_TYPE)
		values[column] =
			evaluation_stored(snapshot, experiment->unit_type_text);
	else
		nulls[column] = true;
	column++;
	values[column++] = Int32GetDatum(assignment->variant);
	values[column++] = BoolGetDatum((flags & ASSIGN_ASSIGNED) != 0);
	values[column++] = BoolGetDatum((flags & ASSIGN_ELIGIBLE) != 0);
	values[column++] = BoolGetDatum((flags & ASSIGN_OVERRIDDEN) != 0);
	values[column++] = BoolGetDatum((flags & ASSIGN_FULL_ON) != 0);
	values[column++] = BoolGetDatum((flags & ASSIGN_CUSTOM) != 0);
	values[column++] = BoolGetDatum((flags & ASSIGN_AUDIENCE_MISMATCH) != 0);
	values[column++] = BoolGetDatum((flags & ASSIGN_RULE_OVERRIDE) != 0);
	values[column++] = BoolGetDatum((flags & ASSIGN_HELD_OUT) != 0);
	values[column++] = Int32GetDatum((int32) assignment->holdout_id);
	if (assignment->variant >= 0 &&
		(uint32) assignment->variant < experiment->nvariants)
		values[column] = evaluation_stored(
			snapshot,
			snapshot_variant(snapshot, experiment, (uint32) assignment->variant)
				->variables);
	else
		nulls[column] = true;

	tuplestore_putvalues(result_info->setResult, result_info->setDesc, values,
						 nulls);
}

PG_FUNCTION_INFO_V1(absmartly_assignments);

/*
 * absmartly_assignments(units jsonb, attributes jsonb) -> table
 *
 * A row for each experiment, in the data's order; none for NULL units or if
 * there is no data yet and on_not_ready is control.  Errors as
 * absmartly_peek_treatment().
 */
SQL_FUNCTION(absmartly_assignments)
{
	ReturnSetInfo *result_info = (ReturnSetInfo *) fcinfo->resultinfo;
	const DataVersion *version;
	const SnapImage *snapshot;
	JsonbBuffer buffer;
	Evaluation evaluation;
	UnitSlots units;
	AssignRequest request = {0};
	bool has_attributes = !PG_ARGISNULL(1);
	bool begun = false;
	uint32 index;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	if (PG_ARGISNULL(0))
		return (Datum) 0;
	if (has_attributes)
		evaluation_check_object(PG_GETARG_DATUM(1), "attributes");

	version = evaluation_data();
	if (version == NULL)
	{
		UnitValue none;

		units_find(jsonb_argument(PG_GETARG_DATUM(0), &buffer),
				   (EngineText){NULL, 0}, &none);
		return (Datum) 0;
	}
	snapshot = data_version_snapshot(version);

	units_read(jsonb_argument(PG_GETARG_DATUM(0), &buffer), snapshot, &units);

	request.snapshot = snapshot;
	request.unit = unit_from_slots;
	request.unit_context = &units;
	request.eval = &evaluation.context;
	for (index = 0; index < snapshot->nexperiments; index++)
	{
		const SnapExperiment *experiment = snapshot_experiment(snapshot, index);
		Assignment assignment;
		EngineStatus status;

		CHECK_FOR_INTERRUPTS();
		if (experiment->flags & SNAP_SHADOWED)
			continue;
		if (!begun && evaluation_needed(experiment))
		{
			evaluation_begin(&evaluation, version,
							 settings_include_system_attributes, has_attributes,
							 PG_GETARG_DATUM(1));
			begun = true;
		}
		request.experiment = experiment;
		request.override = evaluation_override((const text *) DatumGetPointer(
			evaluation_stored(snapshot, experiment->name_text)));
		status = assign(&request, &assignment);
		if (status != ENGINE_OK)
			evaluation_raise(status);
		put_assignment(result_info, snapshot, experiment, &assignment);
	}
	return (Datum) 0;
}
