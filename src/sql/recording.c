/*
 * recording.c
 *		What functions that record events have in common.
 */
#include "postgres.h"

#include "datatype/timestamp.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "events/record.h"
#include "settings.h"
#include "sql/evaluation.h"
#include "sql/jsonb_value.h"
#include "sql/recording.h"
#include "sql/row_json.h"
#include "sql/text.h"

#define US_PER_MS INT64CONST(1000)
#define EPOCH_MS \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY * 1000)

/*
 * JSON text
 */

Size
recording_most_json(void)
{
	return (Size) settings_max_event_size * 1024;
}

/* why what does not fit does not */
static bool too_deep = false;

bool
recording_fits_depth(int depth)
{
	if (likely(depth <= ENGINE_MAX_DEPTH))
		return true;
	too_deep = true;
	return false;
}

bool
recording_take_too_deep(void)
{
	bool result = too_deep;

	too_deep = false;
	return result;
}

void
recording_raise_too_large(const char *what)
{
	if (recording_take_too_deep())
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("event is nested too deeply"),
				 errdetail("The JSON text of its %s may be nested up to %d "
						   "deep.",
						   what, ENGINE_MAX_DEPTH)));
	ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					errmsg("event is too large"),
					errdetail("The JSON text of its %s alone is larger than "
							  "\"absmartly.max_event_size\", %d kB.",
							  what, settings_max_event_size)));
}

static inline void
append_text(StringInfo json, const char *text)
{
	appendBinaryStringInfo(json, text, (int) strlen(text));
}

static bool
append_scalar(StringInfo json, const JsonbValue *scalar, Size most)
{
	EngineText string;

	switch (scalar->type)
	{
		case jbvNull:
			append_text(json, "null");
			break;
		case jbvBool:
			append_text(json, scalar->val.boolean ? "true" : "false");
			break;
		case jbvNumeric:
			return json_append_numeric(json, scalar->val.numeric, most);
		case jbvString:
			string.data = scalar->val.string.val;
			string.length = (size_t) scalar->val.string.len;
			return json_append_bounded_string(json, string, most);
		default:
			elog(ERROR, "unexpected type %d of a jsonb scalar",
				 (int) scalar->type);
	}
	return (Size) json->len <= most;
}

/*
 * Unlike the server's text this one has no blanks: it waits in the outbox, and
 * travels.
 */
static bool
append_container(StringInfo json, const JsonbContainer *container, Size most)
{
	JsonbIterator *iterator =
		JsonbIteratorInit(unconstify(JsonbContainer *, container));
	bool scalar = JsonContainerIsScalar(container);
	bool first = true;
	int depth = 0;
	JsonbIteratorToken token;
	JsonbValue value;

	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		bool fits = true;

		CHECK_FOR_INTERRUPTS();
		if (!first && token != WJB_END_ARRAY && token != WJB_END_OBJECT)
			appendStringInfoCharMacro(json, ',');
		first = false;
		switch (token)
		{
			case WJB_BEGIN_ARRAY:
				if (!scalar)
					appendStringInfoCharMacro(json, '[');
				first = true;
				fits = recording_fits_depth(++depth);
				break;
			case WJB_END_ARRAY:
				if (!scalar)
					appendStringInfoCharMacro(json, ']');
				depth--;
				break;
			case WJB_BEGIN_OBJECT:
				appendStringInfoCharMacro(json, '{');
				first = true;
				fits = recording_fits_depth(++depth);
				break;
			case WJB_END_OBJECT:
				appendStringInfoCharMacro(json, '}');
				depth--;
				break;
			case WJB_KEY:
				fits = append_scalar(json, &value, most);
				appendStringInfoCharMacro(json, ':');
				first = true;
				break;
			default:
				fits = append_scalar(json, &value, most);
				break;
		}
		if (!fits || (Size) json->len > most)
			return false;
	}
	return true;
}

bool
recording_append_json(StringInfo json, Datum value, Size most)
{
	const Jsonb *jsonb = jsonb_to_utf8(DatumGetJsonbP(value));

	return append_container(json, &jsonb->root, most);
}

EngineText
recording_json(Datum value, const char *what)
{
	StringInfoData json;

	initStringInfo(&json);
	if (!recording_append_json(&json, value, recording_most_json()))
		recording_raise_too_large(what);
	return (EngineText){json.data, (size_t) json.len};
}

/*
 * Attributes
 */

static void
add_system_attribute(EventAttribute *attributes, uint32 *count,
					 const char *name, const char *value, bool number)
{
	EventAttribute *attribute = &attributes[(*count)++];
	EngineText text = {value, strlen(value)};

	attribute->name.data = name;
	attribute->name.length = strlen(name);
	if (number)
		attribute->value = text;
	else
	{
		StringInfoData json;

		initStringInfo(&json);
		json_append_string(&json, text);
		attribute->value.data = json.data;
		attribute->value.length = (size_t) json.len;
	}
}

