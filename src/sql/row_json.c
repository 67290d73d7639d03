/*
 * row_json.c
 *		Columns of a row as JSON text.
 *
 * Common types have writers of their own, because this runs for every row of a
 * bulk load.  So do those that are made of others, because the text of many
 * small elements may be large without end: it is to be noticed at the first one
 * that is too much.  All others go through to_json().
 *
 * Output functions ask settings of the session.  Those that a type's text
 * depends on are set to what gives our text while its function runs, where they
 * are anything else, which is seldom: the defaults are ours, but for the time
 * zone, which times in ranges depend on.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_type.h"
#include "common/shortest_dec.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgtime.h"
#include "nodes/makefuncs.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/float.h"
#include "utils/fmgroids.h"
#include "utils/bytea.h"
#include "utils/cash.h"
#include "utils/geo_decls.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/pg_locale.h"
#include "utils/multirangetypes.h"
#include "utils/rangetypes.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "compat.h"
#include "sql/jsonb_value.h"
#include "sql/recording.h"
#include "sql/row_json.h"
#include "sql/text.h"

/* a point of a path takes so many bytes, and six characters or more as text */
#define POINT_BYTES sizeof(Point)
#define POINT_CHARACTERS 6

/* what a bit string has besides full bytes: its length, and the last byte */
#define MAX_BITS_OVERHEAD (sizeof(int32) + 1)

static const char hex_digits[] = "0123456789abcdef";

/* The kinds that to_json() tells from others in the same way. */
static ColumnKind
kind_of_other(Oid base_type)
{
	if (OidIsValid(get_element_type(base_type)))
		return COLUMN_ARRAY;
	if (type_is_rowtype(base_type))
		return COLUMN_ROW;
	/* those of users may have a cast to json */
	if (base_type < FirstNormalObjectId && type_is_multirange(base_type))
		return COLUMN_MULTIRANGE;
	return COLUMN_OTHER;
}

static ColumnKind
base_type_kind(Oid base_type)
{
	switch (base_type)
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
		case CASHOID:
			return COLUMN_MONEY;
		case JSONOID:
			return COLUMN_JSON;
		case JSONBOID:
			return COLUMN_JSONB;
		default:
			return kind_of_other(base_type);
	}
}

/*
 * Settings
 */

typedef enum OutputSetting
{
	SETTING_DATE_STYLE,
	SETTING_INTERVAL_STYLE,
	SETTING_FLOAT_DIGITS,
	SETTING_BYTEA,
	SETTING_TIME_ZONE,
	SETTING_MONETARY,
	SETTING_SEARCH_PATH,
	SETTING_QUOTES,
	SETTING_COUNT
} OutputSetting;

static const struct
{
	const char *name;
	const char *value;
} output_settings[SETTING_COUNT] = {
	[SETTING_DATE_STYLE] = {"DateStyle", "ISO"},
	[SETTING_INTERVAL_STYLE] = {"IntervalStyle", "postgres"},
	[SETTING_FLOAT_DIGITS] = {"extra_float_digits", "1"},
	[SETTING_BYTEA] = {"bytea_output", "hex"},
	[SETTING_TIME_ZONE] = {"TimeZone", "UTC"},
	[SETTING_MONETARY] = {"lc_monetary", "C"},
	[SETTING_SEARCH_PATH] = {"search_path", "pg_catalog"},
	[SETTING_QUOTES] = {"quote_all_identifiers", "off"}};

#define ONE_SETTING(setting) (1U << (setting))

/* what the functions of a type that is not the server's may depend on */
#define SETTINGS_OF_USERS                                                    \
	(ONE_SETTING(SETTING_DATE_STYLE) | ONE_SETTING(SETTING_INTERVAL_STYLE) | \
	 ONE_SETTING(SETTING_FLOAT_DIGITS) | ONE_SETTING(SETTING_BYTEA))

static bool
setting_is_ours(OutputSetting setting)
{
	switch (setting)
	{
		case SETTING_DATE_STYLE:
			return DateStyle == USE_ISO_DATES;
		case SETTING_INTERVAL_STYLE:
			return IntervalStyle == INTSTYLE_POSTGRES;
		case SETTING_FLOAT_DIGITS:
			return extra_float_digits > 0;
		case SETTING_BYTEA:
			return bytea_output == BYTEA_OUTPUT_HEX;
		case SETTING_TIME_ZONE:
			return strcmp(pg_get_timezone_name(session_timezone), "UTC") == 0;
		case SETTING_MONETARY:
			return strcmp(locale_monetary, "C") == 0;
		case SETTING_QUOTES:
			return !quote_all_identifiers;
		default:
			return false;
	}
}

