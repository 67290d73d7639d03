/*
 * row_json.c
 *		Columns of a row as JSON text.
 *
 * Common types have writers of their own, because this runs for every row of a
 * bulk load; all others go through to_json().
 */
#include "postgres.h"

#include "access/detoast.h"
#include "catalog/pg_type.h"
#include "common/shortest_dec.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/fmgroids.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "sql/recording.h"
#include "sql/row_json.h"
#include "sql/text.h"

static const char hex_digits[] = "0123456789abcdef";

ColumnKind
column_kind(Oid type)
{
	switch (getBaseType(type))
	{
		case BOOLOID:
			return COLUMN_BOOL;
		case INT2OID:
			return COLUMN_INT2;
		case INT4OID:
			return COLUMN_INT4;
		case INT8OID:
			return COLUMN_INT8;
		case FLOAT4OID:
			return COLUMN_FLOAT4;
		case FLOAT8OID:
			return COLUMN_FLOAT8;
		case NUMERICOID:
			return COLUMN_NUMERIC;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
			return COLUMN_TEXT;
		case UUIDOID:
			return COLUMN_UUID;
		case DATEOID:
			return COLUMN_DATE;
		case TIMESTAMPOID:
			return COLUMN_TIMESTAMP;
		case TIMESTAMPTZOID:
			return COLUMN_TIMESTAMPTZ;
		case JSONOID:
			return COLUMN_JSON;
		case JSONBOID:
			return COLUMN_JSONB;
		default:
			return COLUMN_OTHER;
	}
}

void
column_writer_init(ColumnWriter *writer, Oid type, MemoryContext context)
{
	MemoryContext previous;
	Expr *argument;

	writer->kind = column_kind(type);
	if (writer->kind != COLUMN_OTHER)
		return;

	/* to_json() learns its argument's type from the call's expression */
	previous = MemoryContextSwitchTo(context);
	argument = (Expr *) makeNullConst(type, -1, get_typcollation(type));
	fmgr_info_cxt(F_TO_JSON, &writer->to_json, context);
	fmgr_info_set_expr((Node *) makeFuncExpr(F_TO_JSON, JSONOID,
											 list_make1(argument), InvalidOid,
											 InvalidOid, COERCE_EXPLICIT_CALL),
					   &writer->to_json);
	MemoryContextSwitchTo(previous);
}

/*
 * Texts
 */

/* Whether a byte of UTF-8 stands for itself in a JSON string. */
static inline bool
is_plain(unsigned char byte)
{
	return byte >= ' ' && byte != '"' && byte != '\\';
}

static void
append_escaped(StringInfo json, unsigned char byte)
{
	const char *short_form = NULL;

	switch (byte)
	{
		case '"':
			short_form = "\\\"";
			break;
		case '\\':
			short_form = "\\\\";
			break;
		case '\b':
			short_form = "\\b";
			break;
		case '\f':
			short_form = "\\f";
			break;
		case '\n':
			short_form = "\\n";
			break;
		case '\r':
			short_form = "\\r";
			break;
		case '\t':
			short_form = "\\t";
			break;
		default:
			break;
	}
	if (short_form != NULL)
		appendBinaryStringInfo(json, short_form, 2);
	else
	{
		char long_form[6] = {'\\', 'u', '0', '0'};

		long_form[4] = hex_digits[byte >> 4];
		long_form[5] = hex_digits[byte & 0x0F];
		appendBinaryStringInfo(json, long_form, sizeof(long_form));
	}
}

static inline void
append_text(StringInfo json, EngineText text)
{
	appendBinaryStringInfo(json, text.data, (int) text.length);
}

void
json_append_string(StringInfo json, EngineText utf8)
{
	size_t start = 0;
	size_t at;

	appendStringInfoCharMacro(json, '"');
	for (at = 0; at < utf8.length; at++)
	{
		if (likely(is_plain((unsigned char) utf8.data[at])))
			continue;
		append_text(json, (EngineText){utf8.data + start, at - start});
		append_escaped(json, (unsigned char) utf8.data[at]);
		start = at + 1;
	}
	append_text(json, (EngineText){utf8.data + start, at - start});
	appendStringInfoCharMacro(json, '"');
}

/*
 * Numbers
 */

