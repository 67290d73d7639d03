/*
 * json.c
 *		JSON text read into a tree of the engine's own.
 *
 * json-c builds the tree, but it is not trusted with the text as it came.  Even
 * when told to be strict it takes NaN, leading zeros, "1." and raw control
 * characters; it clamps integers beyond 64 bits, forgets the sign of -0 and
 * the spelling of all integers; and it cuts names at a NUL.  So the text is
 * first checked here by the grammar of RFC 8259, then read once more, rewritten
 * on the way into what json-c cannot misread, and handed to it piece by piece:
 *
 *	- a number becomes a string: U+0001 and the number's text;
 *	- a string that itself begins with U+0001 gets another one in front;
 *	- in names U+0000 becomes U+0001 "0", and U+0001 becomes U+0001 "1";
 *	- blanks between tokens go away.
 *
 * U+0001 can stand in JSON only as an escape, so ordinary text passes
 * unchanged.  Numbers thus keep their exact text wherever they stand, also
 * where a repeated name drops some of them.
 *
 * json-c takes some hundred bytes for a value and a thousand for an object, so
 * it never gets to see a whole text.  It reads pieces, each an array of values
 * that stand beside each other, and what it has made of a piece becomes nodes
 * of ours before it reads the next one.  Only what is longer than a piece, a
 * container or a string, is put together here.  Thus a parse takes what its
 * tree takes, and some megabytes at most.
 *
 * json-c replaces half a surrogate pair by U+FFFD, since UTF-8 has no form for
 * it.  That is as good as any other answer.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "json.h"

/* Longer texts would exceed json-c's int offsets when rewritten. */
#define JSON_MAX_TEXT ((size_t) 256 * 1024 * 1024)

/* What a tree may take, estimated: a value is a node and, mostly, its text. */
#define JSON_MAX_COST (UINT64_C(512) * 1024 * 1024)
#define JSON_VALUE_COST 48

/* What is longer is not read by json-c at once. */
#define JSON_PIECE 16384

/* The host is asked whether to go on once for so many values. */
#define JSON_VALUES_PER_ASK 1024

/* What a node costs when it is copied, in units of work.h */
#define NODE_COST 8

#define MARK '\001'
#define MARK_ESCAPE "\\u0001"

/* A container or a string that is longer than a piece. */
typedef struct LongValue
{
	size_t start; /* of its bracket or quote, in the text */
	size_t count; /* values in it, a member's name and value being two; bytes
				   * between a string's quotes */
} LongValue;

typedef struct JsonReader
{
	const char *start;
	const char *next; /* first byte not yet read */
	const char *end;
	int depth;
	int deepest; /* that depth was */
	int max_depth;
	uint64_t cost;
	uint64_t max_cost;
	uint32_t values; /* that were checked */
	Work work; /* of what is no value: blanks and digits */
	Arena *arena; /* of the tree; tells when to stop */
	EngineStatus status;
	const char *problem; /* what is wrong at next; set with status */

	Arena scratch; /* for what follows */
	LongValue *long_values; /* in the text's order, once it is checked */
	uint32_t nlong_values;
	uint32_t max_long_values;
	uint32_t next_long_value; /* the first one that is not yet read */

	json_tokener *tokener; /* NULL: the text is only checked */
	json_object *tree; /* of the present piece */
	bool complete; /* json-c has seen all of it */
	size_t used; /* bytes in the buffer */
	char buffer[8192]; /* rewritten text on its way to json-c */
} JsonReader;

/* Remembers the first problem; false, for callers to return. */
static bool
fail(JsonReader *reader, EngineStatus status, const char *problem)
{
	if (reader->status == ENGINE_OK)
	{
		reader->status = status;
		reader->problem = problem;
	}
	return false;
}

/*
 * Hands the buffer to json-c.  The text is valid by construction, so the only
 * thing that can go wrong is memory.
 */
static bool
flush(JsonReader *reader)
{
	enum json_tokener_error error;

	if (reader->used == 0 || reader->complete)
		return true;
	if (arena_interrupted(reader->arena))
		return fail(reader, ENGINE_NO_MEMORY, NULL);
	reader->tree = json_tokener_parse_ex(reader->tokener, reader->buffer,
										 (int) reader->used);
	error = json_tokener_get_error(reader->tokener);
	reader->used = 0;
	if (error == json_tokener_success)
		reader->complete = true;
	else if (error != json_tokener_continue)
		return fail(reader, ENGINE_NO_MEMORY, NULL);
	return true;
}

static bool
emit(JsonReader *reader, const char *text, size_t length)
{
	if (reader->tokener == NULL)
		return true;
	while (length > 0)
	{
		size_t room = sizeof(reader->buffer) - reader->used;
		size_t part = length < room ? length : room;

		memcpy(reader->buffer + reader->used, text, part);
		reader->used += part;
		text += part;
		length -= part;
		if (reader->used == sizeof(reader->buffer) && !flush(reader))
			return false;
	}
	return true;
}

static bool
emit_byte(JsonReader *reader, char byte)
{
	return emit(reader, &byte, 1);
}

/* Counts the reading of so many bytes; false: the host wants it to end. */
static bool
goes_on(JsonReader *reader, size_t bytes)
{
	if (work_goes_on(&reader->work, bytes))
		return true;
	reader->arena->failed = true;
	return fail(reader, ENGINE_NO_MEMORY, NULL);
}