/*
 * Protocol 8, "Attributes".  The application's version is a number where it
 * looks like one, and counts if it is above 0.
 */
uint32
recording_system_attributes(EventAttribute *attributes)
{
	const EventOrigin *origin = record_current_origin();
	const char *version = origin->application_version;
	uint32 count = 0;

	add_system_attribute(attributes, &count, "sdk_name",
						 "absmartly-postgresql-sdk", false);
	add_system_attribute(attributes, &count, "sdk_version", ABSMARTLY_VERSION,
						 false);
	if (!origin->known)
		return count;
	add_system_attribute(attributes, &count, "application", origin->application,
						 false);
	add_system_attribute(attributes, &count, "environment", origin->environment,
						 false);
	if (strspn(version, "0123456789") < strlen(version))
		add_system_attribute(attributes, &count, "app_version", version, false);
	else
	{
		version += strspn(version, "0");
		if (*version != '\0')
			add_system_attribute(attributes, &count, "app_version", version,
								 true);
	}
	return count;
}

static int
compare_attributes(const void *left, const void *right)
{
	const EngineText *one = &((const EventAttribute *) left)->name;
	const EngineText *other = &((const EventAttribute *) right)->name;
	int order = memcmp(one->data, other->data, Min(one->length, other->length));

	if (order != 0)
		return order;
	return one->length < other->length ? -1 : one->length > other->length;
}

/*
 * The members of an object, whose names the attributes refer to; false if they
 * are too large.
 */
static bool
add_members(EventAttribute *attributes, uint32 count, const Jsonb *object)
{
	Size most = recording_most_json();
	JsonbIterator *iterator =
		JsonbIteratorInit(unconstify(JsonbContainer *, &object->root));
	EventAttribute *attribute = attributes;
	JsonbIteratorToken token;
	JsonbValue value;
	StringInfoData json;
	size_t offset = 0;
	uint32 index;

	initStringInfo(&json);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			if (value.val.string.len > ENGINE_MAX_NAME)
				ereport(
					ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("name of an attribute is too long"),
					 errdetail("It may have up to %d bytes, this one has %d.",
							   ENGINE_MAX_NAME, value.val.string.len)));
			attribute->name.data = value.val.string.val;
			attribute->name.length = (size_t) value.val.string.len;
		}
		else if (token == WJB_VALUE)
		{
			int start = json.len;

			if (!(value.type == jbvBinary
					  ? append_container(&json, value.val.binary.data, most)
					  : append_scalar(&json, &value, most)))
				return false;
			attribute->value.length = (size_t) (json.len - start);
			attribute++;
		}
	}

	/* the text does not move any more */
	for (index = 0; index < count; index++)
	{
		attributes[index].value.data = json.data + offset;
		offset += attributes[index].value.length;
	}
	if (count > 1)
		qsort(attributes, count, sizeof(EventAttribute), compare_attributes);
	return true;
}

const EventAttribute *
recording_attributes(Datum attributes, uint32 *count, bool *fits)
{
	uint32 nsystem =
		settings_include_system_attributes ? RECORDING_SYSTEM_ATTRIBUTES : 0;
	const Jsonb *object = NULL;
	uint32 nmembers = 0;
	EventAttribute *result;

	if (DatumGetPointer(attributes) != NULL)
	{
		evaluation_check_object(attributes, "attributes");
		object = jsonb_to_utf8(DatumGetJsonbP(attributes));
		nmembers = JB_ROOT_COUNT(object);
	}
	*count = 0;
	if (fits != NULL)
		*fits = true;
	if (nsystem + nmembers == 0)
		return NULL;
	if (nsystem + nmembers > ENCODING_MAX_ATTRIBUTES)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("too many attributes"),
						errdetail("An event may have up to %u attributes.",
								  ENCODING_MAX_ATTRIBUTES - nsystem)));

	result = palloc((nsystem + nmembers) * sizeof(EventAttribute));
	if (nsystem > 0)
		nsystem = recording_system_attributes(result);
	if (nmembers > 0 && !add_members(result + nsystem, nmembers, object))
	{
		if (fits == NULL)
			recording_raise_too_large("attributes");
		else
			*fits = false;
		return NULL;
	}
	*count = nsystem + nmembers;
	return result;
}

/*
 * Names and times
 */

EngineText
recording_goal_name(const text *name)
{
	EngineText utf8 = evaluation_name(name, "name of a goal");

	if (utf8.length == 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("name of a goal must not be empty")));
	return utf8;
}

int64
recording_time_ms(TimestampTz time, const char *what)
{
	int64 ms = time / US_PER_MS;

	if (TIMESTAMP_NOT_FINITE(time))
		ereport(ERROR, (errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
						errmsg("%s must not be infinite", what)));
	if (time % US_PER_MS < 0)
		ms--;
	return ms + EPOCH_MS;
}
