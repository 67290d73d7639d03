/*
 * engine_functions.c
 *		The engine, callable: hashes, the assigner, expressions.
 *
 * None of these looks at data or settings; all are immutable.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "data/store.h"
#include "engine/assign.h"
#include "engine/compile.h"
#include "engine/hash.h"
#include "engine/number.h"
#include "sql/evaluation.h"
#include "sql/function.h"
#include "sql/jsonb_value.h"
#include "sql/text.h"

/*
 * Long text is worked on in pieces of so many bytes, of which base64 makes
 * whole groups.
 */
#define PIECE ((size_t) 3 * 65536)

/*
 * The last expression that a call site compiled, usually the only one.
 */
typedef struct CompiledSite
{
	MemoryContext memory; /* of source and expression */
	text *source; /* NULL: nothing is compiled */
	const ExprNode *expression; /* NULL: no verdict */
} CompiledSite;

/* The text that hashes are made of (protocol 3, "Bytes"); palloc'd. */
static EngineText
protocol_bytes(const text *string)
{
	EngineText utf8 = text_datum_to_utf8(string);
	char *bytes = MemoryContextAllocHuge(CurrentMemoryContext,
										 utf8.length + utf8.length / 2 + 1);
	EngineText result = {bytes, 0};

	while (utf8.length > 0)
	{
		size_t piece = utf8_piece(utf8.data, utf8.length, PIECE);

		CHECK_FOR_INTERRUPTS();
		result.length +=
			utf16_unit_bytes(utf8.data, piece, bytes + result.length);
		utf8.data += piece;
		utf8.length -= piece;
	}
	return result;
}

static text *
hash_text(const UnitHash *hash)
{
	return cstring_to_text_with_len(hash->text, UNIT_HASH_LENGTH);
}

PG_FUNCTION_INFO_V1(absmartly_hash_unit_text);

/*
 * absmartly_hash_unit(text) -> text; strict
 *
 * The hash of a unit, taken as it is: nothing is trimmed.
 */
SQL_FUNCTION(absmartly_hash_unit_text)
{
	EngineText utf8 = text_datum_to_utf8(PG_GETARG_TEXT_PP(0));
	UnitHash hash;
	Work work;

	if (likely(utf8.length <= PIECE))
		unit_hash(utf8.data, utf8.length, &hash);
	else
	{
		evaluation_work_begin(&work);
		if (!unit_hash_long(utf8.data, utf8.length, &hash, &work))
			evaluation_raise(ENGINE_INTERRUPTED);
	}
	PG_RETURN_TEXT_P(hash_text(&hash));
}

PG_FUNCTION_INFO_V1(absmartly_hash_unit_numeric);

/*
 * absmartly_hash_unit(numeric) -> text; strict
 *
 * The hash of a unit that is a number: by its exact text if integral, else as
 * a double (protocol 3).  22023 for NaN, infinities, and what is too long.
 */
SQL_FUNCTION(absmartly_hash_unit_numeric)
{
	Numeric number = PG_GETARG_NUMERIC(0);
	char digits[ENGINE_MAX_UID];
	size_t length;
	UnitHash hash;

	if (numeric_is_nan(number) || numeric_is_inf(number))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("unit must be a finite number")));
	switch (jsonb_number_text(number, digits, &length))
	{
		case NUMBER_TEXT_INTEGRAL:
			unit_hash(digits, length, &hash);
			break;
		case NUMBER_TEXT_FRACTIONAL:
			unit_hash_number(jsonb_number_finite(number), &hash);
			break;
		case NUMBER_TEXT_TOO_LONG:
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("unit is too long"),
							errdetail("A unit may have up to %d characters.",
									  ENGINE_MAX_UID)));
	}
	PG_RETURN_TEXT_P(hash_text(&hash));
}

PG_FUNCTION_INFO_V1(absmartly_assign);

/*
 * absmartly_assign(unit_hash text, split float8[], seed_hi bigint,
 *					seed_lo bigint) -> int; strict
 *
 * The assigner and the choice; seeds are taken modulo 2^32.  -1 for an empty
 * split.  2202E for a split of several dimensions, 22004 for a null in it.
 */
