/*
 * render.c
 *		Publish requests as the collector expects them (protocol 1 and 9).
 *
 * Millions of events go through here one by one, so room is made once for
 * each, for the worst case, and what is fixed is copied by the word.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "engine/assign.h"
#include "engine/hash.h"
#include "worker/render.h"

/* bytes of the longest int64 */
#define INTEGER_BOUND 20

/* bytes that suffice for all that is fixed in a unit, an event, a request */
#define UNIT_BOUND (64 + UNIT_HASH_LENGTH)
#define EVENT_BOUND (256 + 4 * INTEGER_BOUND)
#define REQUEST_BOUND 256

/* A character takes six bytes at most, as \u0000 does. */
#define STRING_BOUND(string) (2 + 6 * (string).length)

static const char version[] = ABSMARTLY_VERSION;

StaticAssertDecl(sizeof(version) + sizeof(RENDER_PREFIX) + RENDER_TIME_DIGITS <
					 REQUEST_BOUND / 2,
				 "a request's beginning must fit its bound");

/* Makes room at a text's end; gives the end. */
static inline char *
reserve(StringInfo text, size_t bytes)
{
	enlargeStringInfo(text, (int) Min(bytes, PG_INT32_MAX));
	return text->data + text->len;
}

static inline void
finish(StringInfo text, char *to)
{
	*to = '\0';
	text->len = (int) (to - text->data);
}

static inline char *
put_bytes(char *to, const char *bytes, size_t length)
{
	memcpy(to, bytes, length);
	return to + length;
}

#define PUT(to, literal) put_bytes(to, literal, sizeof(literal) - 1)

static inline char *
put_integer(char *to, int64 value)
{
	return to + pg_lltoa(value, to);
}

static inline char *
put_boolean(char *to, bool value)
{
	return value ? PUT(to, "true") : PUT(to, "false");
}

/* A character that can't stand in a string as it is. */
static char *
put_escaped(char *to, unsigned char character)
{
	static const char digits[] = "0123456789abcdef";
	char short_form = '\0';

	switch (character)
	{
		case '"':
		case '\\':
			short_form = (char) character;
			break;
		case '\b':
			short_form = 'b';
			break;
		case '\f':
			short_form = 'f';
			break;
		case '\n':
			short_form = 'n';
			break;
		case '\r':
			short_form = 'r';
			break;
		case '\t':
			short_form = 't';
			break;
		default:
			break;
	}
	*to++ = '\\';
	if (short_form != '\0')
		*to++ = short_form;
	else
	{
		to = PUT(to, "u00");
		*to++ = digits[character >> 4];
		*to++ = digits[character & 0x0F];
	}
	return to;
}

static char *
put_string(char *to, EngineText string)
{
	*to++ = '"';
	for (size_t i = 0; i < string.length; i++)
	{
		unsigned char character = (unsigned char) string.data[i];

		if (unlikely(character < 0x20 || character == '"' || character == '\\'))
			to = put_escaped(to, character);
		else
			*to++ = (char) character;
	}
	*to++ = '"';
	return to;
}

static char *
put_string_or_null(char *to, EngineText string)
{
	return string.data == NULL ? PUT(to, "null") : put_string(to, string);
}

void
render_init(Render *render, StringInfo text)
{
	render->text = text;
	render->has_exposures = false;
	initStringInfo(&render->goals);
	initStringInfo(&render->attributes);
}

