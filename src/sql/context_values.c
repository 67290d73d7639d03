/*
 * context_values.c
 *		What is set in the session's context, and got from it: units,
 *		attributes, overrides, custom assignments (DESIGN 3.2, protocol 8).
 *
 * A value of any type gets to be JSON by casts and output functions that may be
 * the user's, and these may make another context, or drop this one.  So values
 * come first, in statements of their own, and then the context.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"

#include "context/assignments.h"
#include "context/context.h"
#include "sql/evaluation.h"
#include "sql/function.h"
#include "sql/jsonb_value.h"
#include "sql/recording.h"
#include "sql/row_json.h"
#include "sql/text.h"

/* state of a call site that takes a value of any type */
typedef struct ValueSite
{
	Oid type; /* InvalidOid: not known yet */
	ColumnWriter writer;
} ValueSite;

static const text *
name_argument(FunctionCallInfo fcinfo, int argument, const char *what)
{
	if (PG_ARGISNULL(argument))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("%s must not be null", what)));
	return PG_GETARG_TEXT_PP(argument);
}

/* The call site of a value of any type, which is not NULL. */
static ValueSite *
value_site(FunctionCallInfo fcinfo, int argument)
{
	ValueSite *site = call_site_state(fcinfo, sizeof(ValueSite));
	Oid type;

	if (OidIsValid(site->type))
		return site;
	type = get_fn_expr_argtype(fcinfo->flinfo, argument);
	if (!OidIsValid(type))
		elog(ERROR, "could not determine the type of the value");
	column_writer_init(&site->writer, type, fcinfo->flinfo->fn_mcxt);
	/* now that it is complete */
	site->type = type;
	return site;
}

/*
 * A value of any type as jsonb; SQL NULL is JSON null.  Code of the user's may
 * run here: nothing that it could change has been looked up.
 */
static const Jsonb *
value_argument(FunctionCallInfo fcinfo, int argument)
{
	ValueSite *site;
	StringInfoData json;
	EngineText text;

	if (PG_ARGISNULL(argument))
		return DatumGetJsonbP(
			DirectFunctionCall1(jsonb_in, CStringGetDatum("null")));
	site = value_site(fcinfo, argument);
	if (site->writer.kind == COLUMN_JSONB)
		return PG_GETARG_JSONB_P(argument);
	initStringInfo(&json);
	if (!column_write(&site->writer, PG_GETARG_DATUM(argument), &json,
					  recording_most_json()))
		recording_raise_too_large("values");
	text = text_from_utf8(json.data, (size_t) json.len);
	return DatumGetJsonbP(DirectFunctionCall1(
		jsonb_in, CStringGetDatum(pnstrdup(text.data, text.length))));
}

/* Whether the argument is a number as SQL has them and JSON does not. */
static bool
is_no_number(FunctionCallInfo fcinfo, int argument)
{
	Datum value = PG_GETARG_DATUM(argument);

	if (PG_ARGISNULL(argument))
		return false;
	switch (value_site(fcinfo, argument)->writer.kind)
	{
		case COLUMN_FLOAT4:
			return !isfinite(DatumGetFloat4(value));
		case COLUMN_FLOAT8:
			return !isfinite(DatumGetFloat8(value));
		case COLUMN_NUMERIC:
			return numeric_is_nan(DatumGetNumeric(value)) ||
				   numeric_is_inf(DatumGetNumeric(value));
		default:
			return false;
	}
}

/* The argument that is an object of values, checked; NULL: there are none. */
static const Jsonb *
object_argument(FunctionCallInfo fcinfo, const char *what, const char *example)
{
	if (PG_ARGISNULL(0))
		return NULL;
	evaluation_check_other(PG_GETARG_DATUM(0), what, example);
	return PG_GETARG_JSONB_P(0);
}

/* Calls visit for each member of an object, until one can't be. */
static void
visit_object(Context *context, const Jsonb *object,
			 void (*visit)(Context *context, EngineText name,
						   const JsonbValue *value))
{
	if (object != NULL)
		context_visit_members(context, object, visit);
}

/* The context, for a function that sets something. */
static Context *
context_to_set(FunctionCallInfo fcinfo)
{
	context_require_unrestricted(fcinfo->flinfo->fn_oid);
	return context_current();
}

static Context *
open_context(FunctionCallInfo fcinfo)
{
	Context *context = context_to_set(fcinfo);

	context_require_open(context);
	return context;
}

/* An object of what a function pushes. */
static Datum
object_result(void (*push)(JsonbParseState **state, Context *context))
{
	Context *context = context_current();
	JsonbParseState *state = NULL;
	JsonbValue *root;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push(&state, context);
	root = pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	return JsonbPGetDatum(JsonbValueToJsonb(root));
}