/* The settings that the text of a type's values depends on. */
static uint32
settings_of(Oid type)
{
	Oid base = getBaseType(type);
	Oid part;

	check_stack_depth();
	switch (base)
	{
		case DATEOID:
		case TIMESTAMPOID:
			return ONE_SETTING(SETTING_DATE_STYLE);
		case TIMESTAMPTZOID:
			return ONE_SETTING(SETTING_DATE_STYLE) |
				   ONE_SETTING(SETTING_TIME_ZONE);
		case INTERVALOID:
			return ONE_SETTING(SETTING_INTERVAL_STYLE);
		case BYTEAOID:
			return ONE_SETTING(SETTING_BYTEA);
		case CASHOID:
			return ONE_SETTING(SETTING_MONETARY);
		case FLOAT4OID:
		case FLOAT8OID:
		case POINTOID:
		case LSEGOID:
		case PATHOID:
		case BOXOID:
		case POLYGONOID:
		case LINEOID:
		case CIRCLEOID:
			return ONE_SETTING(SETTING_FLOAT_DIGITS);
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGTYPEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case REGCOLLATIONOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
			return ONE_SETTING(SETTING_SEARCH_PATH) |
				   ONE_SETTING(SETTING_QUOTES);
		default:
			break;
	}
	part = type_is_multirange(base) ? get_multirange_range(base) : base;
	if (type_is_range(part))
		return settings_of(get_range_subtype(part));
	part = get_element_type(base);
	if (OidIsValid(part))
		return settings_of(part);
	if (type_is_rowtype(base))
		return SETTINGS_OF_USERS | ONE_SETTING(SETTING_TIME_ZONE) |
			   ONE_SETTING(SETTING_MONETARY);
	if (base < FirstNormalObjectId || type_is_enum(base))
		return 0;
	return SETTINGS_OF_USERS;
}

/*
 * Has an output function find our settings.  Gives what is to be handed to
 * settings_end(); an error undoes them as well.
 */