SQL_FUNCTION(absmartly_assign)
{
	EngineText hash = text_datum_to_utf8(PG_GETARG_TEXT_PP(0));
	ArrayType *split = PG_GETARG_ARRAYTYPE_P(1);
	uint32 count = 0;

	if (ARR_NDIM(split) > 1)
		ereport(ERROR, (errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
						errmsg("split must have one dimension")));
	if (array_contains_nulls(split))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("split must not contain nulls")));
	if (ARR_NDIM(split) == 1)
		count = (uint32) ARR_DIMS(split)[0];
	PG_RETURN_INT32(
		assign_choose((const double *) ARR_DATA_PTR(split), count,
					  assign_probability(murmur3_32(hash.data, hash.length, 0),
										 (uint32) PG_GETARG_INT64(2),
										 (uint32) PG_GETARG_INT64(3))));
}

/* Forgets what was compiled; the next step may fail. */
static CompiledSite *
compiled_site_reset(CompiledSite *site, FunctionCallInfo fcinfo)
{
	site->source = NULL;
	if (site->memory == NULL)
		site->memory =
			AllocSetContextCreate(fcinfo->flinfo->fn_mcxt,
								  "absmartly expression", ALLOCSET_SMALL_SIZES);
	else
		MemoryContextReset(site->memory);
	return site;
}

static bool
compiled_site_holds(const CompiledSite *site, const text *source)
{
	return site->source != NULL &&
		   VARSIZE(site->source) - VARHDRSZ == VARSIZE_ANY_EXHDR(source) &&
		   memcmp(VARDATA(site->source), VARDATA_ANY(source),
				  VARSIZE_ANY_EXHDR(source)) == 0;
}

static void
compiled_site_set(CompiledSite *site, const text *source,
				  const ExprNode *expression)
{
	MemoryContext caller = MemoryContextSwitchTo(site->memory);

	site->expression = expression;
	site->source = cstring_to_text_with_len(VARDATA_ANY(source),
											(int) VARSIZE_ANY_EXHDR(source));
	MemoryContextSwitchTo(caller);
}

PG_FUNCTION_INFO_V1(absmartly_evaluate);

/*
 * absmartly_evaluate(expression json, variables jsonb) -> jsonb
 *
 * The result of an expression (protocol 6); NULL for a null result, for an
 * expression that is aborted, and for a NULL expression.  Without variables
 * all of them are missing.  54001 for JSON that is nested too deep, 22P02 for
 * what json takes but JSON does not.
 */