static void
skip_blanks(JsonReader *reader)
{
	while (reader->next < reader->end &&
		   (*reader->next == ' ' || *reader->next == '\n' ||
			*reader->next == '\r' || *reader->next == '\t') &&
		   goes_on(reader, 1))
		reader->next++;
}

/* The next byte, or -1 at the end. */
static int
peek(const JsonReader *reader)
{
	return reader->next < reader->end ? (unsigned char) *reader->next : -1;
}

static bool
unexpected(JsonReader *reader)
{
	return fail(reader, ENGINE_MALFORMED,
				peek(reader) < 0 ? "unexpected end of the text"
								 : "unexpected character");
}

static bool
is_digit(int c)
{
	return c >= '0' && c <= '9';
}

/*
 * The length of the valid UTF-8 character of more than one byte at text, or 0:
 * no overlong form, no surrogate, nothing beyond U+10FFFF.
 */
static size_t
utf8_character(const char *text, const char *end)
{
	const unsigned char *bytes = (const unsigned char *) text;
	size_t left = (size_t) (end - text);
	unsigned char low = 0x80;
	unsigned char high = 0xbf;
	size_t length;

	if (bytes[0] >= 0xc2 && bytes[0] <= 0xdf)
		length = 2;
	else if (bytes[0] >= 0xe0 && bytes[0] <= 0xef)
		length = 3;
	else if (bytes[0] >= 0xf0 && bytes[0] <= 0xf4)
		length = 4;
	else
		return 0;
	if (left < length)
		return 0;

	if (bytes[0] == 0xe0)
		low = 0xa0;
	else if (bytes[0] == 0xed)
		high = 0x9f;
	else if (bytes[0] == 0xf0)
		low = 0x90;
	else if (bytes[0] == 0xf4)
		high = 0x8f;
	if (bytes[1] < low || bytes[1] > high)
		return 0;
	for (size_t i = 2; i < length; i++)
	{
		if (bytes[i] < 0x80 || bytes[i] > 0xbf)
			return 0;
	}
	return length;
}

/* The value of four hexadecimal digits, or -1. */
static int
four_hex_digits(const char *text, const char *end)
{
	int value = 0;

	if (end - text < 4)
		return -1;
	for (int i = 0; i < 4; i++)
	{
		int c = (unsigned char) text[i];

		if (is_digit(c))
			value = value << 4 | (c - '0');
		else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))
			value = value << 4 | ((c & 0x0f) + 9);
		else
			return -1;
	}
	return value;
}

/* Notes a value that began at start and has just been read. */
static bool
note_if_long(JsonReader *reader, const char *start, size_t count)
{
	LongValue *value;

	if (reader->tokener != NULL || reader->next - start <= JSON_PIECE)
		return true;
	if (reader->nlong_values == reader->max_long_values)
	{
		uint32_t larger =
			reader->max_long_values == 0 ? 64 : 2 * reader->max_long_values;

		value = arena_alloc(&reader->scratch, larger * sizeof(LongValue));
		if (value == NULL)
			return fail(reader, ENGINE_NO_MEMORY, NULL);
		if (reader->nlong_values > 0)
			memcpy(value, reader->long_values,
				   reader->nlong_values * sizeof(LongValue));
		reader->long_values = value;
		reader->max_long_values = larger;
	}
	value = &reader->long_values[reader->nlong_values++];
	value->start = (size_t) (start - reader->start);
	value->count = count;
	return true;
}

/*
 * One escape sequence, reader->next being at its backslash.  *opens_pair says
 * whether it is the first half of a surrogate pair.
 */
static bool
read_escape(JsonReader *reader, bool is_name, bool is_first, bool *opens_pair)
{
	const char *escape = reader->next;
	int code;

	*opens_pair = false;

	if (reader->end - escape < 2)
	{
		reader->next = reader->end;
		return unexpected(reader);
	}
	if (escape[1] != 'u')
	{
		if (escape[1] == '\0' || strchr("\"\\/bfnrt", escape[1]) == NULL)
			return fail(reader, ENGINE_MALFORMED, "invalid escape");
		reader->next += 2;
		return emit(reader, escape, 2);
	}

	code = four_hex_digits(escape + 2, reader->end);
	if (code < 0)
		return fail(reader, ENGINE_MALFORMED, "invalid escape");
	reader->next += 6;
	*opens_pair = code >= 0xd800 && code <= 0xdbff;
	if (code > 1)
		return emit(reader, escape, 6);
	if (is_name)
		return emit(reader, MARK_ESCAPE, 6) &&
			   emit_byte(reader, code == 0 ? '0' : '1');
	if (code == 1 && is_first && !emit(reader, MARK_ESCAPE, 6))
		return false;
	return emit(reader, escape, 6);
}

/*
 * A part of a string between its quotes: up to the closing one, which is not
 * read, or, between two characters, after some JSON_PIECE bytes.
 */