static Datum
copy_result(const Jsonb *jsonb)
{
	Size size = VARSIZE(jsonb);
	Jsonb *copy = palloc(size);

	memcpy(copy, jsonb, size);
	return JsonbPGetDatum(copy);
}

/*
 * Units
 */

PG_FUNCTION_INFO_V1(absmartly_context_set_unit);

/*
 * absmartly_context_set_unit(unit_type text, uid anyelement) -> void
 *
 * The same with text for anyelement.  22023 with the texts of protocol 8.
 */
SQL_FUNCTION(absmartly_context_set_unit)
{
	EngineText type = text_datum_to_utf8(name_argument(fcinfo, 0, "unit type"));
	const Jsonb *uid = value_argument(fcinfo, 1);
	JsonbValue value;

	if (is_no_number(fcinfo, 1) ||
		!JsonbExtractScalar(unconstify(JsonbContainer *, &uid->root), &value))
		value.type = jbvBinary;
	context_set_unit(open_context(fcinfo), type, &value);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(absmartly_context_set_units);

/* absmartly_context_set_units(units jsonb) -> void; NULL sets nothing */
SQL_FUNCTION(absmartly_context_set_units)
{
	const Jsonb *object = object_argument(fcinfo, "units", "{\"user_id\": 42}");

	visit_object(open_context(fcinfo), object, context_set_unit);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(absmartly_context_get_unit);

/* absmartly_context_get_unit(unit_type text) -> jsonb; NULL: not set */
SQL_FUNCTION(absmartly_context_get_unit)
{
	EngineText type = text_datum_to_utf8(PG_GETARG_TEXT_PP(0));
	const ContextUnit *unit = context_find_unit(context_current(), type);

	if (unit == NULL)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(copy_result(unit->value));
}

static void
push_key(JsonbParseState **state, EngineText name)
{
	EngineText text = text_from_utf8(name.data, name.length);
	JsonbValue key = {.type = jbvString};

	key.val.string.val = unconstify(char *, text.data);
	key.val.string.len = (int) text.length;
	pushJsonbValue(state, WJB_KEY, &key);
}

static void
push_units(JsonbParseState **state, Context *context)
{
	for (int i = 0; i < context->nunits; i++)
	{
		push_key(state, context->units[i].type);
		jsonb_push_value(state, WJB_VALUE, context->units[i].value);
	}
}

PG_FUNCTION_INFO_V1(absmartly_context_units);

/* absmartly_context_units() -> jsonb */
SQL_FUNCTION(absmartly_context_units)
{
	PG_RETURN_DATUM(object_result(push_units));
}

/*
 * Attributes
 */

PG_FUNCTION_INFO_V1(absmartly_context_set_attribute);

/*
 * absmartly_context_set_attribute(name text, value anyelement) -> void
 *
 * The same with text for anyelement.  A NULL value is a null.
 */
SQL_FUNCTION(absmartly_context_set_attribute)
{
	EngineText name =
		text_datum_to_utf8(name_argument(fcinfo, 0, "name of an attribute"));
	const Jsonb *value = value_argument(fcinfo, 1);

	context_set_attribute(open_context(fcinfo), name, value);
	PG_RETURN_VOID();
}

static void
set_attribute(Context *context, EngineText name, const JsonbValue *value)
{
	context_set_attribute(context, name,
						  JsonbValueToJsonb(unconstify(JsonbValue *, value)));
}

PG_FUNCTION_INFO_V1(absmartly_context_set_attributes);

/* absmartly_context_set_attributes(attributes jsonb) -> void */
SQL_FUNCTION(absmartly_context_set_attributes)
{
	const Jsonb *object =
		object_argument(fcinfo, "attributes", "{\"country\": \"PT\"}");

	visit_object(open_context(fcinfo), object, set_attribute);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(absmartly_context_get_attribute);

/* absmartly_context_get_attribute(name text) -> jsonb; NULL: not set */
SQL_FUNCTION(absmartly_context_get_attribute)
{
	EngineText name = text_datum_to_utf8(PG_GETARG_TEXT_PP(0));
	const ContextAttribute *attribute =
		context_find_attribute(context_current(), name);

	if (attribute == NULL)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(copy_result(attribute->value));
}

PG_FUNCTION_INFO_V1(absmartly_context_attributes);

/* absmartly_context_attributes() -> jsonb: the last value of each name */
SQL_FUNCTION(absmartly_context_attributes)
{
	PG_RETURN_DATUM(copy_result(context_attributes_object(context_current())));
}

/*
 * Overrides and custom assignments
 */

static int32
variant_argument(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(1))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("the variant must not be null")));
	evaluation_check_variant(PG_GETARG_INT32(1));
	return PG_GETARG_INT32(1);
}