int64
render_now(void)
{
	return (int64) (GetCurrentTimestamp() / 1000) +
		   (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY *
			   INT64CONST(1000);
}

/* When an attribute was set, as the collector is told. */
static int64
attribute_time(const EventContext *context, const EventAttribute *attribute)
{
	if (!context->own_times)
		return context->set_at;
	return attribute->set_at == ENCODING_AT_PUBLISH ? render_now()
													: attribute->set_at;
}

/* The collector refuses attributes without a name: they are not sent. */
static void
append_attributes(StringInfo text, const EventContext *context, bool named)
{
	bool first = true;

	appendStringInfoChar(text, '[');
	for (uint32 i = 0; i < context->nattributes; i++)
	{
		const EventAttribute *attribute = &context->attributes[i];
		char *to;

		if (named && attribute->name.length == 0)
			continue;
		to = reserve(text, EVENT_BOUND + STRING_BOUND(attribute->name) +
							   attribute->value.length);
		if (!first)
			*to++ = ',';
		first = false;
		to = PUT(to, "{\"name\":");
		to = put_string(to, attribute->name);
		to = PUT(to, ",\"value\":");
		to = put_bytes(to, attribute->value.data, attribute->value.length);
		to = PUT(to, ",\"setAt\":");
		to = put_integer(to, attribute_time(context, attribute));
		*to++ = '}';
		finish(text, to);
	}
	appendStringInfoChar(text, ']');
}

void
render_attributes(StringInfo text, const EventContext *context)
{
	append_attributes(text, context, false);
}

void
render_begin(Render *render, const EventContext *context)
{
	size_t bound = REQUEST_BOUND;
	char *to;

	render->has_exposures = false;
	resetStringInfo(&render->goals);
	resetStringInfo(&render->attributes);
	if (context->nattributes > 0)
		append_attributes(&render->attributes, context, true);

	for (uint32 i = 0; i < context->nunits; i++)
		bound += UNIT_BOUND + STRING_BOUND(context->units[i].type);
	to = reserve(render->text, bound);
	to = PUT(to, RENDER_PREFIX);
	memset(to, '0', RENDER_TIME_DIGITS);
	to += RENDER_TIME_DIGITS;
	to = PUT(to, ",\"hashed\":true");
	if (context->historic)
		to = PUT(to, ",\"historic\":true");
	to = PUT(to, ",\"sdkVersion\":\"");
	to = PUT(to, version);
	to = PUT(to, "\",\"units\":[");
	for (uint32 i = 0; i < context->nunits; i++)
	{
		const EventUnit *unit = &context->units[i];

		if (i > 0)
			*to++ = ',';
		to = PUT(to, "{\"type\":");
		to = put_string(to, unit->type);
		to = PUT(to, ",\"uid\":\"");
		to += base64url_encode(unit->hash, ENCODING_UNIT_BYTES, to);
		to = PUT(to, "\"}");
	}
	*to++ = ']';
	finish(render->text, to);
}

void
render_exposure(Render *render, const EventExposure *exposure)
{
	uint32 flags = exposure->flags;
	char *to =
		reserve(render->text, EVENT_BOUND + STRING_BOUND(exposure->name) +
								  STRING_BOUND(exposure->unit_type));

	to = render->has_exposures ? PUT(to, ",{\"id\":")
							   : PUT(to, ",\"exposures\":[{\"id\":");
	render->has_exposures = true;
	to = put_integer(to, exposure->id);
	to = PUT(to, ",\"name\":");
	to = put_string(to, exposure->name);
	to = PUT(to, ",\"unit\":");
	to = put_string_or_null(to, exposure->unit_type);
	to = PUT(to, ",\"variant\":");
	to = put_integer(to, exposure->variant);
	to = PUT(to, ",\"exposedAt\":");
	to = put_integer(to, exposure->exposed_at);
	to = PUT(to, ",\"assigned\":");
	to = put_boolean(to, flags & ASSIGN_ASSIGNED);
	to = PUT(to, ",\"eligible\":");
	to = put_boolean(to, flags & ASSIGN_ELIGIBLE);
	to = PUT(to, ",\"overridden\":");
	to = put_boolean(to, flags & ASSIGN_OVERRIDDEN);
	to = PUT(to, ",\"fullOn\":");
	to = put_boolean(to, flags & ASSIGN_FULL_ON);
	to = PUT(to, ",\"custom\":");
	to = put_boolean(to, flags & ASSIGN_CUSTOM);
	to = PUT(to, ",\"audienceMismatch\":");
	to = put_boolean(to, flags & ASSIGN_AUDIENCE_MISMATCH);
	to = PUT(to, ",\"ruleOverride\":");
	to = put_boolean(to, flags & ASSIGN_RULE_OVERRIDE);
	if (exposure->has_holdouts)
	{
		to = PUT(to, ",\"heldOut\":");
		to = put_boolean(to, flags & ASSIGN_HELD_OUT);
		to = PUT(to, ",\"holdoutId\":");
		to = put_integer(to, exposure->holdout_id);
	}
	*to++ = '}';
	finish(render->text, to);
}

void
render_goal(Render *render, const EventGoal *goal)
{
	char *to = reserve(&render->goals, EVENT_BOUND + STRING_BOUND(goal->name) +
										   goal->properties.length);

	if (render->goals.len > 0)
		*to++ = ',';
	to = PUT(to, "{\"name\":");
	to = put_string(to, goal->name);
	to = PUT(to, ",\"achievedAt\":");
	to = put_integer(to, goal->achieved_at);
	to = PUT(to, ",\"properties\":");
	if (goal->properties.data == NULL)
		to = PUT(to, "null");
	else
		to = put_bytes(to, goal->properties.data, goal->properties.length);
	*to++ = '}';
	finish(&render->goals, to);
}

void
render_end(Render *render)
{
	char *to =
		reserve(render->text, REQUEST_BOUND + (size_t) render->goals.len +
								  (size_t) render->attributes.len);

	if (render->has_exposures)
		*to++ = ']';
	if (render->goals.len > 0)
	{
		to = PUT(to, ",\"goals\":[");
		to = put_bytes(to, render->goals.data, (size_t) render->goals.len);
		*to++ = ']';
	}
	if (render->attributes.len > 0)
	{
		to = PUT(to, ",\"attributes\":");
		to = put_bytes(to, render->attributes.data,
					   (size_t) render->attributes.len);
	}
	*to++ = '}';
	finish(render->text, to);
}

/*
 * A clock that is far off, before 2001 or after 2286, is moved to the nearest
 * time that has the digits: a number may not begin with 0.
 */
void
render_set_time(char *request, int64 ms)
{
	char digits[INTEGER_BOUND + 1];

	ms = Max(ms, INT64CONST(1000000000000));
	ms = Min(ms, INT64CONST(9999999999999));
	pg_lltoa(ms, digits);
	memcpy(request + strlen(RENDER_PREFIX), digits, RENDER_TIME_DIGITS);
}