static bool
read_characters(JsonReader *reader, bool is_name)
{
	const char *first = reader->next;
	bool opens_pair = false;

	for (;;)
	{
		const char *run = reader->next;
		const char *next = run;
		const char *end = reader->end;

		if (run - first >= JSON_PIECE && !opens_pair)
			return true;
		if (end - run > JSON_PIECE)
			end = run + JSON_PIECE;

		/* all that needs no look at all */
		while (next < end && (unsigned char) *next >= 0x20 &&
			   (unsigned char) *next < 0x80 && *next != '"' && *next != '\\')
			next++;
		reader->next = next;
		if (next > run)
			opens_pair = false;
		if (!emit(reader, run, (size_t) (next - run)))
			return false;

		if (next == end && end < reader->end)
			continue;
		if (next == reader->end)
			return unexpected(reader);
		if (next == end)
			continue;
		if (*next == '"')
			return true;
		if (*next == '\\')
		{
			if (!read_escape(reader, is_name, next == first, &opens_pair))
				return false;
		}
		else if ((unsigned char) *next < 0x20)
			return fail(reader, ENGINE_MALFORMED,
						"control character in a string");
		else
		{
			size_t length = utf8_character(next, reader->end);

			if (length == 0)
				return fail(reader, ENGINE_MALFORMED, "invalid UTF-8");
			opens_pair = false;
			reader->next += length;
			if (!emit(reader, next, length))
				return false;
		}
	}
}

/* A string, reader->next being at its first quote. */
static bool
read_string(JsonReader *reader, bool is_name)
{
	const char *start = reader->next++;

	if (!emit_byte(reader, '"'))
		return false;
	do
	{
		if (!read_characters(reader, is_name))
			return false;
	} while (peek(reader) != '"');
	reader->next++;
	return note_if_long(reader, start, (size_t) (reader->next - start - 2)) &&
		   emit_byte(reader, '"');
}

/* One digit at least. */
static bool
read_digits(JsonReader *reader)
{
	if (!is_digit(peek(reader)))
		return fail(reader, ENGINE_MALFORMED, "invalid number");
	while (is_digit(peek(reader)) && goes_on(reader, 1))
		reader->next++;
	return true;
}

/* A number by the grammar of RFC 8259, handed over as a marked string. */
static bool
read_number(JsonReader *reader)
{
	const char *first = reader->next;

	if (peek(reader) == '-')
		reader->next++;
	if (peek(reader) == '0')
	{
		reader->next++;
		if (is_digit(peek(reader)))
			return fail(reader, ENGINE_MALFORMED, "invalid number");
	}
	else if (!read_digits(reader))
		return false;
	if (peek(reader) == '.')
	{
		reader->next++;
		if (!read_digits(reader))
			return false;
	}
	if (peek(reader) == 'e' || peek(reader) == 'E')
	{
		reader->next++;
		if (peek(reader) == '+' || peek(reader) == '-')
			reader->next++;
		if (!read_digits(reader))
			return false;
	}
	return emit(reader, "\"" MARK_ESCAPE, 7) &&
		   emit(reader, first, (size_t) (reader->next - first)) &&
		   emit_byte(reader, '"');
}

static bool
read_literal(JsonReader *reader, const char *literal, size_t length)
{
	if ((size_t) (reader->end - reader->next) < length ||
		memcmp(reader->next, literal, length) != 0)
		return unexpected(reader);
	reader->next += length;
	return emit(reader, literal, length);
}

static bool read_value(JsonReader *reader);

/* Counts a value, or a member's name, among those that a text may have. */
static bool
count_value(JsonReader *reader)
{
	if (reader->tokener != NULL)
		return true;
	reader->cost += JSON_VALUE_COST;
	if (reader->cost > reader->max_cost)
		return fail(reader, ENGINE_TOO_LARGE, "too many values");
	if (reader->values++ % JSON_VALUES_PER_ASK == 0 &&
		arena_interrupted(reader->arena))
		return fail(reader, ENGINE_NO_MEMORY, NULL);
	return true;
}

/* An array or an object, reader->next being at its bracket. */
static bool
read_container(JsonReader *reader, bool is_object)
{
	const char *start = reader->next;
	char closing = is_object ? '}' : ']';
	size_t count = 0;

	if (reader->depth >= reader->max_depth)
		return fail(reader, ENGINE_TOO_DEEP, "nested too deep");
	if (++reader->depth > reader->deepest)
		reader->deepest = reader->depth;
	if (!emit_byte(reader, *reader->next++))
		return false;
	skip_blanks(reader);
	if (peek(reader) != closing)
	{
		for (;;)
		{
			if (is_object)
			{
				if (peek(reader) != '"')
					return unexpected(reader);
				if (!read_string(reader, true) || !count_value(reader))
					return false;
				count++;
				skip_blanks(reader);
				if (peek(reader) != ':')
					return unexpected(reader);
				reader->next++;
				if (!emit_byte(reader, ':'))
					return false;
				skip_blanks(reader);
			}
			if (!read_value(reader))
				return false;
			count++;
			skip_blanks(reader);
			if (peek(reader) == closing)
				break;
			if (peek(reader) != ',')
				return unexpected(reader);
			reader->next++;
			if (!emit_byte(reader, ','))
				return false;
			skip_blanks(reader);
		}
	}
	reader->next++;
	reader->depth--;
	return note_if_long(reader, start, count) && emit_byte(reader, closing);
}

