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

/*
 * What a parse may take, estimated: json-c gives each object a hash table at
 * once, so a few bytes of text may cost a thousand.
 */
#define JSON_MAX_COST (UINT64_C(2) * 1024 * 1024 * 1024)
#define JSON_OBJECT_COST 1024
#define JSON_VALUE_COST 128

#define MARK '\001'
#define MARK_ESCAPE "\\u0001"

typedef struct JsonReader
{
	const char *start;
	const char *next; /* first byte not yet read */
	const char *end;
	int depth;
	int deepest; /* that depth was */
	int max_depth;
	uint64_t cost;
	Arena *arena; /* of the tree; tells when to stop */
	EngineStatus status;
	const char *problem; /* what is wrong at next; set with status */
	json_tokener *tokener; /* NULL: the text is only checked */
	json_object *tree;
	bool complete; /* json-c has seen a whole value */
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

static void
skip_blanks(JsonReader *reader)
{
	while (reader->next < reader->end &&
		   (*reader->next == ' ' || *reader->next == '\n' ||
			*reader->next == '\r' || *reader->next == '\t'))
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

/* One escape sequence, reader->next being at its backslash. */
static bool
read_escape(JsonReader *reader, bool is_name, bool is_first)
{
	const char *escape = reader->next;
	int code;

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
	if (code > 1)
		return emit(reader, escape, 6);
	if (is_name)
		return emit(reader, MARK_ESCAPE, 6) &&
			   emit_byte(reader, code == 0 ? '0' : '1');
	if (code == 1 && is_first && !emit(reader, MARK_ESCAPE, 6))
		return false;
	return emit(reader, escape, 6);
}

/* A string, reader->next being at its first quote. */
static bool
read_string(JsonReader *reader, bool is_name)
{
	const char *first = ++reader->next;

	if (!emit_byte(reader, '"'))
		return false;
	for (;;)
	{
		const char *run = reader->next;
		const char *next = run;

		/* all that needs no look at all */
		while (next < reader->end && (unsigned char) *next >= 0x20 &&
			   (unsigned char) *next < 0x80 && *next != '"' && *next != '\\')
			next++;
		reader->next = next;
		if (!emit(reader, run, (size_t) (next - run)))
			return false;

		if (next == reader->end)
			return unexpected(reader);
		if (*next == '"')
		{
			reader->next++;
			return emit_byte(reader, '"');
		}
		if (*next == '\\')
		{
			if (!read_escape(reader, is_name, next == first))
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
			reader->next += length;
			if (!emit(reader, next, length))
				return false;
		}
	}
}

/* One digit at least. */
static bool
read_digits(JsonReader *reader)
{
	if (!is_digit(peek(reader)))
		return fail(reader, ENGINE_MALFORMED, "invalid number");
	while (is_digit(peek(reader)))
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

/* An array or an object, reader->next being at its bracket. */
static bool
read_container(JsonReader *reader, bool is_object)
{
	char closing = is_object ? '}' : ']';

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
				if (!read_string(reader, true))
					return false;
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
	return emit_byte(reader, closing);
}

/* Any value; recursive through read_container(), to max_depth at most. */
static bool
read_value(JsonReader *reader)
{
	int c = peek(reader);

	reader->cost += c == '{' ? JSON_OBJECT_COST : JSON_VALUE_COST;
	if (reader->cost > JSON_MAX_COST)
		return fail(reader, ENGINE_TOO_LARGE, "too many values");
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

/* The whole text: one value. */
static bool
read_text(JsonReader *reader)
{
	reader->next = reader->start;
	reader->depth = 0;
	reader->cost = 0;
	skip_blanks(reader);
	if (!read_value(reader))
		return false;
	skip_blanks(reader);
	if (reader->next < reader->end)
		return unexpected(reader);

	/* the blank ends a literal that is the whole text */
	return emit_byte(reader, ' ') && flush(reader);
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

	/* all but the buffer, which is large and needs no zeros */
	memset(&reader, 0, offsetof(JsonReader, buffer));
	*root = NULL;
	if (message != NULL)
		*message = NULL;

	reader.arena = arena;
	reader.start = reader.next = text;
	reader.end = text + length;
	reader.max_depth = max_depth;
	reader.status = ENGINE_OK;

	if (length > JSON_MAX_TEXT)
		(void) fail(&reader, ENGINE_TOO_LARGE, "the text is too long");
	else
		(void) read_text(&reader);
	if (reader.status != ENGINE_OK)
	{
		if (message != NULL)
			*message = problem_message(&reader, arena);
		return reader.status;
	}

	/* json-c counts scalars as a level, and wants one to spare */
	reader.tokener = json_tokener_new_ex(reader.deepest + 2);
	if (reader.tokener == NULL)
		return ENGINE_NO_MEMORY;
	(void) read_text(&reader);
	json_tokener_free(reader.tokener);

	node = arena_alloc(arena, sizeof(JsonNode));
	if (!reader.complete || node == NULL || !convert(reader.tree, node, arena))
		reader.status = ENGINE_NO_MEMORY;
	else
		*root = node;
	json_object_put(reader.tree);
	return reader.status;
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
content_copy_size(const JsonNode *node)
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
	for (uint32_t i = 0; i < nodes; i++)
		size += content_copy_size(json_element(node, i));
	return size;
}

/* Bytes for json_copy(). */
size_t
json_copy_size(const JsonNode *node)
{
	return sizeof(JsonNode) + content_copy_size(node);
}

/*
 * Copies one node and what belongs to it; free is where its content goes.
 * Returns what is free behind it.
 */
static char *
copy_content(const JsonNode *source, JsonNode *target, char *free)
{
	*target = *source;
	target->offset = free - (char *) target;
	if (source->kind == JSON_NUMBER || source->kind == JSON_STRING)
	{
		size_t size = text_copy_size(source->count);

		memset(free, 0, size);
		memcpy(free, json_text(source), source->count);
		free += size;
	}
	else if (source->kind == JSON_ARRAY || source->kind == JSON_OBJECT)
	{
		uint32_t nodes =
			source->kind == JSON_ARRAY ? source->count : 2 * source->count;
		JsonNode *children = (JsonNode *) free;

		free += nodes * sizeof(JsonNode);
		for (uint32_t i = 0; i < nodes; i++)
			free = copy_content(json_element(source, i), &children[i], free);
	}
	return free;
}

/* The tree as one block. */
const JsonNode *
json_copy(const JsonNode *node, void *block)
{
	JsonNode *target = block;

	copy_content(node, target, (char *) block + sizeof(JsonNode));
	return target;
}
