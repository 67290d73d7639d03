/*
 * pattern.c
 *		Parser of JavaScript's regular expressions without flags.
 *
 * That is the grammar of ECMAScript's main text with the additions of its
 * annex B, which turn most of what would be an error into something literal:
 * a "{" that starts no quantifier, unknown escapes, references to groups that
 * do not exist.  Whatever meaning such a text has in other dialects, here it
 * has none.
 *
 * All is done on UTF-16 code units, as JavaScript does without flags.
 */
#include "pattern.h"

#include <string.h>

/* A name of a group, decoded */
typedef struct GroupName
{
	struct GroupName *next;
	const uint16_t *units;
	size_t length;
	uint32_t group;
} GroupName;

/* A \k<name> whose group may come later */
typedef struct NamedReference
{
	struct NamedReference *next;
	PatternNode *node;
	GroupName *name;
} NamedReference;

/* The capturing groups around the place where the parser is */
typedef struct OpenGroup
{
	struct OpenGroup *outer;
	uint32_t group;
	const GroupName *name; /* NULL: none */
} OpenGroup;

typedef struct PatternParser
{
	const uint16_t *units;
	size_t length;
	size_t at;
	Arena *arena;
	EngineStatus status; /* the first failure */
	uint32_t groups; /* opened so far */
	uint32_t all_groups; /* in the whole pattern */
	bool has_names; /* some group has a name */
	GroupName *names;
	NamedReference *named_references;
	OpenGroup *open;
	bool *referenced;
	int depth;
} PatternParser;

/* A class while it is parsed */
typedef struct ClassBuilder
{
	PatternRange *ranges;
	unsigned escapes; /* which of \d\D\s\S\w\W are in, by class_escape */
} ClassBuilder;

typedef struct UnitRange
{
	uint16_t low;
	uint16_t high;
} UnitRange;