static int32
variant_member(EngineText experiment, const JsonbValue *value)
{
	int64 variant;

	if (value->type != jbvNumeric ||
		!jsonb_number_int64(value->val.numeric, &variant))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("variant of experiment \"%s\" must be an integer",
						text_for_message(experiment))));
	evaluation_check_variant(variant);
	return (int32) variant;
}

/* The experiment that is named by an argument. */
static EngineText
experiment_argument(FunctionCallInfo fcinfo)
{
	return evaluation_name(name_argument(fcinfo, 0, "name of an experiment"),
						   "name of an experiment");
}

static void
set_override(Context *context, ContextEntry *entry, int32 variant)
{
	entry->override = variant;
	entry->has_override = true;
	context->changes++;
}

static void
set_custom(Context *context, ContextEntry *entry, int32 variant)
{
	entry->custom = variant;
	entry->has_custom = true;
	context->changes++;
}

PG_FUNCTION_INFO_V1(absmartly_context_set_override);

/*
 * absmartly_context_set_override(experiment text, variant int) -> void
 *		In every state.
 */
SQL_FUNCTION(absmartly_context_set_override)
{
	int32 variant = variant_argument(fcinfo);
	EngineText name = experiment_argument(fcinfo);
	Context *context = context_to_set(fcinfo);

	set_override(context, assignments_entry(context, name), variant);
	PG_RETURN_VOID();
}

/* The entry of an experiment that is named by a member. */
static ContextEntry *
entry_member(Context *context, EngineText name)
{
	evaluation_check_name(name, "name of an experiment");
	return assignments_entry(context, name);
}

static void
override_member(Context *context, EngineText name, const JsonbValue *value)
{
	int32 variant = variant_member(name, value);

	set_override(context, entry_member(context, name), variant);
}

PG_FUNCTION_INFO_V1(absmartly_context_set_overrides);

/* absmartly_context_set_overrides(overrides jsonb) -> void */
SQL_FUNCTION(absmartly_context_set_overrides)
{
	const Jsonb *object =
		object_argument(fcinfo, "overrides", "{\"experiment\": 1}");

	visit_object(context_to_set(fcinfo), object, override_member);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(absmartly_context_set_custom_assignment);

/*
 * absmartly_context_set_custom_assignment(experiment text, variant int) -> void
 */
SQL_FUNCTION(absmartly_context_set_custom_assignment)
{
	int32 variant = variant_argument(fcinfo);
	EngineText name = experiment_argument(fcinfo);
	Context *context = open_context(fcinfo);

	set_custom(context, assignments_entry(context, name), variant);
	PG_RETURN_VOID();
}

static void
custom_member(Context *context, EngineText name, const JsonbValue *value)
{
	int32 variant = variant_member(name, value);

	set_custom(context, entry_member(context, name), variant);
}

PG_FUNCTION_INFO_V1(absmartly_context_set_custom_assignments);

/* absmartly_context_set_custom_assignments(assignments jsonb) -> void */
SQL_FUNCTION(absmartly_context_set_custom_assignments)
{
	const Jsonb *object =
		object_argument(fcinfo, "custom assignments", "{\"experiment\": 1}");

	visit_object(open_context(fcinfo), object, custom_member);
	PG_RETURN_VOID();
}

/* The entry of the experiment that is the argument; NULL if there is none. */
static const ContextEntry *
find_entry(FunctionCallInfo fcinfo)
{
	EngineText name = text_datum_to_utf8(PG_GETARG_TEXT_PP(0));

	return assignments_find(context_current(), name);
}

PG_FUNCTION_INFO_V1(absmartly_context_get_override);

/* absmartly_context_get_override(experiment text) -> int; NULL: none */
SQL_FUNCTION(absmartly_context_get_override)
{
	const ContextEntry *entry = find_entry(fcinfo);

	if (entry == NULL || !entry->has_override)
		PG_RETURN_NULL();
	PG_RETURN_INT32(entry->override);
}

PG_FUNCTION_INFO_V1(absmartly_context_get_custom_assignment);

/* absmartly_context_get_custom_assignment(experiment text) -> int */
SQL_FUNCTION(absmartly_context_get_custom_assignment)
{
	const ContextEntry *entry = find_entry(fcinfo);

	if (entry == NULL || !entry->has_custom)
		PG_RETURN_NULL();
	PG_RETURN_INT32(entry->custom);
}