/* Any value; recursive through read_container(), to max_depth at most. */
static bool
read_value(JsonReader *reader)
{
	int c = peek(reader);

	if (!count_value(reader))
		return false;
	switch (c)
	{
		case '{':
			return read_container(reader, true);
		case '[':
			return read_container(reader, false);
		case '"':
			return read_string(reader, false);
		case 'n':
			return read_literal(reader, "null", 4);
		case 't':
			return read_literal(reader, "true", 4);
		case 'f':
			return read_literal(reader, "false", 5);
		default:
			if (c == '-' || is_digit(c))
				return read_number(reader);
			return unexpected(reader);
	}
}

/*
 * The double of a number's text, saturated.  Short numbers, which are nearly
 * all, are exact in both parts, so one division or multiplication rounds
 * correctly; the others are strtod()'s.
 */
static double
number_value(const char *text, size_t length)
{
	static const double powers[] = {1e0,  1e1,  1e2,  1e3, 1e4,  1e5,
									1e6,  1e7,  1e8,  1e9, 1e10, 1e11,
									1e12, 1e13, 1e14, 1e15};
	uint64_t mantissa = 0;
	size_t decimals = 0;
	bool point = false;
	double number;

	if (length <= 16)
	{
		size_t i = text[0] == '-' ? 1 : 0;

		for (; i < length; i++)
		{
			if (text[i] == '.')
				point = true;
			else if (is_digit(text[i]))
			{
				mantissa = mantissa * 10 + (uint64_t) (text[i] - '0');
				decimals += point;
			}
			else
				break;
		}
		if (i == length && mantissa < UINT64_C(1) << 53)
		{
			number = (double) mantissa / powers[decimals];
			return text[0] == '-' ? -number : number;
		}
	}

	number = strtod(text, NULL);
	if (isinf(number))
		number = number > 0 ? DBL_MAX : -DBL_MAX;
	return number;
}

/*
 * Lets the node refer to a copy of length bytes, with a NUL behind.  Members'
 * names come with is_name, with U+0000 and U+0001 as read_escape() has
 * written them.
 */
static bool
set_text(JsonNode *node, const char *text, size_t length, bool is_name,
		 Arena *arena)
{
	char *copy = arena_strdup(arena, text, length);

	if (copy == NULL)
		return false;
	if (is_name && memchr(copy, MARK, length) != NULL)
	{
		size_t kept = 0;

		for (size_t i = 0; i < length; i++)
		{
			if (copy[i] == MARK)
				copy[kept++] = copy[++i] == '0' ? '\0' : MARK;
			else
				copy[kept++] = copy[i];
		}
		copy[kept] = '\0';
		length = kept;
	}
	node->count = (uint32_t) length;
	node->offset = copy - (char *) node;
	return true;
}

/*
 * Turns json-c's tree into ours; recursive, but the text was not deeper than
 * max_depth.  false: no memory.
 */
static bool
convert(json_object *source, JsonNode *node, Arena *arena)
{
	struct json_object_iter member;
	JsonNode *children;
	size_t count;

	switch (json_object_get_type(source))
	{
		case json_type_null:
			node->kind = JSON_NULL;
			return true;

		case json_type_boolean:
			node->kind =
				json_object_get_boolean(source) ? JSON_TRUE : JSON_FALSE;
			return true;

		case json_type_string:
		{
			const char *text = json_object_get_string(source);
			size_t length = (size_t) json_object_get_string_len(source);

			node->kind = JSON_STRING;
			if (length > 0 && text[0] == MARK)
			{
				text++;
				length--;
				if (text[0] != MARK)
					node->kind = JSON_NUMBER;
			}
			if (!set_text(node, text, length, false, arena))
				return false;
			if (node->kind == JSON_NUMBER)
				node->number = number_value(json_text(node), length);
			return true;
		}

		case json_type_array:
			node->kind = JSON_ARRAY;
			count = json_object_array_length(source);
			node->count = (uint32_t) count;
			if (count == 0)
				return true;
			children = arena_alloc(arena, count * sizeof(JsonNode));
			if (children == NULL)
				return false;
			node->offset = (char *) children - (char *) node;
			for (size_t i = 0; i < count; i++)
			{
				if (!convert(json_object_array_get_idx(source, i), &children[i],
							 arena))
					return false;
			}
			return true;

		case json_type_object:
			node->kind = JSON_OBJECT;
			count = (size_t) json_object_object_length(source);
			node->count = (uint32_t) count;
			if (count == 0)
				return true;
			children = arena_alloc(arena, 2 * count * sizeof(JsonNode));
			if (children == NULL)
				return false;
			node->offset = (char *) children - (char *) node;
			json_object_object_foreachC(source, member)
			{
				children->kind = JSON_STRING;
				if (!set_text(children, member.key, strlen(member.key), true,
							  arena) ||
					!convert(member.val, children + 1, arena))
					return false;
				children += 2;
			}
			return true;

		default:
			/* no other type comes out of what read_value() writes */
			return true;
	}
}

/* Where it went wrong, for people. */
static const char *
problem_message(const JsonReader *reader, Arena *arena)
{
	return arena_printf(arena, "%s at byte %zu", reader->problem,
						(size_t) (reader->next - reader->start) + 1);
}