static int
settings_begin(uint32 settings)
{
	int level = 0;

	for (int i = 0; i < SETTING_COUNT; i++)
	{
		if ((settings & ONE_SETTING(i)) == 0 || setting_is_ours(i))
			continue;
		if (level == 0)
			level = NewGUCNestLevel();
		(void) set_config_option(
			output_settings[i].name, output_settings[i].value, PGC_USERSET,
			PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	}
	return level;
}

static inline void
settings_end(int level)
{
	if (level != 0)
		AtEOXact_GUC(true, level);
}

ColumnKind
column_kind(Oid type)
{
	return base_type_kind(getBaseType(type));
}

void
column_writer_init(ColumnWriter *writer, Oid type, MemoryContext context)
{
	MemoryContext previous;
	Expr *argument;

	writer->type = getBaseType(type);
	writer->kind = base_type_kind(writer->type);
	if (writer->kind == COLUMN_ARRAY)
	{
		writer->element = MemoryContextAllocZero(context, sizeof(ColumnWriter));
		column_writer_init(writer->element, get_element_type(writer->type),
						   context);
	}
	writer->settings = 0;
	if (writer->kind == COLUMN_OTHER || writer->kind == COLUMN_MULTIRANGE)
		writer->settings = settings_of(writer->type);
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

static inline bool
is_within(const StringInfo json, Size most)
{
	return (Size) json->len <= most;
}

/* Whether JSON text is not nested too deeply. */
static bool
fits_depth(EngineText json)
{
	bool in_string = false;
	int depth = 0;

	for (size_t i = 0; i < json.length; i++)
	{
		char c = json.data[i];

		if (in_string && c == '\\')
			i++;
		else if (c == '"')
			in_string = !in_string;
		else if (!in_string && (c == '[' || c == '{') &&
				 !recording_fits_depth(++depth))
			return false;
		else if (!in_string && (c == ']' || c == '}'))
			depth--;
	}
	return true;
}

bool
json_append_text(StringInfo json, EngineText utf8, Size most)
{
	if ((Size) json->len + utf8.length > most || !fits_depth(utf8))
		return false;
	append_text(json, utf8);
	return true;
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

/* A character may become six. */
bool
json_append_bounded_string(StringInfo json, EngineText utf8, Size most)
{
	if ((Size) json->len + utf8.length + 2 > most)
		return false;
	json_append_string(json, utf8);
	return is_within(json, most);
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

bool
json_append_numeric(StringInfo json, Numeric number, Size most)
{
	char *text;

	if ((Size) json->len + jsonb_number_least_length(number) > most)
		return false;
	text = DatumGetCString(
		DirectFunctionCall1(numeric_out, NumericGetDatum(number)));
	append_number(json, text, (int) strlen(text));
	pfree(text);
	return is_within(json, most);
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
 * Money as in the locale C, $1,234.50: how many of its digits come after the
 * point is nowhere but in the session's locale.
 */
static void
append_money(StringInfo json, Cash money)
{
	uint64 cents = money < 0 ? -(uint64) money : (uint64) money;
	char digits[MAXINT8LEN + 1];
	int length = pg_ulltoa_n(cents / 100, digits);

	appendStringInfoString(json, money < 0 ? "\"-$" : "\"$");
	for (int index = 0; index < length; index++)
	{
		if (index > 0 && (length - index) % 3 == 0)
			appendStringInfoCharMacro(json, ',');
		appendStringInfoCharMacro(json, digits[index]);
	}
	appendStringInfo(json, ".%02d\"", (int) (cents % 100));
}

/*
 * Times, as to_json() writes them: ISO 8601, whatever DateStyle is; in UTC,
 * whatever TimeZone is.
 */
static void
append_time(StringInfo json, Datum value, Oid type)
{
	char time[MAXDATELEN + 1];
	int utc = 0;

	JsonEncodeDateTime(time, value, type, &utc);
	appendStringInfoCharMacro(json, '"');
	appendStringInfoString(json, time);
	appendStringInfoCharMacro(json, '"');
}

/*
 * Values that are made of others
 */

/* One dimension of an array, whose elements come in the order of the text. */
static bool
append_dimension(ColumnWriter *element, StringInfo json, Size most,
				 const int *sizes, int dimensions, const Datum *values,
				 const bool *nulls, int *at)
{
	appendStringInfoCharMacro(json, '[');
	for (int index = 0; index < sizes[0]; index++)
	{
		bool fits = true;

		CHECK_FOR_INTERRUPTS();
		if (index > 0)
			appendStringInfoCharMacro(json, ',');
		if (dimensions > 1)
			fits = append_dimension(element, json, most, sizes + 1,
									dimensions - 1, values, nulls, at);
		else
		{
			if (nulls[*at])
				appendBinaryStringInfo(json, "null", 4);
			else
				fits = column_write(element, values[*at], json, most);
			(*at)++;
		}
		if (!fits || !is_within(json, most))
			return false;
	}
	appendStringInfoCharMacro(json, ']');
	return true;
}

static bool
append_array(ColumnWriter *writer, Datum value, StringInfo json, Size most)
{
	ArrayType *array = DatumGetArrayTypeP(value);
	Oid type = ARR_ELEMTYPE(array);
	Datum *values;
	bool *nulls;
	int count;
	int at = 0;
	int16 length;
	bool by_value;
	char alignment;

	if (ARR_NDIM(array) == 0)
	{
		appendBinaryStringInfo(json, "[]", 2);
		return is_within(json, most);
	}
	/* an element has a character and is followed by another one, at least */
	count = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	if ((Size) json->len + 2 * (Size) count > most)
		return false;
	get_typlenbyvalalign(type, &length, &by_value, &alignment);
	deconstruct_array(array, type, length, by_value, alignment, &values, &nulls,
					  &count);
	return append_dimension(writer->element, json, most, ARR_DIMS(array),
							ARR_NDIM(array), values, nulls, &at);
}

static bool
append_member(StringInfo json, Size most, Form_pg_attribute column, Datum value,
			  bool isnull)
{
	const char *name = NameStr(column->attname);
	ColumnWriter writer;

	if (json->data[json->len - 1] != '{')
		appendStringInfoCharMacro(json, ',');
	json_append_string(json, text_to_utf8(name, strlen(name)));
	appendStringInfoCharMacro(json, ':');
	if (isnull)
	{
		appendBinaryStringInfo(json, "null", 4);
		return is_within(json, most);
	}
	column_writer_init(&writer, column->atttypid, CurrentMemoryContext);
	return column_write(&writer, value, json, most);
}

static bool
append_row(Datum value, StringInfo json, Size most)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(value);
	TupleDesc columns = lookup_rowtype_tupdesc(
		HeapTupleHeaderGetTypeId(header), HeapTupleHeaderGetTypMod(header));
	HeapTupleData tuple = {.t_len = HeapTupleHeaderGetDatumLength(header),
						   .t_data = header};
	bool fits = true;

	appendStringInfoCharMacro(json, '{');
	for (int index = 0; fits && index < columns->natts; index++)
	{
		Form_pg_attribute column = TupleDescAttr(columns, index);
		bool isnull;
		Datum member;

		CHECK_FOR_INTERRUPTS();
		if (column->attisdropped)
			continue;
		member = heap_getattr(&tuple, index + 1, columns, &isnull);
		fits = append_member(json, most, column, member, isnull);
	}
	appendStringInfoCharMacro(json, '}');
	ReleaseTupleDesc(columns);
	return fits;
}

/* As text, like all ranges. */
static bool
append_multirange(const ColumnWriter *writer, Datum value, StringInfo json,
				  Size most)
{
	MultirangeType *multirange = DatumGetMultirangeTypeP(value);
	TypeCacheEntry *cache =
		lookup_type_cache(writer->type, TYPECACHE_MULTIRANGE_INFO);
	TypeCacheEntry *range_cache = cache->rngtype;
	StringInfoData text;
	RangeType **ranges;
	FmgrInfo output;
	Oid output_function;
	bool varlena;
	int32 count;
	int level;

	if ((Size) json->len + (Size) multirange->rangeCount > most)
		return false;
	getTypeOutputInfo(range_cache->type_id, &output_function, &varlena);
	fmgr_info(output_function, &output);
	multirange_deserialize(range_cache, multirange, &count, &ranges);
	initStringInfo(&text);
	level = settings_begin(writer->settings);
	appendStringInfoCharMacro(&text, '{');
	for (int32 index = 0; index < count; index++)
	{
		char *range;

		CHECK_FOR_INTERRUPTS();
		range = OutputFunctionCall(&output, RangeTypePGetDatum(ranges[index]));
		if (index > 0)
			appendStringInfoCharMacro(&text, ',');
		appendStringInfoString(&text, range);
		pfree(range);
		if ((Size) json->len + (Size) text.len > most)
			break;
	}
	settings_end(level);
	if ((Size) json->len + (Size) text.len > most)
		return false;
	appendStringInfoCharMacro(&text, '}');
	return json_append_bounded_string(
		json, text_to_utf8(text.data, (size_t) text.len), most);
}

/*
 * Characters that a value comes to at the very least, as far as that is known
 * without looking at the value itself: it may be too large to be fetched for
 * nothing.  jsonb may shrink, since it is binary; conversion to UTF-8 may make
 * a text shorter, by less than a half.
 */
static Size
least_length(const ColumnWriter *writer, Datum value)
{
	Size size;

	switch (writer->kind)
	{
		case COLUMN_TEXT:
		case COLUMN_JSON:
			break;
		case COLUMN_OTHER:
			if (writer->type == BYTEAOID || writer->type == XMLOID ||
				writer->type == VARBITOID || writer->type == BITOID ||
				writer->type == PATHOID || writer->type == POLYGONOID)
				break;
			return 0;
		default:
			return 0;
	}
	size = toast_raw_datum_size(value) - VARHDRSZ;
	switch (writer->type)
	{
		case VARBITOID:
		case BITOID:
			return size > MAX_BITS_OVERHEAD
					   ? (size - MAX_BITS_OVERHEAD) * BITS_PER_BYTE
					   : 0;
		case BYTEAOID:
			return size;
		case PATHOID:
		case POLYGONOID:
			/* what precedes the points takes less than three of them */
			return size / POINT_BYTES > 3
					   ? (size / POINT_BYTES - 3) * POINT_CHARACTERS
					   : 0;
		default:
			return text_database_is_utf8() ? size : size / 2;
	}
}

/* The text of a type that has no writer of its own. */
static bool
append_other(ColumnWriter *writer, Datum value, StringInfo json, Size most)
{
	int level = settings_begin(writer->settings);
	Datum result = FunctionCall1(&writer->to_json, value);

	settings_end(level);
	return json_append_text(json, text_datum_to_utf8(DatumGetTextPP(result)),
							most);
}

bool
column_write(ColumnWriter *writer, Datum value, StringInfo json, Size most)
{
	char number[DOUBLE_SHORTEST_DECIMAL_LEN + MAXINT8LEN];

	if ((Size) json->len + least_length(writer, value) > most)
		return false;
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
			return json_append_numeric(json, DatumGetNumeric(value), most);
		case COLUMN_TEXT:
			return json_append_bounded_string(
				json, text_datum_to_utf8(DatumGetTextPP(value)), most);
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
		case COLUMN_MONEY:
			append_money(json, DatumGetCash(value));
			break;
		case COLUMN_JSON:
			return json_append_text(
				json, text_datum_to_utf8(DatumGetTextPP(value)), most);
		case COLUMN_JSONB:
			return recording_append_json(json, value, most);
		case COLUMN_ARRAY:
			check_stack_depth();
			return append_array(writer, value, json, most);
		case COLUMN_ROW:
			check_stack_depth();
			return append_row(value, json, most);
		case COLUMN_MULTIRANGE:
			return append_multirange(writer, value, json, most);
		case COLUMN_OTHER:
			return append_other(writer, value, json, most);
	}
	return is_within(json, most);
}
