/*
 * json.c
 *		JSON text read into a tree of the engine's own.
 *
 * The text is read twice.  First it is checked by the grammar of RFC 8259 and
 * its values are counted, so that nothing is made of a text that is not valid
 * or whose tree would take too much.  Then the tree is built: as each
 * container's count is known by then, every node is made where it stays.
 *
 * All memory is the arena's, whose allocations may fail at any time.
 *
 * Half a surrogate pair becomes U+FFFD, since UTF-8 has no form for it.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

/* Longer texts are not read. */
#define JSON_MAX_TEXT ((size_t) 256 * 1024 * 1024)

/* What a tree may take, estimated: a value is a node and, mostly, its text. */
#define JSON_MAX_COST (UINT64_C(512) * 1024 * 1024)
#define JSON_VALUE_COST 48

/* Bytes of a string between two questions whether to go on. */
#define JSON_PIECE 16384

/* What a node costs when it is read or copied, in units of work.h */
#define NODE_COST 8

/* Objects of no more members are searched for equal names one by one. */
#define FEW_MEMBERS 16

/*
 * How many values the containers have, a member's name and value being two, in
 * the order in which they begin; without the empty ones.
 */
typedef struct Counts
{
	struct Counts *next;
	uint32_t counts[62];
} Counts;

typedef struct JsonReader
{
	const char *start;
	const char *next; /* first byte not yet read */
	const char *end;
	int depth;
	int max_depth;
	uint64_t cost;
	uint64_t max_cost;
	Work work;
	Arena *arena; /* of the tree; tells when to stop */
	EngineStatus status;
	const char *problem; /* what is wrong at next; set with status */

	bool counting; /* a tree will be built of what is checked */
	Arena scratch; /* of the counts */
	Counts *first_counts;
	Counts *counts; /* where the next one goes to, or comes from */
	size_t next_count;
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

/* There is no memory, or the host wants the reading to end. */
static bool
no_memory(JsonReader *reader)
{
	reader->arena->failed = true;
	return fail(reader, ENGINE_NO_MEMORY, NULL);
}

/* Counts what is about to be read; false: the host wants it to end. */
static bool
goes_on(JsonReader *reader, size_t cost)
{
	return work_goes_on(&reader->work, cost) || no_memory(reader);
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

/* One escape sequence, reader->next being at its backslash. */
static bool
check_escape(JsonReader *reader)
{
	const char *escape = reader->next;

	if (reader->end - escape < 2)
	{
		reader->next = reader->end;
		return unexpected(reader);
	}
	if (escape[1] == 'u')
	{
		if (four_hex_digits(escape + 2, reader->end) < 0)
			return fail(reader, ENGINE_MALFORMED, "invalid escape");
		reader->next += 6;
		return true;
	}
	if (escape[1] == '\0' || strchr("\"\\/bfnrt", escape[1]) == NULL)
		return fail(reader, ENGINE_MALFORMED, "invalid escape");
	reader->next += 2;
	return true;
}

/* A string, reader->next being at its first quote. */
static bool
check_string(JsonReader *reader)
{
	reader->next++;
	for (;;)
	{
		const char *run = reader->next;
		const char *next = run;
		const char *end = reader->end;

		if (end - run > JSON_PIECE)
			end = run + JSON_PIECE;

		/* all that needs no look at all */
		while (next < end && (unsigned char) *next >= 0x20 &&
			   (unsigned char) *next < 0x80 && *next != '"' && *next != '\\')
			next++;
		reader->next = next;
		if (!goes_on(reader, 1 + (size_t) (next - run) / WORK_BYTES))
			return false;

		if (next == reader->end)
			return unexpected(reader);
		if (next == end)
			continue;
		if (*next == '"')
			break;
		if (*next == '\\')
		{
			if (!check_escape(reader))
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
		}
	}
	reader->next++;
	return true;
}

/* One digit at least. */
static bool
check_digits(JsonReader *reader)
{
	if (!is_digit(peek(reader)))
		return fail(reader, ENGINE_MALFORMED, "invalid number");
	while (is_digit(peek(reader)) && goes_on(reader, 1))
		reader->next++;
	return true;
}

/* A number by the grammar of RFC 8259. */
static bool
check_number(JsonReader *reader)
{
	if (peek(reader) == '-')
		reader->next++;
	if (peek(reader) == '0')
	{
		reader->next++;
		if (is_digit(peek(reader)))
			return fail(reader, ENGINE_MALFORMED, "invalid number");
	}
	else if (!check_digits(reader))
		return false;
	if (peek(reader) == '.')
	{
		reader->next++;
		if (!check_digits(reader))
			return false;
	}
	if (peek(reader) == 'e' || peek(reader) == 'E')
	{
		reader->next++;
		if (peek(reader) == '+' || peek(reader) == '-')
			reader->next++;
		if (!check_digits(reader))
			return false;
	}
	return true;
}

static bool
check_literal(JsonReader *reader, const char *literal, size_t length)
{
	if ((size_t) (reader->end - reader->next) < length ||
		memcmp(reader->next, literal, length) != 0)
		return unexpected(reader);
	reader->next += length;
	return true;
}

/* Where the count of the next container stands; NULL: no memory. */
static uint32_t *
next_count(JsonReader *reader)
{
	if (reader->counts == NULL ||
		reader->next_count == sizeof(reader->counts->counts) / sizeof(uint32_t))
	{
		Counts **link = reader->counts == NULL ? &reader->first_counts
											   : &reader->counts->next;

		if (*link == NULL)
			*link = arena_alloc(&reader->scratch, sizeof(Counts));
		if (*link == NULL)
		{
			(void) no_memory(reader);
			return NULL;
		}
		reader->counts = *link;
		reader->next_count = 0;
	}
	return &reader->counts->counts[reader->next_count++];
}

static bool check_value(JsonReader *reader);

/* Counts a value, or a member's name, among those that a text may have. */
static bool
count_value(JsonReader *reader)
{
	reader->cost += JSON_VALUE_COST;
	if (reader->cost > reader->max_cost)
		return fail(reader, ENGINE_TOO_LARGE, "too many values");
	return goes_on(reader, NODE_COST);
}

/* An array or an object, reader->next being at its bracket. */
static bool
check_container(JsonReader *reader, bool is_object)
{
	char closing = is_object ? '}' : ']';
	uint32_t *noted = NULL;
	uint32_t count = 0;

	if (reader->depth >= reader->max_depth)
		return fail(reader, ENGINE_TOO_DEEP, "nested too deep");
	reader->depth++;
	reader->next++;
	skip_blanks(reader);
	if (peek(reader) != closing)
	{
		if (reader->counting && (noted = next_count(reader)) == NULL)
			return false;
		for (;;)
		{
			if (is_object)
			{
				if (peek(reader) != '"')
					return unexpected(reader);
				if (!check_string(reader) || !count_value(reader))
					return false;
				count++;
				skip_blanks(reader);
				if (peek(reader) != ':')
					return unexpected(reader);
				reader->next++;
				skip_blanks(reader);
			}
			if (!check_value(reader))
				return false;
			count++;
			skip_blanks(reader);
			if (peek(reader) == closing)
				break;
			if (peek(reader) != ',')
				return unexpected(reader);
			reader->next++;
			skip_blanks(reader);
		}
		if (noted != NULL)
			*noted = count;
	}
	reader->next++;
	reader->depth--;
	return true;
}

/* Any value; recursive through check_container(), to max_depth at most. */
static bool
check_value(JsonReader *reader)
{
	int c = peek(reader);

	if (!count_value(reader))
		return false;
	switch (c)
	{
		case '{':
			return check_container(reader, true);
		case '[':
			return check_container(reader, false);
		case '"':
			return check_string(reader);
		case 'n':
			return check_literal(reader, "null", 4);
		case 't':
			return check_literal(reader, "true", 4);
		case 'f':
			return check_literal(reader, "false", 5);
		default:
			if (c == '-' || is_digit(c))
				return check_number(reader);
			return unexpected(reader);
	}
}

/* Checks the whole text, which is one value. */
static bool
check_text(JsonReader *reader)
{
	skip_blanks(reader);
	if (!check_value(reader))
		return false;
	skip_blanks(reader);
	return reader->next == reader->end || unexpected(reader);
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

/* Writes a character as UTF-8, for which there is room; returns its length. */
static size_t
write_utf8(int code, char *out)
{
	if (code < 0x80)
	{
		out[0] = (char) code;
		return 1;
	}
	if (code < 0x800)
	{
		out[0] = (char) (0xc0 | code >> 6);
		out[1] = (char) (0x80 | (code & 0x3f));
		return 2;
	}
	if (code < 0x10000)
	{
		out[0] = (char) (0xe0 | code >> 12);
		out[1] = (char) (0x80 | (code >> 6 & 0x3f));
		out[2] = (char) (0x80 | (code & 0x3f));
		return 3;
	}
	out[0] = (char) (0xf0 | code >> 18);
	out[1] = (char) (0x80 | (code >> 12 & 0x3f));
	out[2] = (char) (0x80 | (code >> 6 & 0x3f));
	out[3] = (char) (0x80 | (code & 0x3f));
	return 4;
}

/*
 * What the escape sequence at *next means, written to out, where there is room
 * for 4 bytes.  A surrogate pair is two sequences and one character.  The text
 * was checked, so each sequence is whole, and something follows it.
 */
static size_t
decode_escape(const char **next, char *out)
{
	static const char letters[] = "bfnrt";
	static const char meanings[] = "\b\f\n\r\t";
	const char *escape = *next;
	int code;

	if (escape[1] != 'u')
	{
		const char *letter = strchr(letters, escape[1]);

		*next += 2;
		*out = letter == NULL ? escape[1] : meanings[letter - letters];
		return 1;
	}

	code = four_hex_digits(escape + 2, escape + 6);
	*next += 6;
	if (code >= 0xd800 && code <= 0xdbff && escape[6] == '\\' &&
		escape[7] == 'u')
	{
		int low = four_hex_digits(escape + 8, escape + 12);

		if (low >= 0xdc00 && low <= 0xdfff)
		{
			*next += 6;
			return write_utf8(
				0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00), out);
		}
	}
	if (code >= 0xd800 && code <= 0xdfff)
		code = 0xfffd;
	return write_utf8(code, out);
}

/*
 * Reads on to a string's closing quote and writes what the string means, or
 * only counts if out is NULL.  Returns the number of bytes.
 */
static size_t
decode_string(JsonReader *reader, char *out)
{
	size_t size = 0;

	for (;;)
	{
		const char *run = reader->next;
		const char *next = run;
		const char *end = reader->end;
		size_t length;

		if (end - run > JSON_PIECE)
			end = run + JSON_PIECE;
		while (next < end && *next != '"' && *next != '\\')
			next++;
		length = (size_t) (next - run);
		if (!goes_on(reader, 1 + length / WORK_BYTES))
			return size;
		if (out != NULL)
			memcpy(out + size, run, length);
		size += length;
		if (next < end && *next == '\\')
		{
			char character[4];

			length = decode_escape(&next, character);
			if (out != NULL)
				memcpy(out + size, character, length);
			size += length;
		}
		reader->next = next;
		if (*next == '"')
			return size;
	}
}

/* Lets the node refer to text. */
static void
set_text(JsonNode *node, JsonKind kind, const char *text, size_t length)
{
	node->kind = kind;
	node->count = (uint32_t) length;
	node->offset = text - (char *) node;
}

static bool
build_string(JsonReader *reader, JsonNode *node)
{
	const char *first = ++reader->next;
	size_t length = decode_string(reader, NULL);
	char *text;

	if (reader->status != ENGINE_OK)
		return false;
	text = arena_alloc(reader->arena, length + 1);
	if (text == NULL)
		return no_memory(reader);
	/* every escape sequence is longer than what it means */
	if (length == (size_t) (reader->next - first))
		memcpy(text, first, length);
	else
	{
		reader->next = first;
		(void) decode_string(reader, text);
		if (reader->status != ENGINE_OK)
			return false;
	}
	reader->next++;
	set_text(node, JSON_STRING, text, length);
	return true;
}

static bool
build_number(JsonReader *reader, JsonNode *node)
{
	const char *first = reader->next;
	size_t length;
	char *text;

	/* a blank, a comma or a bracket ends it, or the text's end */
	while (reader->next<reader->end && * reader->next> ' ' &&
		   *reader->next != ',' && *reader->next != ']' && *reader->next != '}')
	{
		if (!goes_on(reader, 1))
			return false;
		reader->next++;
	}
	length = (size_t) (reader->next - first);
	text = arena_strdup(reader->arena, first, length);
	if (text == NULL)
		return no_memory(reader);
	set_text(node, JSON_NUMBER, text, length);
	node->number = number_value(text, length);
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

static bool
same_name(const JsonNode *left, const JsonNode *right)
{
	return left->count == right->count &&
		   memcmp(json_text(left), json_text(right), left->count) == 0;
}

/* By name, and then by place; nothing matters once the work is to end. */
static int
compare_names(const void *left, const void *right, void *argument)
{
	const JsonNode *a = *(const JsonNode *const *) left;
	const JsonNode *b = *(const JsonNode *const *) right;
	int order;

	if (!goes_on(argument, NODE_COST + a->count / WORK_BYTES))
		return 0;

	if (a->count != b->count)
		return a->count < b->count ? -1 : 1;
	order = memcmp(json_text(a), json_text(b), a->count);
	if (order != 0)
		return order;
	return a < b ? -1 : a > b;
}

/*
 * Whether an object of few members has two of the same name; true also once
 * the work is to end.
 */
static bool
has_repeated(JsonReader *reader, const JsonNode *object)
{
	for (uint32_t i = 1; i < object->count; i++)
	{
		const JsonNode *name = json_member_name(object, i);

		if (!goes_on(reader, i * (1 + (size_t) name->count / WORK_BYTES)))
			return true;
		for (uint32_t j = 0; j < i; j++)
		{
			if (same_name(name, json_member_name(object, j)))
				return true;
		}
	}
	return false;
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

	if (count <= FEW_MEMBERS && !has_repeated(reader, object))
		return true;
	arena_init(&memory, reader->arena->source);
	names = arena_alloc(&memory, count * sizeof(JsonNode *));
	if (names == NULL)
		return no_memory(reader);
	for (uint32_t i = 0; i < count; i++)
		names[i] = &members[2 * i];
	qsort_r(names, count, sizeof(JsonNode *), compare_names, reader);
	if (reader->status != ENGINE_OK)
	{
		arena_release(&memory);
		return false;
	}
	for (uint32_t first = 0, i = 1; i < count; i++)
	{
		if (!same_name(names[i], names[first]))
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

static bool build_value(JsonReader *reader, JsonNode *node);

/*
 * An array or an object.  The text was checked, so between two values, or a
 * name and its value, there is nothing but blanks and one byte.
 */
static bool
build_container(JsonReader *reader, JsonNode *node)
{
	bool is_object = *reader->next == '{';
	const uint32_t *count;
	JsonNode *children;

	node->kind = is_object ? JSON_OBJECT : JSON_ARRAY;
	reader->next++;
	skip_blanks(reader);
	if (reader->status != ENGINE_OK)
		return false;
	if (*reader->next == (is_object ? '}' : ']'))
	{
		reader->next++;
		return true;
	}

	count = next_count(reader);
	if (count == NULL)
		return false;
	children = arena_alloc(reader->arena, *count * sizeof(JsonNode));
	if (children == NULL)
		return no_memory(reader);
	node->count = is_object ? *count / 2 : *count;
	node->offset = (char *) children - (char *) node;
	for (uint32_t i = 0; i < *count; i++)
	{
		if (!build_value(reader, &children[i]))
			return false;
		skip_blanks(reader);
		reader->next++; /* a comma, a colon or the bracket */
	}
	return reader->status == ENGINE_OK &&
		   (!is_object || drop_repeated(reader, node));
}

/* Any value, or a name; recursive as check_value() is. */
static bool
build_value(JsonReader *reader, JsonNode *node)
{
	skip_blanks(reader);
	if (!goes_on(reader, NODE_COST))
		return false;
	switch (*reader->next)
	{
		case '{':
		case '[':
			return build_container(reader, node);
		case '"':
			return build_string(reader, node);
		case 'n':
			node->kind = JSON_NULL;
			reader->next += 4;
			return true;
		case 't':
			node->kind = JSON_TRUE;
			reader->next += 4;
			return true;
		case 'f':
			node->kind = JSON_FALSE;
			reader->next += 5;
			return true;
		default:
			return build_number(reader, node);
	}
}

/* Where it went wrong, for people. */
static const char *
problem_message(const JsonReader *reader, Arena *arena)
{
	return arena_printf(arena, "%s at byte %zu", reader->problem,
						(size_t) (reader->next - reader->start) + 1);
}

/* Makes a reader of a text, and checks that. */
static bool
reader_open(JsonReader *reader, const char *text, size_t length, int max_depth,
			bool counting, Arena *arena, const char **message)
{
	memset(reader, 0, sizeof(JsonReader));
	if (message != NULL)
		*message = NULL;
	reader->arena = arena;
	reader->start = reader->next = text;
	reader->end = text + length;
	reader->max_depth = max_depth;
	reader->counting = counting;
	reader->max_cost = counting ? JSON_MAX_COST : UINT64_MAX;
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

/* Reads a whole text; see json.h. */
EngineStatus
json_parse(const char *text, size_t length, int max_depth, Arena *arena,
		   const JsonNode **root, const char **message)
{
	JsonReader reader;
	JsonNode *node;

	*root = NULL;
	if (reader_open(&reader, text, length, max_depth, true, arena, message))
	{
		reader.next = reader.start;
		reader.counts = NULL;
		node = arena_alloc(arena, sizeof(JsonNode));
		if (node == NULL)
			(void) no_memory(&reader);
		else if (build_value(&reader, node))
			*root = node;
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

	(void) reader_open(&reader, text, length, max_depth, false, arena, message);
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