static int
compare_starts(const void *left, const void *right)
{
	const LongValue *a = left;
	const LongValue *b = right;

	return a->start < b->start ? -1 : a->start > b->start;
}

/* Checks the whole text, which is one value, and finds what is long in it. */
static bool
check_text(JsonReader *reader)
{
	skip_blanks(reader);
	if (!read_value(reader))
		return false;
	skip_blanks(reader);
	if (reader->next < reader->end)
		return unexpected(reader);
	/* they were noted at their ends */
	if (reader->nlong_values > 1)
		qsort(reader->long_values, reader->nlong_values, sizeof(LongValue),
			  compare_starts);
	return true;
}

/*
 * A piece: values that json-c reads at once, as an array.  Between its begin
 * and its end the text's values are read by read_value().
 */
static bool
piece_begin(JsonReader *reader)
{
	json_tokener_reset(reader->tokener);
	reader->complete = false;
	reader->used = 0;
	return emit_byte(reader, '[');
}

/* Has json-c read what is left of the piece. */
static bool
piece_read(JsonReader *reader)
{
	if (!emit_byte(reader, ']') || !flush(reader))
		return false;
	return reader->complete || fail(reader, ENGINE_NO_MEMORY, NULL);
}

static void
piece_forget(JsonReader *reader)
{
	json_object_put(reader->tree);
	reader->tree = NULL;
}

/* Ends a piece: its values become nodes. */
static bool
piece_end(JsonReader *reader, JsonNode *nodes, size_t count)
{
	if (!piece_read(reader))
		return false;
	for (size_t i = 0; i < count; i++)
	{
		if (!convert(json_object_array_get_idx(reader->tree, i), &nodes[i],
					 reader->arena))
			return fail(reader, ENGINE_NO_MEMORY, NULL);
	}
	piece_forget(reader);
	return true;
}

/* A string that is longer than a piece. */
static bool
build_string(JsonReader *reader, JsonNode *node, const LongValue *value)
{
	char *copy;
	size_t length = 0;

	/* no character takes more bytes than what it is written with */
	copy = arena_alloc(reader->arena, value->count + 1);
	if (copy == NULL)
		return fail(reader, ENGINE_NO_MEMORY, NULL);
	reader->next++;
	while (peek(reader) != '"')
	{
		json_object *part;
		const char *text;
		size_t part_length;

		if (!piece_begin(reader) || !emit_byte(reader, '"') ||
			!read_characters(reader, false) || !emit_byte(reader, '"') ||
			!piece_read(reader))
			return false;
		part = json_object_array_get_idx(reader->tree, 0);
		text = json_object_get_string(part);
		part_length = (size_t) json_object_get_string_len(part);
		if (part_length > 0 && text[0] == MARK)
		{
			text++;
			part_length--;
		}
		memcpy(copy + length, text, part_length);
		length += part_length;
		piece_forget(reader);
	}
	reader->next++;
	node->kind = JSON_STRING;
	node->count = (uint32_t) length;
	node->offset = copy - (char *) node;
	return true;
}

/* Moves a node; what its link leads to stays. */
static void
move_node(JsonNode *target, const JsonNode *source)
{
	int64_t distance = (const char *) source - (char *) target;

	*target = *source;
	target->offset += distance;
}

/* By name, and then by place; nothing matters once the work is to end. */
static int
compare_names(const void *left, const void *right, void *argument)
{
	const JsonNode *a = *(const JsonNode *const *) left;
	const JsonNode *b = *(const JsonNode *const *) right;
	JsonReader *reader = argument;
	int order;

	if (reader->arena->failed || (reader->values++ % JSON_VALUES_PER_ASK == 0 &&
								  arena_interrupted(reader->arena)))
		return 0;

	if (a->count != b->count)
		return a->count < b->count ? -1 : 1;
	order = memcmp(json_text(a), json_text(b), a->count);
	if (order != 0)
		return order;
	return a < b ? -1 : a > b;
}

/*
 * Of members of the same name leaves the last one's value, at the place of the
 * first one.
 */
static bool
drop_repeated(JsonReader *reader, JsonNode *object)
{
	JsonNode *members = (JsonNode *) ((char *) object + object->offset);
	uint32_t count = object->count;
	uint32_t kept = 0;
	bool repeated = false;
	JsonNode **names;
	Arena memory;

	arena_init(&memory, reader->arena->source);
	names = arena_alloc(&memory, count * sizeof(JsonNode *));
	if (names == NULL)
		return fail(reader, ENGINE_NO_MEMORY, NULL);
	for (uint32_t i = 0; i < count; i++)
		names[i] = &members[2 * i];
	qsort_r(names, count, sizeof(JsonNode *), compare_names, reader);
	if (reader->arena->failed)
	{
		arena_release(&memory);
		return fail(reader, ENGINE_NO_MEMORY, NULL);
	}
	for (uint32_t first = 0, i = 1; i < count; i++)
	{
		if (names[i]->count != names[first]->count ||
			memcmp(json_text(names[i]), json_text(names[first]),
				   names[i]->count) != 0)
		{
			first = i;
			continue;
		}
		move_node(names[first] + 1, names[i] + 1);
		names[i]->kind = JSON_NULL; /* no name has this kind */
		repeated = true;
	}
	arena_release(&memory);
	if (!repeated)
		return true;

	for (uint32_t i = 0; i < count; i++)
	{
		if (members[2 * i].kind == JSON_NULL)
			continue;
		if (kept != i)
		{
			move_node(&members[2 * kept], &members[2 * i]);
			move_node(&members[2 * kept + 1], &members[2 * i + 1]);
		}
		kept++;
	}
	object->count = kept;
	return true;
}

