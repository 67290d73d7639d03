/*
 * text.c
 *		Text at the boundary between SQL and the engine.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "catalog/pg_type.h"
#include "parser/parse_coerce.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "data/store.h"
#include "engine/number.h"
#include "sql/evaluation.h"
#include "sql/text.h"

bool
text_is_ascii(const char *data, size_t length)
{
	uint64 word;

	for (; length >= sizeof(word); data += sizeof(word), length -= sizeof(word))
	{
		memcpy(&word, data, sizeof(word));
		if (word & UINT64CONST(0x8080808080808080))
			return false;
	}
	for (; length > 0; data++, length--)
	{
		if (IS_HIGHBIT_SET(*data))
			return false;
	}
	return true;
}

EngineText
text_to_utf8(const char *data, size_t length)
{
	EngineText result = {data, length};

	if (!text_database_is_utf8() && !text_is_ascii(data, length))
	{
		result.data = pg_server_to_any(data, (int) length, PG_UTF8);
		if (result.data != data)
			result.length = strlen(result.data);
	}
	return result;
}

EngineText
text_from_utf8(const char *data, size_t length)
{
	EngineText result = {data, length};

	if (!text_database_is_utf8() && !text_is_ascii(data, length))
	{
		result.data = pg_any_to_server(data, (int) length, PG_UTF8);
		if (result.data != data)
			result.length = strlen(result.data);
	}
	return result;
}

EngineText
text_datum_to_utf8(const text *datum)
{
	return text_to_utf8(VARDATA_ANY(datum), VARSIZE_ANY_EXHDR(datum));
}

EngineText
text_data_argument(Datum datum, size_t most, const char *hint)
{
	size_t size = toast_raw_datum_size(datum) - VARHDRSZ;

	if (size > most)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("experiment data of %zu bytes is too large", size),
				 errdetail("It may have up to %zu kB.", most / 1024),
				 hint ? errhint("%s", hint) : 0));
	return text_datum_to_utf8(DatumGetTextPP(datum));
}

bool
text_type_is_string(Oid type)
{
	Oid base_type = getBaseType(type);
	char category;
	bool preferred;

	get_type_category_preferred(base_type, &category, &preferred);
	return category == TYPCATEGORY_STRING || category == TYPCATEGORY_ENUM;
}

void
text_cast_init(TextCast *cast, Oid type, MemoryContext context)
{
	Oid function = InvalidOid;
	bool varlena;

	memset(cast, 0, sizeof(*cast));
	cast->collation = get_typcollation(type);
	switch (find_coercion_pathway(TEXTOID, type, COERCION_EXPLICIT, &function))
	{
		case COERCION_PATH_RELABELTYPE:
			cast->plain = true;
			return;
		case COERCION_PATH_FUNC:
			break;
		default:
			cast->output = true;
			getTypeOutputInfo(getBaseType(type), &function, &varlena);
			break;
	}
	fmgr_info_cxt(function, &cast->function, context);
}

const text *
text_cast(TextCast *cast, Datum value)
{
	LOCAL_FCINFO(fcinfo, 3);
	Datum result;

	if (likely(cast->plain))
		return DatumGetTextPP(value);
	if (cast->output)
		return cstring_to_text(OutputFunctionCall(&cast->function, value));

	/* it may want to know of a length, which there is not, and of the cast */
	InitFunctionCallInfoData(*fcinfo, &cast->function, cast->function.fn_nargs,
							 cast->collation, NULL, NULL);
	fcinfo->args[0].value = value;
	fcinfo->args[0].isnull = false;
	fcinfo->args[1].value = Int32GetDatum(-1);
	fcinfo->args[1].isnull = false;
	fcinfo->args[2].value = BoolGetDatum(true);
	fcinfo->args[2].isnull = false;
	result = FunctionCallInvoke(fcinfo);
	return fcinfo->isnull ? NULL : DatumGetTextPP(result);
}

EngineText
text_trimmed(EngineText utf8)
{
	EngineText result;
	Work work;

	evaluation_work_begin(&work);
	result = text_trim(utf8.data, utf8.length, &work);
	if (unlikely(work.stopped))
		evaluation_raise(ENGINE_INTERRUPTED);
	return result;
}

bool
text_is_longer(EngineText utf8, size_t characters)
{
	size_t count = 0;
	size_t at;

	if (utf8.length <= characters)
		return false;
	if (utf8.length > 4 * characters)
		return true;
	for (at = 0; at < utf8.length; at++)
		count += (utf8.data[at] & 0xC0) != 0x80;
	return count > characters;
}

char *
text_for_message(EngineText utf8)
{
	char *copy = pnstrdup(utf8.data, utf8.length);

	return text_database_is_utf8() ? copy
								   : store_message(copy, CurrentMemoryContext);
}