SQL_FUNCTION(absmartly_evaluate)
{
	CompiledSite *site;
	const text *source;
	Evaluation evaluation;
	Value result;
	bool aborted;
	EngineStatus status;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	source = PG_GETARG_TEXT_PP(0);
	if (!PG_ARGISNULL(1))
		evaluation_check_object(PG_GETARG_DATUM(1), "variables");

	site = call_site_state(fcinfo, sizeof(CompiledSite));
	if (!compiled_site_holds(site, source))
	{
		EngineText utf8 = text_datum_to_utf8(source);
		const char *message = NULL;
		const JsonNode *tree;
		const ExprNode *expression = NULL;
		ArenaSource chunks;
		Arena arena;
		size_t size;

		compiled_site_reset(site, fcinfo);
		store_arena_source(&chunks, site->memory);
		arena_init(&arena, &chunks);
		status = json_parse(utf8.data, utf8.length, ENGINE_MAX_DEPTH, &arena,
							&tree, &message);
		if (status == ENGINE_MALFORMED)
			ereport(ERROR, (errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
							errmsg("expression is not valid JSON"),
							message ? errdetail_internal("%s.", message) : 0));
		if (status == ENGINE_OK)
			status = expression_compile(tree, &arena, &expression, &size);
		if (status != ENGINE_OK)
			evaluation_raise(status);
		compiled_site_set(site, source, expression);
	}

	evaluation_begin(&evaluation, NULL, false, !PG_ARGISNULL(1),
					 PG_GETARG_DATUM(1));
	status = expression_evaluate(site->expression, &evaluation.context, &result,
								 &aborted);
	if (status != ENGINE_OK)
		evaluation_raise(status);
	if (aborted || result.kind == VALUE_NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(jsonb_from_value(&result));
}

PG_FUNCTION_INFO_V1(absmartly_match_audience);

/*
 * absmartly_match_audience(audience text, attributes jsonb) -> boolean
 *
 * Whether the attributes match an audience as it stands in an experiment;
 * NULL if there is no verdict, which counts as no mismatch.
 */
SQL_FUNCTION(absmartly_match_audience)
{
	CompiledSite *site;
	const text *source;
	Evaluation evaluation;
	Value result;
	bool aborted;
	EngineStatus status;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	source = PG_GETARG_TEXT_PP(0);
	if (!PG_ARGISNULL(1))
		evaluation_check_object(PG_GETARG_DATUM(1), "attributes");

	site = call_site_state(fcinfo, sizeof(CompiledSite));
	if (!compiled_site_holds(site, source))
	{
		const ExprNode *expression = NULL;
		ArenaSource chunks;
		Arena arena;
		size_t size;

		compiled_site_reset(site, fcinfo);
		store_arena_source(&chunks, site->memory);
		arena_init(&arena, &chunks);
		status = audience_compile(text_datum_to_utf8(source), &arena,
								  &expression, &size);
		if (status != ENGINE_OK)
			evaluation_raise(status);
		compiled_site_set(site, source, expression);
	}
	if (site->expression == NULL)
		PG_RETURN_NULL();

	evaluation_begin(&evaluation, NULL, false, !PG_ARGISNULL(1),
					 PG_GETARG_DATUM(1));
	status = expression_evaluate(site->expression, &evaluation.context, &result,
								 &aborted);
	if (status != ENGINE_OK)
		evaluation_raise(status);
	if (aborted)
		PG_RETURN_NULL();
	PG_RETURN_BOOL(value_to_boolean(&result));
}

static text *
base64url(const char *data, size_t length)
{
	size_t size = base64url_length(length);
	text *result;
	char *to;

	if (size > MaxAllocSize - VARHDRSZ)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("result is too large")));
	result = palloc(size + VARHDRSZ);
	SET_VARSIZE(result, size + VARHDRSZ);
	to = VARDATA(result);
	while (length > 0)
	{
		size_t piece = Min(length, PIECE);

		CHECK_FOR_INTERRUPTS();
		to += base64url_encode(data, piece, to);
		data += piece;
		length -= piece;
	}
	return result;
}

PG_FUNCTION_INFO_V1(absmartly_base64url_text);

/*
 * absmartly_base64url(text) -> text; strict
 *
 * Of the bytes that absmartly_utf8_bytes() shows.
 */
SQL_FUNCTION(absmartly_base64url_text)
{
	EngineText bytes = protocol_bytes(PG_GETARG_TEXT_PP(0));

	PG_RETURN_TEXT_P(base64url(bytes.data, bytes.length));
}

PG_FUNCTION_INFO_V1(absmartly_base64url_bytea);

/* absmartly_base64url(bytea) -> text; strict */
SQL_FUNCTION(absmartly_base64url_bytea)
{
	bytea *bytes = PG_GETARG_BYTEA_PP(0);

	PG_RETURN_TEXT_P(base64url(VARDATA_ANY(bytes), VARSIZE_ANY_EXHDR(bytes)));
}

PG_FUNCTION_INFO_V1(absmartly_utf8_bytes);

/*
 * absmartly_utf8_bytes(text) -> int[]; strict
 *
 * The bytes that a hash is made of: each UTF-16 code unit encoded by itself.
 */
SQL_FUNCTION(absmartly_utf8_bytes)
{
	EngineText bytes = protocol_bytes(PG_GETARG_TEXT_PP(0));
	ArrayType *result;
	int32 *elements;
	Size size;
	size_t index;

	if (bytes.length == 0)
		PG_RETURN_ARRAYTYPE_P(construct_empty_array(INT4OID));
	size = ARR_OVERHEAD_NONULLS(1) + bytes.length * sizeof(int32);
	if (size > MaxAllocSize)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("result is too large")));
	result = palloc0(size);
	SET_VARSIZE(result, size);
	result->ndim = 1;
	result->dataoffset = 0;
	result->elemtype = INT4OID;
	ARR_DIMS(result)[0] = (int) bytes.length;
	ARR_LBOUND(result)[0] = 1;
	elements = (int32 *) ARR_DATA_PTR(result);
	for (index = 0; index < bytes.length; index++)
	{
		if (index % PIECE == 0)
			CHECK_FOR_INTERRUPTS();
		elements[index] = (unsigned char) bytes.data[index];
	}
	PG_RETURN_ARRAYTYPE_P(result);
}