/* Whether the value that comes next is long, and which it is then. */
static const LongValue *
next_if_long(JsonReader *reader)
{
	const LongValue *value = &reader->long_values[reader->next_long_value];

	if (reader->next_long_value == reader->nlong_values ||
		value->start != (size_t) (reader->next - reader->start))
		return NULL;
	reader->next_long_value++;
	return value;
}

/*
 * A container or a string that is longer than a piece.  The text was checked,
 * so between two values, or a name and its value, there is nothing but blanks
 * and one byte.  Recursive, but the text is not deeper than max_depth.
 */
static bool
build_long(JsonReader *reader, JsonNode *node, const LongValue *value)
{
	bool is_object = *reader->next == '{';
	JsonNode *children;
	size_t count = value->count;
	size_t done = 0; /* children that are nodes */
	const char *piece = NULL; /* where the present one starts */

	if (*reader->next == '"')
		return build_string(reader, node, value);

	children = arena_alloc(reader->arena, count * sizeof(JsonNode));
	if (children == NULL)
		return fail(reader, ENGINE_NO_MEMORY, NULL);
	node->kind = is_object ? JSON_OBJECT : JSON_ARRAY;
	node->count = (uint32_t) (is_object ? count / 2 : count);
	node->offset = (char *) children - (char *) node;

	for (size_t i = 0; i < count; i++)
	{
		const LongValue *child;

		reader->next++; /* the bracket, a comma or a colon */
		skip_blanks(reader);
		child = next_if_long(reader);
		if (child != NULL)
		{
			if (done < i && !piece_end(reader, &children[done], i - done))
				return false;
			if (!build_long(reader, &children[i], child))
				return false;
			done = i + 1;
		}
		else
		{
			if (i == done)
			{
				piece = reader->next;
				if (!piece_begin(reader))
					return false;
			}
			else if (!emit_byte(reader, ','))
				return false;
			if (!read_value(reader))
				return false;
			if (reader->next - piece >= JSON_PIECE)
			{
				if (!piece_end(reader, &children[done], i + 1 - done))
					return false;
				done = i + 1;
			}
		}
		skip_blanks(reader);
	}
	if (done < count && !piece_end(reader, &children[done], count - done))
		return false;
	reader->next++;
	return !is_object || drop_repeated(reader, node);
}

/* Reads the text, which was checked, into a tree. */
static bool
build_text(JsonReader *reader, JsonNode *node)
{
	const LongValue *value;

	reader->next = reader->start;
	skip_blanks(reader);
	value = next_if_long(reader);
	if (value != NULL)
		return build_long(reader, node, value);
	return piece_begin(reader) && read_value(reader) &&
		   piece_end(reader, node, 1);
}

/* Makes a reader of a text, and checks that. */
static bool
reader_open(JsonReader *reader, const char *text, size_t length, int max_depth,
			uint64_t max_cost, Arena *arena, const char **message)
{
	/* all but the buffer, which is large and needs no zeros */
	memset(reader, 0, offsetof(JsonReader, buffer));
	if (message != NULL)
		*message = NULL;
	reader->arena = arena;
	reader->start = reader->next = text;
	reader->end = text + length;
	reader->max_depth = max_depth;
	reader->max_cost = max_cost;
	reader->status = ENGINE_OK;
	arena_init(&reader->scratch, arena->source);
	work_begin(&reader->work, arena->source->interrupted,
			   arena->source->context);

	if (length > JSON_MAX_TEXT)
		(void) fail(reader, ENGINE_TOO_LARGE, "the text is too long");
	else
		(void) check_text(reader);
	if (reader->problem != NULL && message != NULL)
		*message = problem_message(reader, arena);
	return reader->status == ENGINE_OK;
}

/*
 * Reads a whole text; see json.h.  It is read twice: json-c gets to see only
 * what is known to be valid and not to take too much.
 */
EngineStatus
json_parse(const char *text, size_t length, int max_depth, Arena *arena,
		   const JsonNode **root, const char **message)
{
	JsonReader reader;
	JsonNode *node;

	*root = NULL;
	if (reader_open(&reader, text, length, max_depth, JSON_MAX_COST, arena,
					message))
	{
		/* json-c counts scalars and the piece as levels, and wants one more */
		reader.tokener = json_tokener_new_ex(reader.deepest + 3);
		node = arena_alloc(arena, sizeof(JsonNode));
		if (reader.tokener == NULL || node == NULL)
			(void) fail(&reader, ENGINE_NO_MEMORY, NULL);
		else if (build_text(&reader, node))
			*root = node;
		piece_forget(&reader);
		if (reader.tokener != NULL)
			json_tokener_free(reader.tokener);
	}
	arena_release(&reader.scratch);
	return reader.status;
}