static const UnitRange digit_ranges[] = {{'0', '9'}};
static const UnitRange not_digit_ranges[] = {{0, '0' - 1}, {'9' + 1, 0xffff}};
static const UnitRange word_ranges[] = {
	{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
static const UnitRange not_word_ranges[] = {{0, '0' - 1},
											{'9' + 1, 'A' - 1},
											{'Z' + 1, '_' - 1},
											{'_' + 1, 'a' - 1},
											{'z' + 1, 0xffff}};
static const UnitRange blank_ranges[] = {
	{0x0009, 0x000d}, {0x0020, 0x0020}, {0x00a0, 0x00a0}, {0x1680, 0x1680},
	{0x2000, 0x200a}, {0x2028, 0x2029}, {0x202f, 0x202f}, {0x205f, 0x205f},
	{0x3000, 0x3000}, {0xfeff, 0xfeff}};
static const UnitRange not_blank_ranges[] = {
	{0x0000, 0x0008}, {0x000e, 0x001f}, {0x0021, 0x009f}, {0x00a1, 0x167f},
	{0x1681, 0x1fff}, {0x200b, 0x2027}, {0x202a, 0x202e}, {0x2030, 0x205e},
	{0x2060, 0x2fff}, {0x3001, 0xfefe}, {0xff00, 0xffff}};
/* what the point does not match */
static const UnitRange line_end_ranges[] = {
	{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};

typedef struct ClassEscape
{
	char letter;
	unsigned count;
	const UnitRange *ranges;
} ClassEscape;

#define RANGES(array) sizeof(array) / sizeof((array)[0]), (array)

static const ClassEscape class_escapes[] = {
	{'d', RANGES(digit_ranges)}, {'D', RANGES(not_digit_ranges)},
	{'s', RANGES(blank_ranges)}, {'S', RANGES(not_blank_ranges)},
	{'w', RANGES(word_ranges)},  {'W', RANGES(not_word_ranges)},
};

#define CLASS_ESCAPES (sizeof(class_escapes) / sizeof(class_escapes[0]))

static PatternNode *parse_alternatives(PatternParser *parser);

/* The unit that many places ahead, or -1 at the end */
static int32_t
peek(const PatternParser *parser, size_t ahead)
{
	if (ahead >= parser->length - parser->at)
		return -1;
	return parser->units[parser->at + ahead];
}

/* Takes the next unit if it is this one. */
static bool
accept(PatternParser *parser, int32_t unit)
{
	if (peek(parser, 0) != unit)
		return false;
	parser->at++;
	return true;
}

static void
fail(PatternParser *parser, EngineStatus status)
{
	if (parser->status == ENGINE_OK)
		parser->status = status;
}

static void *
allocate(PatternParser *parser, size_t size)
{
	void *result = arena_alloc(parser->arena, size);

	if (result == NULL)
		fail(parser, ENGINE_NO_MEMORY);
	return result;
}

static PatternNode *
make_node(PatternParser *parser, PatternKind kind)
{
	PatternNode *node = allocate(parser, sizeof(PatternNode));

	if (node != NULL)
		node->kind = kind;
	return node;
}

static PatternNode *
make_unit(PatternParser *parser, uint16_t unit)
{
	PatternNode *node = make_node(parser, PATTERN_UNIT);

	if (node != NULL)
	{
		node->u.unit = unit;
		node->min_width = 1;
		node->max_width = 1;
	}
	return node;
}

static uint32_t
add_widths(uint32_t left, uint32_t right)
{
	return left > PATTERN_UNBOUNDED - right ? PATTERN_UNBOUNDED : left + right;
}

static uint32_t
multiply_width(uint32_t width, uint32_t times)
{
	uint64_t product = (uint64_t) width * times;

	if (width == 0 || times == 0)
		return 0;
	return product >= PATTERN_UNBOUNDED ? PATTERN_UNBOUNDED
										: (uint32_t) product;
}

static bool
is_digit(int32_t unit)
{
	return unit >= '0' && unit <= '9';
}

static bool
is_octal_digit(int32_t unit)
{
	return unit >= '0' && unit <= '7';
}

static bool
is_letter(int32_t unit)
{
	return (unit >= 'a' && unit <= 'z') || (unit >= 'A' && unit <= 'Z');
}

/* The value of a hexadecimal digit, or -1 */
static int32_t
hex_value(int32_t unit)
{
	if (is_digit(unit))
		return unit - '0';
	if (unit >= 'a' && unit <= 'f')
		return unit - 'a' + 10;
	if (unit >= 'A' && unit <= 'F')
		return unit - 'A' + 10;
	return -1;
}

/* Takes exactly count hexadecimal digits, or nothing. */
static bool
accept_hex(PatternParser *parser, size_t count, uint32_t *value)
{
	size_t at;

	*value = 0;
	for (at = 0; at < count; at++)
	{
		int32_t digit = hex_value(peek(parser, at));

		if (digit < 0)
			return false;
		*value = *value * 16 + (uint32_t) digit;
	}
	parser->at += count;
	return true;
}

/*
 * Counts the capturing groups of the whole pattern beforehand: what \2 or \k
 * means depends on groups that may come later.
 */
static void
count_groups(PatternParser *parser)
{
	size_t at;
	bool in_class = false;

	for (at = 0; at < parser->length; at++)
	{
		uint16_t unit = parser->units[at];

		if (unit == '\\')
			at++;
		else if (in_class)
			in_class = unit != ']';
		else if (unit == '[')
			in_class = true;
		else if (unit == '(')
		{
			if (at + 1 < parser->length && parser->units[at + 1] == '?')
			{
				if (at + 3 >= parser->length || parser->units[at + 2] != '<' ||
					parser->units[at + 3] == '=' ||
					parser->units[at + 3] == '!')
					continue;
				parser->has_names = true;
			}
			parser->all_groups++;
		}
	}
}

/*
 * Reads a full quantifier in braces at the parser's place; takes nothing and
 * returns false if there is none.
 */
static bool
accept_braces(PatternParser *parser, uint32_t *min, uint32_t *max)
{
	size_t start = parser->at;
	uint64_t number = 0;

	if (!accept(parser, '{'))
		return false;
	if (is_digit(peek(parser, 0)))
	{
		for (; is_digit(peek(parser, 0)); parser->at++)
		{
			number = number * 10 + (uint64_t) (peek(parser, 0) - '0');
			if (number > PATTERN_UNBOUNDED)
				number = PATTERN_UNBOUNDED;
		}
		*min = (uint32_t) number;
		*max = (uint32_t) number;
		if (accept(parser, ','))
		{
			*max = PATTERN_UNBOUNDED;
			if (is_digit(peek(parser, 0)))
			{
				number = 0;
				for (; is_digit(peek(parser, 0)); parser->at++)
				{
					number = number * 10 + (uint64_t) (peek(parser, 0) - '0');
					if (number > PATTERN_UNBOUNDED)
						number = PATTERN_UNBOUNDED;
				}
				*max = (uint32_t) number;
			}
		}
		if (accept(parser, '}'))
			return true;
	}
	parser->at = start;
	return false;
}

/* Up to three octal digits, the value below 256. */
static uint16_t
parse_octal(PatternParser *parser)
{
	uint16_t value = 0;
	int digits;

	for (digits = 0; digits < 3 && value < 32; digits++)
	{
		if (!is_octal_digit(peek(parser, 0)))
			break;
		value = (uint16_t) (value * 8 + (peek(parser, 0) - '0'));
		parser->at++;
	}
	return value;
}

/*
 * The escapes that mean the same in and outside a class, after the backslash.
 */
static uint16_t
parse_character_escape(PatternParser *parser, bool in_class)
{
	int32_t unit = peek(parser, 0);
	uint32_t value;

	if (unit < 0)
	{
		fail(parser, ENGINE_MALFORMED);
		return 0;
	}
	if (is_octal_digit(unit))
		return parse_octal(parser);
	if (unit == 'c')
	{
		int32_t letter = peek(parser, 1);

		if (is_letter(letter) ||
			(in_class && (is_digit(letter) || letter == '_')))
		{
			parser->at += 2;
			return (uint16_t) (letter & 0x1f);
		}
		return '\\'; /* the backslash itself; the c follows */
	}
	if (unit == 'k' && parser->has_names)
		fail(parser, ENGINE_MALFORMED);
	parser->at++;
	switch (unit)
	{
		case 'f':
			return '\f';
		case 'n':
			return '\n';
		case 'r':
			return '\r';
		case 't':
			return '\t';
		case 'v':
			return '\v';
		case 'x':
			return accept_hex(parser, 2, &value) ? (uint16_t) value : 'x';
		case 'u':
			return accept_hex(parser, 4, &value) ? (uint16_t) value : 'u';
		default:
			return (uint16_t) unit;
	}
}

static void
add_range(PatternParser *parser, ClassBuilder *builder, uint16_t low,
		  uint16_t high)
{
	PatternRange *range = allocate(parser, sizeof(PatternRange));

	if (range != NULL)
	{
		range->low = low;
		range->high = high;
		range->next = builder->ranges;
		builder->ranges = range;
	}
}

static void
add_ranges(PatternParser *parser, ClassBuilder *builder, unsigned count,
		   const UnitRange *ranges)
{
	unsigned index;

	for (index = 0; index < count; index++)
		add_range(parser, builder, ranges[index].low, ranges[index].high);
}

/* Adds what \d and its like mean; false if the letter is none of them. */
static bool
add_class_escape(PatternParser *parser, ClassBuilder *builder, int32_t letter)
{
	unsigned index;

	for (index = 0; index < CLASS_ESCAPES; index++)
	{
		if (class_escapes[index].letter != letter)
			continue;
		if ((builder->escapes & (1U << index)) == 0)
			add_ranges(parser, builder, class_escapes[index].count,
					   class_escapes[index].ranges);
		builder->escapes |= 1U << index;
		return true;
	}
	return false;
}

static PatternNode *
make_class(PatternParser *parser, const ClassBuilder *builder, bool negated)
{
	PatternNode *node = make_node(parser, PATTERN_CLASS);

	if (node != NULL)
	{
		node->u.set.ranges = builder->ranges;
		node->u.set.negated = negated;
		node->min_width = 1;
		node->max_width = 1;
	}
	return node;
}

/*
 * One member of a class; false if it was an escape like \d, which cannot be
 * an end of a range and has been added.
 */
static bool
parse_class_atom(PatternParser *parser, ClassBuilder *builder, uint16_t *unit)
{
	*unit = parser->units[parser->at++];
	if (*unit != '\\')
		return true;
	if (add_class_escape(parser, builder, peek(parser, 0)))
	{
		parser->at++;
		return false;
	}
	if (accept(parser, 'b'))
		*unit = '\b';
	else
		*unit = parse_character_escape(parser, true);
	return true;
}

/* A class, after its opening bracket */
static PatternNode *
parse_class(PatternParser *parser)
{
	ClassBuilder builder = {NULL, 0};
	bool negated = accept(parser, '^');

	while (parser->status == ENGINE_OK)
	{
		uint16_t low;
		uint16_t high;
		bool low_is_unit;
		bool high_is_unit;

		if (accept(parser, ']'))
			return make_class(parser, &builder, negated);
		if (peek(parser, 0) < 0)
			break;
		low_is_unit = parse_class_atom(parser, &builder, &low);
		if (peek(parser, 0) != '-' || peek(parser, 1) == ']' ||
			peek(parser, 1) < 0)
		{
			if (low_is_unit)
				add_range(parser, &builder, low, low);
			continue;
		}
		parser->at++;
		high_is_unit = parse_class_atom(parser, &builder, &high);
		if (low_is_unit && high_is_unit)
		{
			if (low > high)
				break;
			add_range(parser, &builder, low, high);
			continue;
		}
		/* no range: the hyphen stands for itself */
		add_range(parser, &builder, '-', '-');
		if (low_is_unit)
			add_range(parser, &builder, low, low);
		if (high_is_unit)
			add_range(parser, &builder, high, high);
	}
	fail(parser, ENGINE_MALFORMED);
	return NULL;
}

/*
 * Whether a character may stand in a group's name.  Above ASCII the exact
 * answer needs Unicode's tables; here everything is taken but the blocks of
 * blanks, punctuation and symbols.
 */
static bool
is_name_character(uint32_t character, bool first)
{
	static const struct
	{
		uint32_t low;
		uint32_t high;
	} others[] = {{0x80, 0xa9},       {0xab, 0xb4},         {0xb6, 0xb6},
				  {0xb8, 0xb9},       {0xbb, 0xbf},         {0xd7, 0xd7},
				  {0xf7, 0xf7},       {0x1680, 0x1680},     {0x2000, 0x200b},
				  {0x200e, 0x203e},   {0x2041, 0x2053},     {0x2055, 0x2070},
				  {0x20a0, 0x20cf},   {0x2190, 0x2bff},     {0x2e00, 0x2e7f},
				  {0x3000, 0x3004},   {0x3008, 0x3020},     {0x3030, 0x3030},
				  {0xd800, 0xf8ff},   {0xfeff, 0xff0f},     {0x1f000, 0x1faff},
				  {0xe0000, 0xe00ff}, {0xf0000, UINT32_MAX}};
	unsigned index;

	if (character < 0x80)
		return is_letter((int32_t) character) || character == '$' ||
			   character == '_' || (!first && is_digit((int32_t) character));
	if (first &&
		(character == 0xb7 || character == 0x200c || character == 0x200d ||
		 (character >= 0x300 && character <= 0x36f)))
		return false;
	for (index = 0; index < sizeof(others) / sizeof(others[0]); index++)
	{
		if (character >= others[index].low && character <= others[index].high)
			return false;
	}
	return true;
}

/* \uXXXX (also as a pair) or \u{X..} in a name, after the backslash */
static uint32_t
parse_name_escape(PatternParser *parser)
{
	uint32_t character = 0;
	uint32_t low;

	if (!accept(parser, 'u'))
	{
		fail(parser, ENGINE_MALFORMED);
		return 0;
	}
	if (accept(parser, '{'))
	{
		size_t start = parser->at;

		for (; hex_value(peek(parser, 0)) >= 0; parser->at++)
		{
			if (character <= 0x10ffff)
				character =
					character * 16 + (uint32_t) hex_value(peek(parser, 0));
		}
		if (parser->at == start || !accept(parser, '}'))
			fail(parser, ENGINE_MALFORMED);
		return character;
	}
	if (!accept_hex(parser, 4, &character))
		fail(parser, ENGINE_MALFORMED);
	if (character >= 0xd800 && character <= 0xdbff && peek(parser, 0) == '\\' &&
		peek(parser, 1) == 'u')
	{
		parser->at += 2;
		if (accept_hex(parser, 4, &low) && low >= 0xdc00 && low <= 0xdfff)
			return 0x10000 + ((character - 0xd800) << 10) + (low - 0xdc00);
		fail(parser, ENGINE_MALFORMED);
	}
	return character;
}

/* A group's name, after its "<", up to and with its ">" */
static GroupName *
parse_name(PatternParser *parser)
{
	GroupName *name = allocate(parser, sizeof(GroupName));
	uint16_t *units;
	size_t length = 0;

	while (peek(parser, length) >= 0 && peek(parser, length) != '>')
		length++;
	units = allocate(parser, length * sizeof(uint16_t));
	if (name == NULL || units == NULL)
		return NULL;
	length = 0;
	while (parser->status == ENGINE_OK)
	{
		int32_t unit = peek(parser, 0);
		uint32_t character;

		if (unit < 0 || (unit == '>' && length == 0))
			break;
		parser->at++;
		if (unit == '>')
		{
			name->units = units;
			name->length = length;
			return name;
		}
		character = (uint32_t) unit;
		if (unit == '\\')
			character = parse_name_escape(parser);
		else if (unit >= 0xd800 && unit <= 0xdbff &&
				 peek(parser, 0) >= 0xdc00 && peek(parser, 0) <= 0xdfff)
		{
			character = 0x10000 + (((uint32_t) unit - 0xd800) << 10) +
						((uint32_t) peek(parser, 0) - 0xdc00);
			parser->at++;
		}
		if (!is_name_character(character, length == 0))
			break;
		/* never longer than its spelling */
		if (character > 0xffff)
		{
			units[length++] =
				(uint16_t) (0xd800 + ((character - 0x10000) >> 10));
			units[length++] =
				(uint16_t) (0xdc00 + ((character - 0x10000) & 0x3ff));
		}
		else
			units[length++] = (uint16_t) character;
	}
	fail(parser, ENGINE_MALFORMED);
	return NULL;
}

static bool
same_name(const GroupName *left, const GroupName *right)
{
	return left->length == right->length &&
		   memcmp(left->units, right->units, left->length * sizeof(uint16_t)) ==
			   0;
}

/*
 * A reference to a group, which has group 0 as long as only its name is known.
 *
 * Inside the group itself it is empty: the group has no text yet, because
 * each round of a repetition starts with its groups reset.
 */
static PatternNode *
make_reference(PatternParser *parser, uint32_t group, const GroupName *name)
{
	PatternNode *node;
	const OpenGroup *open;

	for (open = parser->open; open != NULL; open = open->outer)
	{
		if (name != NULL ? open->name != NULL && same_name(open->name, name)
						 : open->group == group)
			return make_node(parser, PATTERN_EMPTY);
	}
	node = make_node(parser, PATTERN_REFERENCE);
	if (node != NULL)
	{
		node->u.group = group;
		node->max_width = PATTERN_UNBOUNDED;
		if (name == NULL)
			parser->referenced[group] = true;
	}
	return node;
}

static PatternNode *
parse_named_reference(PatternParser *parser)
{
	NamedReference *reference = allocate(parser, sizeof(NamedReference));

	if (reference == NULL)
		return NULL;
	if (!accept(parser, '<'))
	{
		fail(parser, ENGINE_MALFORMED);
		return NULL;
	}
	reference->name = parse_name(parser);
	if (reference->name == NULL)
		return NULL;
	reference->node = make_reference(parser, 0, reference->name);
	reference->next = parser->named_references;
	parser->named_references = reference;
	return reference->node;
}

/* \1 and so on, if there are so many groups; else takes nothing. */
static PatternNode *
parse_numbered_reference(PatternParser *parser)
{
	size_t start = parser->at;
	uint32_t number = 0;

	for (; is_digit(peek(parser, 0)); parser->at++)
	{
		if (number <= parser->all_groups)
			number = number * 10 + (uint32_t) (peek(parser, 0) - '0');
	}
	if (number <= parser->all_groups)
		return make_reference(parser, number, NULL);
	parser->at = start;
	return NULL;
}

/* An escape outside classes, after the backslash */
static PatternNode *
parse_escape(PatternParser *parser, bool *quantifiable)
{
	int32_t unit = peek(parser, 0);
	ClassBuilder builder = {NULL, 0};

	if (unit == 'b' || unit == 'B')
	{
		parser->at++;
		*quantifiable = false;
		return make_node(parser, unit == 'b' ? PATTERN_EDGE : PATTERN_NO_EDGE);
	}
	if (unit >= '1' && unit <= '9')
	{
		PatternNode *reference = parse_numbered_reference(parser);

		if (reference != NULL || parser->status != ENGINE_OK)
			return reference;
	}
	if (unit == 'k' && parser->has_names)
	{
		parser->at++;
		return parse_named_reference(parser);
	}
	if (add_class_escape(parser, &builder, unit))
	{
		parser->at++;
		return make_class(parser, &builder, false);
	}
	return make_unit(parser, parse_character_escape(parser, false));
}

/* The inside of a group up to and with its closing parenthesis */
static PatternNode *
parse_inside(PatternParser *parser)
{
	PatternNode *node = parse_alternatives(parser);

	if (!accept(parser, ')'))
		fail(parser, ENGINE_MALFORMED);
	return node;
}

static PatternNode *
parse_look(PatternParser *parser, bool behind, bool negative)
{
	PatternNode *node = make_node(parser, PATTERN_LOOK);
	PatternNode *child = parse_inside(parser);

	if (node != NULL)
	{
		node->child = child;
		node->u.look.behind = behind;
		node->u.look.negative = negative;
	}
	return node;
}

static PatternNode *
parse_capture(PatternParser *parser, GroupName *name)
{
	PatternNode *node = make_node(parser, PATTERN_GROUP);
	OpenGroup open;

	open.outer = parser->open;
	open.group = ++parser->groups;
	open.name = name;
	if (name != NULL)
	{
		const GroupName *other;

		for (other = parser->names; other != NULL; other = other->next)
		{
			if (same_name(other, name))
				fail(parser, ENGINE_MALFORMED);
		}
		name->group = open.group;
		name->next = parser->names;
		parser->names = name;
	}

	parser->open = &open;
	if (node != NULL)
	{
		node->u.group = open.group;
		node->child = parse_inside(parser);
		if (node->child != NULL)
		{
			node->min_width = node->child->min_width;
			node->max_width = node->child->max_width;
		}
	}
	parser->open = open.outer;
	return node;
}

/* Anything in parentheses, after the opening one */
static PatternNode *
parse_group(PatternParser *parser, bool *quantifiable)
{
	if (!accept(parser, '?'))
		return parse_capture(parser, NULL);
	if (accept(parser, ':'))
		return parse_inside(parser);
	if (accept(parser, '='))
		return parse_look(parser, false, false);
	if (accept(parser, '!'))
		return parse_look(parser, false, true);
	if (accept(parser, '<'))
	{
		GroupName *name;

		if (peek(parser, 0) == '=' || peek(parser, 0) == '!')
		{
			*quantifiable = false;
			return parse_look(parser, true, parser->units[parser->at++] == '!');
		}
		name = parse_name(parser);
		return name == NULL ? NULL : parse_capture(parser, name);
	}
	fail(parser, ENGINE_MALFORMED);
	return NULL;
}

/* One atom or assertion; a quantifier may follow if *quantifiable. */
static PatternNode *
parse_atom(PatternParser *parser, bool *quantifiable)
{
	ClassBuilder line_ends = {NULL, 0};
	uint32_t min;
	uint32_t max;
	uint16_t unit;

	*quantifiable = true;
	if (accept_braces(parser, &min, &max))
	{
		fail(parser, ENGINE_MALFORMED); /* nothing to repeat */
		return NULL;
	}
	unit = parser->units[parser->at++];
	switch (unit)
	{
		case '^':
		case '$':
			*quantifiable = false;
			return make_node(parser, unit == '^' ? PATTERN_START : PATTERN_END);
		case '(':
			return parse_group(parser, quantifiable);
		case '*':
		case '+':
		case '?':
			fail(parser, ENGINE_MALFORMED); /* nothing to repeat */
			return NULL;
		case '.':
			add_ranges(parser, &line_ends, RANGES(line_end_ranges));
			return make_class(parser, &line_ends, true);
		case '[':
			return parse_class(parser);
		case '\\':
			return parse_escape(parser, quantifiable);
		default:
			return make_unit(parser, unit);
	}
}

/* A quantifier after an atom that starts with the group numbered first_group */
static PatternNode *
parse_quantifier(PatternParser *parser, PatternNode *atom, uint32_t first_group)
{
	PatternNode *node;
	uint32_t min = 0;
	uint32_t max = PATTERN_UNBOUNDED;

	if (accept(parser, '+'))
		min = 1;
	else if (accept(parser, '?'))
		max = 1;
	else if (!accept(parser, '*') && !accept_braces(parser, &min, &max))
		return atom;
	if (min > max)
		fail(parser, ENGINE_MALFORMED);

	node = make_node(parser, PATTERN_REPEAT);
	if (node != NULL)
	{
		node->child = atom;
		node->u.repeat.min = min;
		node->u.repeat.max = max;
		node->u.repeat.lazy = accept(parser, '?');
		node->u.repeat.first_group = first_group;
		node->u.repeat.end_group = parser->groups + 1;
		node->min_width = multiply_width(atom->min_width, min);
		node->max_width = multiply_width(atom->max_width, max);
	}
	return node;
}

/* The terms up to the end of the alternative */
static PatternNode *
parse_sequence(PatternParser *parser)
{
	PatternNode *sequence = make_node(parser, PATTERN_SEQUENCE);
	PatternNode **tail;

	if (sequence == NULL)
		return NULL;
	tail = &sequence->child;
	while (parser->status == ENGINE_OK)
	{
		int32_t unit = peek(parser, 0);
		uint32_t first_group = parser->groups + 1;
		PatternNode *term;
		bool quantifiable;

		if (unit < 0 || unit == '|' || unit == ')')
			break;
		term = parse_atom(parser, &quantifiable);
		if (term != NULL && quantifiable)
			term = parse_quantifier(parser, term, first_group);
		if (term == NULL)
			break;
		*tail = term;
		tail = &term->next;
		sequence->min_width = add_widths(sequence->min_width, term->min_width);
		sequence->max_width = add_widths(sequence->max_width, term->max_width);
	}
	return sequence;
}

/* Alternatives up to the end of the group or of the pattern */
static PatternNode *
parse_alternatives(PatternParser *parser)
{
	PatternNode *list;
	PatternNode *alternative;

	if (++parser->depth > PATTERN_MAX_DEPTH)
		fail(parser, ENGINE_TOO_DEEP);
	alternative = parse_sequence(parser);
	if (alternative == NULL || peek(parser, 0) != '|')
	{
		parser->depth--;
		return alternative;
	}

	list = make_node(parser, PATTERN_ALTERNATIVES);
	if (list != NULL)
	{
		list->child = alternative;
		list->min_width = alternative->min_width;
		list->max_width = alternative->max_width;
	}
	while (list != NULL && accept(parser, '|'))
	{
		PatternNode *next = parse_sequence(parser);

		alternative->next = next;
		if (next == NULL)
			break;
		alternative = next;
		if (next->min_width < list->min_width)
			list->min_width = next->min_width;
		if (next->max_width > list->max_width)
			list->max_width = next->max_width;
	}
	parser->depth--;
	return list;
}

/* Finds the groups that \k<name> means, when all names are known. */
static void
resolve_names(PatternParser *parser)
{
	const NamedReference *reference;

	for (reference = parser->named_references; reference != NULL;
		 reference = reference->next)
	{
		const GroupName *name = parser->names;

		while (name != NULL && !same_name(name, reference->name))
			name = name->next;
		if (name == NULL)
			fail(parser, ENGINE_MALFORMED);
		else if (reference->node->kind == PATTERN_REFERENCE)
		{
			reference->node->u.group = name->group;
			parser->referenced[name->group] = true;
		}
	}
}

EngineStatus
pattern_parse(const uint16_t *units, size_t length, Arena *arena,
			  PatternTree *tree)
{
	PatternParser parser;

	memset(&parser, 0, sizeof(parser));
	parser.units = units;
	parser.length = length;
	parser.arena = arena;
	count_groups(&parser);
	parser.referenced =
		allocate(&parser, (parser.all_groups + 1) * sizeof(bool));
	if (parser.referenced == NULL)
		return parser.status;

	tree->root = parse_alternatives(&parser);
	if (parser.at < length)
		fail(&parser, ENGINE_MALFORMED); /* a parenthesis too many */
	if (parser.status == ENGINE_OK)
		resolve_names(&parser);
	tree->groups = parser.groups;
	tree->referenced = parser.referenced;
	return parser.status;
}