/* JSON has no infinities and no NaN: they are strings. */
static void
append_number(StringInfo json, const char *number, int length)
{
	char last = number[length - 1];

	if (likely(last >= '0' && last <= '9'))
		appendBinaryStringInfo(json, number, length);
	else
		json_append_string(json, (EngineText){number, (size_t) length});
}

static void
append_numeric(StringInfo json, Datum value)
{
	const char *number =
		DatumGetCString(DirectFunctionCall1(numeric_out, value));

	append_number(json, number, (int) strlen(number));
}

static void
append_uuid(StringInfo json, const pg_uuid_t *uuid)
{
	char text[UUID_TEXT_LENGTH + 2];

	text[0] = '"';
	uuid_to_text(uuid, text + 1);
	text[UUID_TEXT_LENGTH + 1] = '"';
	appendBinaryStringInfo(json, text, sizeof(text));
}

void
uuid_to_text(const pg_uuid_t *uuid, char text[UUID_TEXT_LENGTH])
{
	for (int index = 0; index < UUID_LEN; index++)
	{
		if (index == 4 || index == 6 || index == 8 || index == 10)
			*text++ = '-';
		*text++ = hex_digits[uuid->data[index] >> 4];
		*text++ = hex_digits[uuid->data[index] & 0x0F];
	}
}

/*
 * Times, as to_json() writes them: ISO 8601, whatever DateStyle is.
 */
static void
append_time(StringInfo json, Datum value, Oid type)
{
	char time[MAXDATELEN + 1];

	JsonEncodeDateTime(time, value, type, NULL);
	appendStringInfoCharMacro(json, '"');
	appendStringInfoString(json, time);
	appendStringInfoCharMacro(json, '"');
}

void
column_write(ColumnWriter *writer, Datum value, StringInfo json)
{
	char number[DOUBLE_SHORTEST_DECIMAL_LEN + MAXINT8LEN];

	switch (writer->kind)
	{
		case COLUMN_BOOL:
			if (DatumGetBool(value))
				appendBinaryStringInfo(json, "true", 4);
			else
				appendBinaryStringInfo(json, "false", 5);
			break;
		case COLUMN_INT2:
			append_number(json, number,
						  pg_ltoa((int32) DatumGetInt16(value), number));
			break;
		case COLUMN_INT4:
			append_number(json, number, pg_ltoa(DatumGetInt32(value), number));
			break;
		case COLUMN_INT8:
			append_number(json, number, pg_lltoa(DatumGetInt64(value), number));
			break;
		case COLUMN_FLOAT4:
			append_number(
				json, number,
				float_to_shortest_decimal_buf(DatumGetFloat4(value), number));
			break;
		case COLUMN_FLOAT8:
			append_number(
				json, number,
				double_to_shortest_decimal_buf(DatumGetFloat8(value), number));
			break;
		case COLUMN_NUMERIC:
			append_numeric(json, value);
			break;
		case COLUMN_TEXT:
			json_append_string(json, text_datum_to_utf8(DatumGetTextPP(value)));
			break;
		case COLUMN_UUID:
			append_uuid(json, DatumGetUUIDP(value));
			break;
		case COLUMN_DATE:
			append_time(json, value, DATEOID);
			break;
		case COLUMN_TIMESTAMP:
			append_time(json, value, TIMESTAMPOID);
			break;
		case COLUMN_TIMESTAMPTZ:
			append_time(json, value, TIMESTAMPTZOID);
			break;
		case COLUMN_JSON:
			append_text(json, text_datum_to_utf8(DatumGetTextPP(value)));
			break;
		case COLUMN_JSONB:
			append_text(json, recording_json(value));
			break;
		case COLUMN_OTHER:
			append_text(json, text_datum_to_utf8(DatumGetTextPP(
								  FunctionCall1(&writer->to_json, value))));
			break;
	}
}

/*
 * Only texts are known not to shrink: jsonb is binary.  Conversion to UTF-8
 * may make a text shorter, by less than a half.
 */
Size
column_least_size(const ColumnWriter *writer, Datum value)
{
	Size size;

	if (writer->kind != COLUMN_TEXT && writer->kind != COLUMN_JSON)
		return 0;
	size = toast_raw_datum_size(value) - VARHDRSZ;
	return text_database_is_utf8() ? size : size / 2;
}