/* Checks a whole text; see json.h. */
EngineStatus
json_check(const char *text, size_t length, int max_depth, Arena *arena,
		   const char **message)
{
	JsonReader reader;

	(void) reader_open(&reader, text, length, max_depth, UINT64_MAX, arena,
					   message);
	arena_release(&reader.scratch);
	return reader.status;
}

static const char *
skip_checked_blanks(const char *next)
{
	while (*next == ' ' || *next == '\n' || *next == '\r' || *next == '\t')
		next++;
	return next;
}

/* The end of a value in a text that was checked. */
static const char *
skip_checked_value(const char *next)
{
	int depth = 0;

	do
	{
		switch (*next)
		{
			case '[':
			case '{':
				depth++;
				next++;
				break;
			case ']':
			case '}':
				depth--;
				next++;
				break;
			case '"':
				for (next++; *next != '"'; next++)
				{
					if (*next == '\\')
						next++;
				}
				next++;
				break;
			case ',':
			case ':':
			case ' ':
			case '\n':
			case '\r':
			case '\t':
				next++;
				break;
			default: /* a number or a word, which something ends */
				while ((unsigned char) *next > ' ' && *next != ',' &&
					   *next != ']' && *next != '}')
					next++;
				break;
		}
	} while (depth > 0);
	return next;
}

void
json_walk_begin(JsonWalk *walk, EngineText container)
{
	walk->next = skip_checked_blanks(container.data);
}

JsonKind
json_walk_kind(EngineText text)
{
	const char *first = skip_checked_blanks(text.data);

	return *first == '{' ? JSON_OBJECT : *first == '[' ? JSON_ARRAY : JSON_NULL;
}

bool
json_walk_next(JsonWalk *walk, EngineText *value)
{
	const char *first = skip_checked_blanks(walk->next);

	/* at the container's bracket, a comma, a colon, or its end */
	if (*first == ']' || *first == '}')
		return false;
	first = skip_checked_blanks(first + 1);
	if (*first == ']' || *first == '}')
		return false;
	walk->next = skip_checked_value(first);
	value->data = first;
	value->length = (size_t) (walk->next - first);
	return true;
}

/* A member by a name of any bytes. */
const JsonNode *
json_get_n(const JsonNode *object, const char *name, size_t length)
{
	if (object->kind != JSON_OBJECT)
		return NULL;
	for (uint32_t i = 0; i < object->count; i++)
	{
		const JsonNode *member = json_member_name(object, i);

		if (member->count == length &&
			memcmp(json_text(member), name, length) == 0)
			return json_member_value(object, i);
	}
	return NULL;
}

/* A member by its name. */
const JsonNode *
json_get(const JsonNode *object, const char *name)
{
	return json_get_n(object, name, strlen(name));
}

/*
 * Writes text as a JSON string, or only counts if out is NULL.  Returns the
 * number of bytes.
 */
static size_t
write_string(const char *text, size_t length, char *out)
{
	static const char digits[] = "0123456789abcdef";
	size_t size = 0;

#define PUT(c)               \
	do                       \
	{                        \
		if (out != NULL)     \
			out[size] = (c); \
		size++;              \
	} while (0)

	PUT('"');
	for (size_t i = 0; i < length; i++)
	{
		unsigned char c = (unsigned char) text[i];
		const char *escape;

		if (c == '"' || c == '\\')
		{
			PUT('\\');
			PUT((char) c);
		}
		else if (c >= 0x20)
			PUT((char) c);
		else if (c != 0 && (escape = strchr("\bb\ff\nn\rr\tt", c)) != NULL)
		{
			PUT('\\');
			PUT(escape[1]);
		}
		else
		{
			PUT('\\');
			PUT('u');
			PUT('0');
			PUT('0');
			PUT(digits[c >> 4]);
			PUT(digits[c & 0x0f]);
		}
	}
	PUT('"');
#undef PUT

	return size;
}

/*
 * Writes a tree as JSON text, or only counts if out is NULL.  Recursive as the
 * tree is deep, which json_parse() has bounded.
 */
static size_t
write_value(const JsonNode *node, char *out)
{
	const char *literal = "null";
	size_t size = 0;

#define AT(size) (out == NULL ? NULL : out + (size))
#define PUT(c)               \
	do                       \
	{                        \
		if (out != NULL)     \
			out[size] = (c); \
		size++;              \
	} while (0)

	switch ((JsonKind) node->kind)
	{
		case JSON_NULL:
			break;
		case JSON_FALSE:
			literal = "false";
			break;
		case JSON_TRUE:
			literal = "true";
			break;
		case JSON_NUMBER:
			if (out != NULL)
				memcpy(out, json_text(node), node->count);
			return node->count;
		case JSON_STRING:
			return write_string(json_text(node), node->count, out);
		case JSON_ARRAY:
			PUT('[');
			for (uint32_t i = 0; i < node->count; i++)
			{
				if (i > 0)
					PUT(',');
				size += write_value(json_element(node, i), AT(size));
			}
			PUT(']');
			return size;
		case JSON_OBJECT:
			PUT('{');
			for (uint32_t i = 0; i < node->count; i++)
			{
				if (i > 0)
					PUT(',');
				size += write_value(json_member_name(node, i), AT(size));
				PUT(':');
				size += write_value(json_member_value(node, i), AT(size));
			}
			PUT('}');
			return size;
	}
#undef PUT
#undef AT

	size = strlen(literal);
	if (out != NULL)
		memcpy(out, literal, size);
	return size;
}

