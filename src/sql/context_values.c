/*
 * context_values.c
 *		What is set in the session's context, and got from it: units,
 *		attributes, overrides, custom assignments (DESIGN 3.2, protocol 8).
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "context/assignments.h"
#include "context/context.h"
#include "sql/evaluation.h"
#include "sql/jsonb_value.h"
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

/* A value of any type as jsonb; SQL NULL is JSON null. */
static const Jsonb *
value_argument(FunctionCallInfo fcinfo, int argument)
{
	ValueSite *site = call_site_state(fcinfo, sizeof(ValueSite));
	StringInfoData json;
	EngineText text;

	if (PG_ARGISNULL(argument))
		return DatumGetJsonbP(
			DirectFunctionCall1(jsonb_in, CStringGetDatum("null")));
	if (!OidIsValid(site->type))
	{
		site->type = get_fn_expr_argtype(fcinfo->flinfo, argument);
		if (!OidIsValid(site->type))
			elog(ERROR, "could not determine the type of the value");
		column_writer_init(&site->writer, site->type, fcinfo->flinfo->fn_mcxt);
	}
	if (site->writer.kind == COLUMN_JSONB)
		return PG_GETARG_JSONB_P(argument);
	initStringInfo(&json);
	column_write(&site->writer, PG_GETARG_DATUM(argument), &json);
	text = text_from_utf8(json.data, (size_t) json.len);
	return DatumGetJsonbP(DirectFunctionCall1(
		jsonb_in, CStringGetDatum(pnstrdup(text.data, text.length))));
}

/*
 * Calls visit for each member of the object that is the argument, until one
 * can't be.  NULL has none.
 */
static void
visit_argument(FunctionCallInfo fcinfo, Context *context, const char *what,
			   const char *example,
			   void (*visit)(Context *context, EngineText name,
							 const JsonbValue *value))
{
	if (PG_ARGISNULL(0))
		return;
	evaluation_check_other(PG_GETARG_DATUM(0), what, example);
	context_visit_members(context, PG_GETARG_JSONB_P(0), visit);
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
Datum
absmartly_context_set_unit(PG_FUNCTION_ARGS)
{
	const text *type = name_argument(fcinfo, 0, "unit type");
	Context *context = open_context(fcinfo);
	JsonbValue value;

	if (!JsonbExtractScalar(
			unconstify(JsonbContainer *, &value_argument(fcinfo, 1)->root),
			&value))
		value.type = jbvBinary;
	context_set_unit(context, text_datum_to_utf8(type), &value);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(absmartly_context_set_units);

/* absmartly_context_set_units(units jsonb) -> void; NULL sets nothing */
Datum
absmartly_context_set_units(PG_FUNCTION_ARGS)
{
	visit_argument(fcinfo, open_context(fcinfo), "units", "{\"user_id\": 42}",
				   context_set_unit);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(absmartly_context_get_unit);

/* absmartly_context_get_unit(unit_type text) -> jsonb; NULL: not set */
Datum
absmartly_context_get_unit(PG_FUNCTION_ARGS)
{
	Context *context = context_current();
	const ContextUnit *unit =
		context_find_unit(context, text_datum_to_utf8(PG_GETARG_TEXT_PP(0)));

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
Datum
absmartly_context_units(PG_FUNCTION_ARGS)
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
Datum
absmartly_context_set_attribute(PG_FUNCTION_ARGS)
{
	const text *name = name_argument(fcinfo, 0, "name of an attribute");

	context_set_attribute(open_context(fcinfo), text_datum_to_utf8(name),
						  value_argument(fcinfo, 1));
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
Datum
absmartly_context_set_attributes(PG_FUNCTION_ARGS)
{
	visit_argument(fcinfo, open_context(fcinfo), "attributes",
				   "{\"country\": \"PT\"}", set_attribute);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(absmartly_context_get_attribute);

/* absmartly_context_get_attribute(name text) -> jsonb; NULL: not set */
Datum
absmartly_context_get_attribute(PG_FUNCTION_ARGS)
{
	Context *context = context_current();
	const ContextAttribute *attribute = context_find_attribute(
		context, text_datum_to_utf8(PG_GETARG_TEXT_PP(0)));

	if (attribute == NULL)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(copy_result(attribute->value));
}

PG_FUNCTION_INFO_V1(absmartly_context_attributes);

/* absmartly_context_attributes() -> jsonb: the last value of each name */
Datum
absmartly_context_attributes(PG_FUNCTION_ARGS)
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
	return PG_GETARG_INT32(1);
}

static int32
variant_member(EngineText experiment, const JsonbValue *value)
{
	int64 variant;

	if (value->type != jbvNumeric ||
		!jsonb_number_int64(value->val.numeric, &variant) ||
		variant < PG_INT32_MIN || variant > PG_INT32_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("variant of experiment \"%s\" must be an integer",
						text_for_message(experiment))));
	return (int32) variant;
}

/* The entry of an experiment that is named by an argument. */
static ContextEntry *
entry_argument(FunctionCallInfo fcinfo, Context *context)
{
	const text *name = name_argument(fcinfo, 0, "name of an experiment");

	return assignments_entry(context,
							 evaluation_name(name, "name of an experiment"));
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
Datum
absmartly_context_set_override(PG_FUNCTION_ARGS)
{
	Context *context = context_to_set(fcinfo);
	int32 variant = variant_argument(fcinfo);

	set_override(context, entry_argument(fcinfo, context), variant);
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
Datum
absmartly_context_set_overrides(PG_FUNCTION_ARGS)
{
	visit_argument(fcinfo, context_to_set(fcinfo), "overrides",
				   "{\"experiment\": 1}", override_member);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(absmartly_context_set_custom_assignment);

/*
 * absmartly_context_set_custom_assignment(experiment text, variant int) -> void
 */
Datum
absmartly_context_set_custom_assignment(PG_FUNCTION_ARGS)
{
	Context *context = open_context(fcinfo);
	int32 variant = variant_argument(fcinfo);

	set_custom(context, entry_argument(fcinfo, context), variant);
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
Datum
absmartly_context_set_custom_assignments(PG_FUNCTION_ARGS)
{
	visit_argument(fcinfo, open_context(fcinfo), "custom assignments",
				   "{\"experiment\": 1}", custom_member);
	PG_RETURN_VOID();
}

/* The entry of the experiment that is the argument; NULL if there is none. */
static const ContextEntry *
find_entry(FunctionCallInfo fcinfo)
{
	Context *context = context_current();

	return assignments_find(context, text_datum_to_utf8(PG_GETARG_TEXT_PP(0)));
}

PG_FUNCTION_INFO_V1(absmartly_context_get_override);

/* absmartly_context_get_override(experiment text) -> int; NULL: none */
Datum
absmartly_context_get_override(PG_FUNCTION_ARGS)
{
	const ContextEntry *entry = find_entry(fcinfo);

	if (entry == NULL || !entry->has_override)
		PG_RETURN_NULL();
	PG_RETURN_INT32(entry->override);
}

PG_FUNCTION_INFO_V1(absmartly_context_get_custom_assignment);

/* absmartly_context_get_custom_assignment(experiment text) -> int */
Datum
absmartly_context_get_custom_assignment(PG_FUNCTION_ARGS)
{
	const ContextEntry *entry = find_entry(fcinfo);

	if (entry == NULL || !entry->has_custom)
		PG_RETURN_NULL();
	PG_RETURN_INT32(entry->custom);
}
