/*
 * properties.c
 *		absmartly_properties(), values as a trigger sends them.
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/fmgrprotos.h"

#include "sql/function.h"
#include "sql/recording.h"
#include "sql/row_json.h"
#include "sql/text.h"

static ColumnWriter *
writer_of(FunctionCallInfo fcinfo)
{
	FmgrInfo *function = fcinfo->flinfo;

	if (function->fn_extra == NULL)
	{
		ColumnWriter *writer =
			MemoryContextAllocZero(function->fn_mcxt, sizeof(ColumnWriter));
		Oid type = get_fn_expr_argtype(function, 0);

		if (!OidIsValid(type))
			elog(ERROR, "could not determine the type of the value");
		column_writer_init(writer, type, function->fn_mcxt);
		function->fn_extra = writer;
	}
	return function->fn_extra;
}

PG_FUNCTION_INFO_V1(absmartly_properties);

/*
 * absmartly_properties(value record) -> jsonb; strict
 *
 * For backfills, whose properties have the same texts as those of triggers.
 * Raises 54000 for what is larger than an event may be.
 */
SQL_FUNCTION(absmartly_properties)
{
	ColumnWriter *writer = writer_of(fcinfo);
	StringInfoData json;

	initStringInfo(&json);
	if (!column_write(writer, PG_GETARG_DATUM(0), &json, recording_most_json()))
		recording_raise_too_large("properties");
	if (!text_database_is_utf8())
	{
		EngineText text = text_from_utf8(json.data, (size_t) json.len);

		PG_RETURN_DATUM(DirectFunctionCall1(
			jsonb_in, CStringGetDatum(pnstrdup(text.data, text.length))));
	}
	PG_RETURN_DATUM(DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data)));
}