/* The tree as JSON text, with a NUL behind. */
EngineStatus
json_write(const JsonNode *node, Arena *arena, EngineText *text)
{
	size_t size = write_value(node, NULL);
	char *out = arena_alloc(arena, size + 1);

	if (out == NULL)
		return ENGINE_NO_MEMORY;
	write_value(node, out);
	text->data = out;
	text->length = size;
	return ENGINE_OK;
}

/* Bytes that text takes in a copy: with its NUL, rounded up to 8. */
static size_t
text_copy_size(size_t length)
{
	return (length + 1 + 7) & ~(size_t) 7;
}

/* What a node needs in a copy beside the JsonNode itself. */
static size_t
content_copy_size(const JsonNode *node, Work *work)
{
	uint32_t nodes = 0;
	size_t size;

	if (node->kind == JSON_NUMBER || node->kind == JSON_STRING)
		return text_copy_size(node->count);
	if (node->kind == JSON_ARRAY)
		nodes = node->count;
	else if (node->kind == JSON_OBJECT)
		nodes = 2 * node->count;
	size = nodes * sizeof(JsonNode);
	for (uint32_t i = 0; i < nodes && work_goes_on(work, NODE_COST); i++)
		size += content_copy_size(json_element(node, i), work);
	return size;
}

/* Bytes for json_copy(). */
size_t
json_copy_size(const JsonNode *node, Work *work)
{
	return sizeof(JsonNode) + content_copy_size(node, work);
}

int
json_compare_names(EngineText left, EngineText right)
{
	if (left.length != right.length)
		return left.length < right.length ? -1 : 1;
	return left.length == 0 ? 0 : memcmp(left.data, right.data, left.length);
}

/* A member of an object that is being copied: its name and its value. */
typedef struct CopiedMember
{
	JsonNode name; /* offsets count from the object's content so far */
	JsonNode value;
} CopiedMember;

/* The order of two members whose object has that content. */
static int
compare_members(const CopiedMember *left, const CopiedMember *right,
				const char *content, Work *work)
{
	EngineText left_name = {content + left->name.offset, left->name.count};
	EngineText right_name = {content + right->name.offset, right->name.count};

	(void) work_goes_on(work, NODE_COST + left_name.length / WORK_BYTES);
	return json_compare_names(left_name, right_name);
}

/* Moves a member down to where none below it is greater. */
static void
sift_member(CopiedMember *members, size_t root, size_t count,
			const char *content, Work *work)
{
	CopiedMember moved = members[root];
	size_t child;

	while ((child = 2 * root + 1) < count && !work->stopped)
	{
		if (child + 1 < count &&
			compare_members(&members[child], &members[child + 1], content,
							work) < 0)
			child++;
		if (compare_members(&moved, &members[child], content, work) >= 0)
			break;
		members[root] = members[child];
		root = child;
	}
	members[root] = moved;
}

/* Heapsort: needs no memory, and no input makes it slow. */
static void
sort_members(CopiedMember *members, size_t count, const char *content,
			 Work *work)
{
	size_t index;

	for (index = count / 2; index > 0 && !work->stopped; index--)
		sift_member(members, index - 1, count, content, work);
	for (index = count; index > 1 && !work->stopped; index--)
	{
		CopiedMember last = members[index - 1];

		members[index - 1] = members[0];
		members[0] = last;
		sift_member(members, 0, index - 1, content, work);
	}
}

/*
 * Copies what belongs to a node, of which all but the offset is copied;
 * content is where it stands, free where it goes.  Returns what is free
 * behind it.
 */
static char *
copy_content(const char *content, JsonNode *target, char *free, Work *work)
{
	target->offset = free - (char *) target;
	if (target->kind == JSON_NUMBER || target->kind == JSON_STRING)
	{
		size_t size = text_copy_size(target->count);

		memset(free, 0, size);
		memcpy(free, content, target->count);
		free += size;
	}
	else if (target->kind == JSON_ARRAY || target->kind == JSON_OBJECT)
	{
		uint32_t nodes =
			target->kind == JSON_ARRAY ? target->count : 2 * target->count;
		const JsonNode *sources = (const JsonNode *) content;
		JsonNode *children = (JsonNode *) free;

		for (uint32_t i = 0; i < nodes && work_goes_on(work, NODE_COST); i++)
		{
			children[i] = sources[i];
			children[i].offset = json_text(&sources[i]) - content;
		}
		if (target->kind == JSON_OBJECT)
			sort_members((CopiedMember *) children, target->count, content,
						 work);
		free += nodes * sizeof(JsonNode);
		for (uint32_t i = 0; i < nodes && work_goes_on(work, NODE_COST); i++)
			free = copy_content(content + children[i].offset, &children[i],
								free, work);
	}
	return free;
}

/* The tree as one block. */
const JsonNode *
json_copy(const JsonNode *node, void *block, Work *work)
{
	JsonNode *target = block;

	*target = *node;
	copy_content(json_text(node), target, (char *) block + sizeof(JsonNode),
				 work);
	return target;
}
