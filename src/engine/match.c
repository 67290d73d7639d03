/*
 * match.c
 *		The match operator: JavaScript's regular expressions on PCRE2.
 *
 * A pattern is parsed by JavaScript's grammar (pattern.c) and written anew
 * in the few constructs that PCRE2 shares with it, so that nothing which is
 * special in one dialect only gets through.  The 16-bit library without its
 * UTF mode then works on code units, as JavaScript does.
 *
 * What PCRE2 cannot match in JavaScript's way is left to backtrack.c.
 *
 * A search must let itself be interrupted.  PCRE2's limit counts neither what
 * a repetition of one unit goes through nor from how many places of the text
 * it starts, so on a long text it bounds next to nothing.  Therefore a search
 * whose text and pattern are short is tried with so low a limit that it cannot
 * take more than some milliseconds; the others, and what has hit that limit,
 *take code with callouts wherever matching may go back to, which ask the host.
 */
#include "match.h"

#define PCRE2_CODE_UNIT_WIDTH 16
#include <pcre2.h>
#include <stdio.h>
#include <string.h>

#include "backtrack.h"
#include "pattern.h"

/* Limits of PCRE2 for one search (DESIGN 7.2) */
#define MATCH_LIMIT 1000000
#define DEPTH_LIMIT 100000
#define HEAP_LIMIT 16384 /* KiB */
#define NEST_LIMIT (4 * PATTERN_MAX_DEPTH)

/*
 * What a search without callouts may take, in nanoseconds, and the limit that
 * must remain for it.
 */
#define SHORT_SEARCH ((size_t) 50 * 1000 * 1000)
#define SHORT_LIMIT 100

/* What a callout costs, apart from the text between two of them */
#define CALLOUT_COST 16

/* What a search costs at least */
#define SEARCH_COST 256

/* The largest stack of JIT code; without one it uses 32 KiB of ours. */
#define JIT_STACK_START ((size_t) 64 * 1024)
#define JIT_STACK_MAX ((size_t) 4 * 1024 * 1024)

/* The largest repeat count that PCRE2 takes */
#define MAX_REPEAT 65535

/* A buffer for UTF-16 that has grown beyond this is not kept. */
#define KEEP_UNITS ((size_t) 32 * 1024)

#define CACHE_BUCKETS 256 /* a power of two */
#define NO_ENTRY (-1)

/* A growing array of UTF-16 code units */
typedef struct UnitBuffer
{
	const ArenaSource *source;
	uint16_t *units;
	size_t length;
	size_t capacity;
	bool failed; /* no memory */
	bool callouts; /* patterns are written with callouts */
} UnitBuffer;

/* A pattern; one that is invalid has neither code nor program. */
typedef struct CacheEntry
{
	char *text; /* UTF-8 */
	size_t length;
	uint32_t hash;
	int next; /* in its bucket */
	int newer; /* by last use */
	int older;
	pcre2_code *code;
	size_t code_size; /* in bytes; 0: there is no machine code */
	pcre2_code *asking_code; /* with callouts; made when it is needed */
	const BacktrackProgram *program; /* in arena */
	Arena arena;
} CacheEntry;

struct MatchCache
{
	const ArenaSource *source;
	pcre2_general_context *general;
	pcre2_compile_context *compile;
	pcre2_match_context *match;
	pcre2_match_data *data;
	pcre2_jit_stack *stack; /* NULL until some pattern needs it */
	UnitBuffer text; /* the text of the present search */
	UnitBuffer scratch; /* for patterns while they are compiled */
	int nentries;
	int newest;
	int oldest;
	int buckets[CACHE_BUCKETS];
	CacheEntry entries[MATCH_CACHE_SIZE];
};

static void write_node(UnitBuffer *buffer, const PatternNode *node);
static void write_enclosed(UnitBuffer *buffer, const char *opening,
						   const PatternNode *node);

/* Makes room for count more units. */
static bool
buffer_reserve(UnitBuffer *buffer, size_t count)
{
	size_t capacity = buffer->capacity < 256 ? 256 : buffer->capacity;
	uint16_t *units;

	if (buffer->failed)
		return false;
	if (count <= buffer->capacity - buffer->length)
		return true;
	if (count > SIZE_MAX / 8 - buffer->length)
	{
		buffer->failed = true;
		return false;
	}
	while (capacity < buffer->length + count)
		capacity *= 2;
	units = buffer->source->alloc(buffer->source->context,
								  capacity * sizeof(uint16_t));
	if (units == NULL)
	{
		buffer->failed = true;
		return false;
	}
	if (buffer->units != NULL)
	{
		memcpy(units, buffer->units, buffer->length * sizeof(uint16_t));
		buffer->source->free(buffer->source->context, buffer->units);
	}
	buffer->units = units;
	buffer->capacity = capacity;
	return true;
}

static void
buffer_free(UnitBuffer *buffer)
{
	if (buffer->units != NULL)
		buffer->source->free(buffer->source->context, buffer->units);
	buffer->units = NULL;
	buffer->length = 0;
	buffer->capacity = 0;
	buffer->failed = false;
}

static void
buffer_add(UnitBuffer *buffer, uint16_t unit)
{
	if (buffer_reserve(buffer, 1))
		buffer->units[buffer->length++] = unit;
}

static void
buffer_add_text(UnitBuffer *buffer, const char *text)
{
	for (; *text != '\0'; text++)
		buffer_add(buffer, (unsigned char) *text);
}

/*
 * Decodes one character of UTF-8 above ASCII.  The host's text is valid; a
 * byte that is not is taken as U+FFFD, so that nothing is read past the end.
 */
static size_t
decode_utf8(const unsigned char *text, size_t length, uint32_t *character)
{
	size_t count = text[0] >= 0xf0 ? 4 : text[0] >= 0xe0 ? 3 : 2;
	size_t at;

	*character = 0xfffd;
	if (text[0] < 0xc2 || text[0] > 0xf4 || length < count)
		return 1;
	for (at = 1; at < count; at++)
	{
		if ((text[at] & 0xc0) != 0x80)
			return 1;
	}
	*character = text[0] & (0xff >> (count + 1));
	for (at = 1; at < count; at++)
		*character = (*character << 6) | (text[at] & 0x3f);
	return count;
}

/* Replaces the buffer's content by text; false: no memory, or stopped. */
static bool
buffer_set_text(UnitBuffer *buffer, EngineText text, Work *work)
{
	const unsigned char *next = (const unsigned char *) text.data;
	const unsigned char *end = next + text.length;
	const unsigned char *asked = next;
	uint16_t *unit;

	if (buffer->failed || buffer->capacity > KEEP_UNITS)
		buffer_free(buffer);
	buffer->length = 0;
	/* never more units than bytes */
	if (!buffer_reserve(buffer, text.length + 1))
		return false;
	unit = buffer->units;
	while (next < end)
	{
		uint32_t character;

		if (next >= asked)
		{
			if (!work_goes_on(work, WORK_PIECE))
				return false;
			asked = next + WORK_PIECE;
		}
		if (*next < 0x80)
		{
			*unit++ = *next++;
			continue;
		}
		next += decode_utf8(next, (size_t) (end - next), &character);
		if (character > 0xffff)
		{
			*unit++ = (uint16_t) (0xd800 + ((character - 0x10000) >> 10));
			*unit++ = (uint16_t) (0xdc00 + ((character - 0x10000) & 0x3ff));
		}
		else
			*unit++ = (uint16_t) character;
	}
	buffer->length = (size_t) (unit - buffer->units);
	return true;
}

/* One code unit that stands for itself, in and outside classes */
static void
write_unit(UnitBuffer *buffer, uint16_t unit)
{
	bool punctuation = (unit > ' ' && unit < '0') ||
					   (unit > '9' && unit < 'A') ||
					   (unit > 'Z' && unit < 'a' && unit != '_') ||
					   (unit > 'z' && unit < 0x7f);

	if (punctuation)
		buffer_add(buffer, '\\');
	buffer_add(buffer, unit);
}

static void
write_class(UnitBuffer *buffer, const PatternNode *node)
{
	const PatternRange *range;

	if (node->u.set.ranges == NULL)
	{
		/* [^] is any unit (the point is, with PCRE2_DOTALL), [] is none */
		buffer_add_text(buffer, node->u.set.negated ? "." : "(?:(?!))");
		return;
	}
	buffer_add_text(buffer, node->u.set.negated ? "[^" : "[");
	for (range = node->u.set.ranges; range != NULL; range = range->next)
	{
		write_unit(buffer, range->low);
		if (range->high != range->low)
		{
			buffer_add(buffer, '-');
			write_unit(buffer, range->high);
		}
	}
	buffer_add(buffer, ']');
}

/*
 * Whether matching may come back to what follows a node, or comes there after
 * a length of text.
 */
static bool
can_go_back(const PatternNode *node)
{
	switch (node->kind)
	{
		case PATTERN_REFERENCE:
		case PATTERN_GROUP:
		case PATTERN_REPEAT:
		case PATTERN_LOOK:
		case PATTERN_ALTERNATIVES:
			return true;
		default:
			return false;
	}
}

static void
write_list(UnitBuffer *buffer, const PatternNode *first, bool alternatives)
{
	const PatternNode *node;

	for (node = first; node != NULL; node = node->next)
	{
		if (alternatives && node != first)
			buffer_add(buffer, '|');
		if (node->kind == PATTERN_ALTERNATIVES)
			write_enclosed(buffer, "(?:", node);
		else
			write_node(buffer, node);
		if (buffer->callouts && !alternatives && can_go_back(node))
			buffer_add_text(buffer, "(?C)");
	}
}

static void
write_enclosed(UnitBuffer *buffer, const char *opening, const PatternNode *node)
{
	buffer_add_text(buffer, opening);
	write_node(buffer, node);
	buffer_add(buffer, ')');
}

/*
 * A repetition of something that matches nothing, or of no rounds: with its
 * least number 0 nothing is left of it but groups that never match.
 */
static void
write_unset_groups(UnitBuffer *buffer, const PatternNode *repeat)
{
	uint32_t group;

	for (group = repeat->u.repeat.first_group;
		 group < repeat->u.repeat.end_group; group++)
		buffer_add_text(buffer, "(){0}");
}

static void
write_repeat(UnitBuffer *buffer, const PatternNode *node)
{
	const PatternNode *child = node->child;
	uint32_t min = node->u.repeat.min;
	uint32_t max = node->u.repeat.max;
	char braces[40];

	/* JavaScript never repeats a lookahead beyond the least number */
	if (max == 0 || (child->kind == PATTERN_LOOK && min == 0))
	{
		write_unset_groups(buffer, node);
		return;
	}
	if (child->kind == PATTERN_LOOK)
	{
		write_node(buffer, child);
		return;
	}

	if (child->kind == PATTERN_UNIT || child->kind == PATTERN_CLASS ||
		child->kind == PATTERN_GROUP)
		write_node(buffer, child);
	else
		write_enclosed(buffer, "(?:", child);
	if (max == PATTERN_UNBOUNDED)
		(void) snprintf(braces, sizeof(braces), "{%u,}", (unsigned) min);
	else
		(void) snprintf(braces, sizeof(braces), "{%u,%u}", (unsigned) min,
						(unsigned) max);
	buffer_add_text(buffer, braces);
	if (node->u.repeat.lazy)
		buffer_add(buffer, '?');
}

/*
 * Writes a node in PCRE2's syntax.  The recursion is as deep as the tree,
 * which the parser bounds.
 */
static void
write_node(UnitBuffer *buffer, const PatternNode *node)
{
	static const char *const looks[2][2] = {{"(?=", "(?!"}, {"(?<=", "(?<!"}};
	char reference[24];

	switch (node->kind)
	{
		case PATTERN_EMPTY:
			break;
		case PATTERN_UNIT:
			write_unit(buffer, node->u.unit);
			break;
		case PATTERN_CLASS:
			write_class(buffer, node);
			break;
		case PATTERN_START:
			buffer_add(buffer, '^');
			break;
		case PATTERN_END:
			buffer_add_text(buffer, "\\z");
			break;
		case PATTERN_EDGE:
			buffer_add_text(buffer, "\\b");
			break;
		case PATTERN_NO_EDGE:
			buffer_add_text(buffer, "\\B");
			break;
		case PATTERN_REFERENCE:
			(void) snprintf(reference, sizeof(reference), "\\g{%u}",
							(unsigned) node->u.group);
			buffer_add_text(buffer, reference);
			break;
		case PATTERN_GROUP:
			write_enclosed(buffer, "(", node->child);
			break;
		case PATTERN_REPEAT:
			write_repeat(buffer, node);
			break;
		case PATTERN_LOOK:
			write_enclosed(buffer,
						   looks[node->u.look.behind][node->u.look.negative],
						   node->child);
			break;
		case PATTERN_SEQUENCE:
			write_list(buffer, node->child, false);
			break;
		case PATTERN_ALTERNATIVES:
			/* those who need parentheses around write them */
			write_list(buffer, node->child, true);
			break;
	}
}

/*
 * Whether PCRE2 looks behind as JavaScript does: only if each alternative has
 * one width.
 */
static bool
has_fixed_width(const PatternNode *node)
{
	const PatternNode *alternative;

	if (node->kind != PATTERN_ALTERNATIVES)
		return node->min_width == node->max_width;
	for (alternative = node->child; alternative != NULL;
		 alternative = alternative->next)
	{
		if (alternative->min_width != alternative->max_width)
			return false;
	}
	return true;
}

/*
 * Whether JavaScript may find something else than PCRE2 with this node, or
 * PCRE2 does not take it.
 *
 * Without references, what groups have captured does not count.  With them it
 * does, and differs where a repetition comes to its groups again (JavaScript
 * resets them), or may end with a round that matches nothing (JavaScript
 * undoes that round), and in a lookbehind (JavaScript goes from right to
 * left).  differs tells that the node is in such a place.
 */
static bool
needs_backtracking(const PatternTree *tree, const PatternNode *node,
				   bool differs)
{
	const PatternNode *child;

	switch (node->kind)
	{
		case PATTERN_GROUP:
			if (differs && tree->referenced[node->u.group])
				return true;
			break;
		case PATTERN_REPEAT:
			if (node->u.repeat.min > MAX_REPEAT ||
				(node->u.repeat.max > MAX_REPEAT &&
				 node->u.repeat.max != PATTERN_UNBOUNDED))
				return true;
			if (node->u.repeat.max > 1 ||
				(node->u.repeat.min == 0 && node->child->min_width == 0))
				differs = true;
			break;
		case PATTERN_LOOK:
			if (node->u.look.behind)
			{
				if (!has_fixed_width(node->child))
					return true;
				differs = true;
			}
			break;
		default:
			break;
	}
	for (child = node->child; child != NULL; child = child->next)
	{
		if (needs_backtracking(tree, child, differs))
			return true;
	}
	return false;
}

/*
 * Compiles with PCRE2; NULL if it does not take the pattern.  Compiling to
 * machine code may fail (a system may forbid it): then PCRE2 interprets.
 *
 * *size becomes that of the code, 0 if it is interpreted.
 */
static pcre2_code *
compile_pcre2(MatchCache *cache, const PatternTree *tree, bool callouts,
			  size_t *size)
{
	pcre2_code *code;
	int error;
	PCRE2_SIZE offset;

	*size = 0;
	cache->scratch.length = 0;
	cache->scratch.callouts = callouts;
	if (callouts)
		buffer_add_text(&cache->scratch, "(?C)"); /* at each start */
	write_node(&cache->scratch, tree->root);
	if (cache->scratch.failed)
		return NULL;
	code = pcre2_compile(cache->scratch.units, cache->scratch.length,
						 PCRE2_DOTALL | PCRE2_MATCH_UNSET_BACKREF |
							 PCRE2_NEVER_UTF | PCRE2_NEVER_UCP |
							 PCRE2_NEVER_BACKSLASH_C,
						 &error, &offset, cache->compile);
	if (code != NULL && pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0)
		(void) pcre2_pattern_info(code, PCRE2_INFO_SIZE, size);
	return code;
}

/*
 * Compiles the entry's pattern; false: no memory or stopped, and nothing is
 * kept.
 */
static bool
compile_entry(MatchCache *cache, CacheEntry *entry, Work *work)
{
	EngineText text = {entry->text, entry->length};
	PatternTree tree;
	EngineStatus status;

	if (!work_goes_on(work, WORK_SLICE) ||
		!buffer_set_text(&cache->scratch, text, work))
		return false;
	if (cache->scratch.length > MATCH_MAX_PATTERN)
		return true;

	status = pattern_parse(cache->scratch.units, cache->scratch.length,
						   &entry->arena, &tree);
	if (status == ENGINE_OK && !needs_backtracking(&tree, tree.root, false))
		entry->code = compile_pcre2(cache, &tree, false, &entry->code_size);
	if (status == ENGINE_OK && entry->code == NULL && !cache->scratch.failed)
		entry->program = backtrack_compile(&tree, &entry->arena);

	if (entry->arena.failed || cache->scratch.failed)
		return false;
	if (entry->program == NULL)
		arena_release(&entry->arena);
	return true;
}

/*
 * The same for the code with callouts.  Where that is too large for PCRE2 the
 * entry gets a program.
 */
static bool
compile_asking(MatchCache *cache, CacheEntry *entry, Work *work)
{
	EngineText text = {entry->text, entry->length};
	PatternTree tree;
	size_t size;
	bool failed;

	if (!work_goes_on(work, WORK_SLICE) ||
		!buffer_set_text(&cache->scratch, text, work))
		return false;
	if (pattern_parse(cache->scratch.units, cache->scratch.length,
					  &entry->arena, &tree) == ENGINE_OK)
	{
		entry->asking_code = compile_pcre2(cache, &tree, true, &size);
		if (entry->asking_code == NULL && !cache->scratch.failed)
			entry->program = backtrack_compile(&tree, &entry->arena);
	}
	failed = entry->arena.failed || cache->scratch.failed;
	if (failed || entry->program == NULL)
		arena_release(&entry->arena);
	if (failed)
		entry->program = NULL;
	return !failed;
}

static void *
pcre2_alloc(PCRE2_SIZE size, void *context)
{
	const ArenaSource *source = context;

	return source->alloc(source->context, size);
}

static void
pcre2_release(void *chunk, void *context)
{
	const ArenaSource *source = context;

	if (chunk != NULL)
		source->free(source->context, chunk);
}

MatchCache *
match_cache_create(const ArenaSource *source)
{
	MatchCache *cache = source->alloc(source->context, sizeof(MatchCache));
	int bucket;

	if (cache == NULL)
		return NULL;
	memset(cache, 0, sizeof(MatchCache));
	cache->source = source;
	cache->text.source = source;
	cache->scratch.source = source;
	cache->newest = NO_ENTRY;
	cache->oldest = NO_ENTRY;
	for (bucket = 0; bucket < CACHE_BUCKETS; bucket++)
		cache->buckets[bucket] = NO_ENTRY;

	cache->general = pcre2_general_context_create(pcre2_alloc, pcre2_release,
												  (void *) source);
	if (cache->general != NULL)
	{
		cache->compile = pcre2_compile_context_create(cache->general);
		cache->match = pcre2_match_context_create(cache->general);
		cache->data = pcre2_match_data_create(1, cache->general);
	}
	if (cache->compile == NULL || cache->match == NULL || cache->data == NULL)
	{
		match_cache_destroy(cache);
		return NULL;
	}
	(void) pcre2_set_parens_nest_limit(cache->compile, NEST_LIMIT);
	(void) pcre2_set_depth_limit(cache->match, DEPTH_LIMIT);
	(void) pcre2_set_heap_limit(cache->match, HEAP_LIMIT);
	return cache;
}

/* Gives back what an entry holds. */
static void
clear_entry(MatchCache *cache, CacheEntry *entry)
{
	cache->source->free(cache->source->context, entry->text);
	pcre2_code_free(entry->code);
	pcre2_code_free(entry->asking_code);
	arena_release(&entry->arena);
	entry->text = NULL;
	entry->code = NULL;
	entry->asking_code = NULL;
	entry->program = NULL;
}

void
match_cache_destroy(MatchCache *cache)
{
	const ArenaSource *source = cache->source;
	int index;

	for (index = 0; index < cache->nentries; index++)
		clear_entry(cache, &cache->entries[index]);
	buffer_free(&cache->text);
	buffer_free(&cache->scratch);
	pcre2_jit_stack_free(cache->stack);
	pcre2_match_data_free(cache->data);
	pcre2_match_context_free(cache->match);
	pcre2_compile_context_free(cache->compile);
	pcre2_general_context_free(cache->general);
	source->free(source->context, cache);
}

static uint32_t
hash_text(EngineText text)
{
	uint32_t hash = 2166136261U; /* FNV-1a */
	size_t at;

	for (at = 0; at < text.length; at++)
		hash = (hash ^ (unsigned char) text.data[at]) * 16777619U;
	return hash ^ (hash >> 15);
}

static bool
entry_is(const CacheEntry *entry, EngineText pattern)
{
	return entry->length == pattern.length &&
		   (pattern.length == 0 ||
			memcmp(entry->text, pattern.data, pattern.length) == 0);
}

/* Takes an entry out of the list by last use. */
static void
unlink_use(MatchCache *cache, int index)
{
	const CacheEntry *entry = &cache->entries[index];

	if (entry->newer != NO_ENTRY)
		cache->entries[entry->newer].older = entry->older;
	else
		cache->newest = entry->older;
	if (entry->older != NO_ENTRY)
		cache->entries[entry->older].newer = entry->newer;
	else
		cache->oldest = entry->newer;
}

static void
link_as_newest(MatchCache *cache, int index)
{
	CacheEntry *entry = &cache->entries[index];

	entry->newer = NO_ENTRY;
	entry->older = cache->newest;
	if (cache->newest != NO_ENTRY)
		cache->entries[cache->newest].newer = index;
	else
		cache->oldest = index;
	cache->newest = index;
}

static void
unlink_bucket(MatchCache *cache, int index)
{
	int *link =
		&cache->buckets[cache->entries[index].hash & (CACHE_BUCKETS - 1)];

	while (*link != index)
		link = &cache->entries[*link].next;
	*link = cache->entries[index].next;
}

/*
 * The place for another entry: a new one as long as there are some, then that
 * of the entry whose last use is longest ago.
 */
static int
take_place(MatchCache *cache)
{
	int index;

	if (cache->nentries < MATCH_CACHE_SIZE)
		return cache->nentries++;
	index = cache->oldest;
	unlink_use(cache, index);
	unlink_bucket(cache, index);
	clear_entry(cache, &cache->entries[index]);
	return index;
}

/* Puts a pattern into the cache; NULL: no memory, or stopped. */
static CacheEntry *
add_pattern(MatchCache *cache, EngineText pattern, uint32_t hash, Work *work)
{
	int *bucket = &cache->buckets[hash & (CACHE_BUCKETS - 1)];
	CacheEntry entry;
	int index;

	memset(&entry, 0, sizeof(entry));
	arena_init(&entry.arena, cache->source);
	entry.length = pattern.length;
	entry.hash = hash;
	entry.text =
		cache->source->alloc(cache->source->context, pattern.length + 1);
	if (entry.text == NULL)
		return NULL;
	if (pattern.length > 0)
		memcpy(entry.text, pattern.data, pattern.length);
	if (!compile_entry(cache, &entry, work))
	{
		clear_entry(cache, &entry);
		return NULL;
	}

	index = take_place(cache);
	entry.next = *bucket;
	*bucket = index;
	cache->entries[index] = entry;
	link_as_newest(cache, index);
	return &cache->entries[index];
}

/* The pattern, compiled and now the newest; NULL: no memory, or stopped */
static CacheEntry *
find_pattern(MatchCache *cache, EngineText pattern, Work *work)
{
	uint32_t hash;
	int index = cache->newest;

	/* most often it is the same as before */
	if (index != NO_ENTRY && entry_is(&cache->entries[index], pattern))
		return &cache->entries[index];

	hash = hash_text(pattern);
	for (index = cache->buckets[hash & (CACHE_BUCKETS - 1)]; index != NO_ENTRY;
		 index = cache->entries[index].next)
	{
		if (cache->entries[index].hash == hash &&
			entry_is(&cache->entries[index], pattern))
		{
			unlink_use(cache, index);
			link_as_newest(cache, index);
			return &cache->entries[index];
		}
	}
	return add_pattern(cache, pattern, hash, work);
}

/* A search that asks the host. */
typedef struct AskingSearch
{
	Work *work;
	PCRE2_SIZE place; /* where the last callout was */
} AskingSearch;

/* Ends the search if the host wants it to end. */
static int
callout(pcre2_callout_block *block, void *context)
{
	AskingSearch *search = context;
	PCRE2_SIZE place = block->current_position;
	PCRE2_SIZE distance =
		place > search->place ? place - search->place : search->place - place;

	search->place = place;
	return work_goes_on(search->work, CALLOUT_COST + distance)
			   ? 0
			   : PCRE2_ERROR_CALLOUT;
}

/*
 * Matches with PCRE2.  JIT code that runs out of its stack gets a larger one,
 * which is kept; if that does not do, PCRE2 interprets the pattern.
 */
static int
run_pcre2(MatchCache *cache, const pcre2_code *code, uint32_t limit)
{
	const UnitBuffer *text = &cache->text;
	int result;

	(void) pcre2_set_match_limit(cache->match, limit);
	result = pcre2_match(code, text->units, text->length, 0, 0, cache->data,
						 cache->match);
	if (result == PCRE2_ERROR_JIT_STACKLIMIT && cache->stack == NULL)
	{
		cache->stack = pcre2_jit_stack_create(JIT_STACK_START, JIT_STACK_MAX,
											  cache->general);
		if (cache->stack != NULL)
		{
			pcre2_jit_stack_assign(cache->match, NULL, cache->stack);
			result = pcre2_match(code, text->units, text->length, 0, 0,
								 cache->data, cache->match);
		}
	}
	return result;
}

/*
 * The limit for a search without callouts; 0 if there must not be one.  The
 * limit counts anew at each place of the text, and from one count to the next
 * each unit of the text and each part of the code may be gone through.
 */
static uint32_t
short_limit(const CacheEntry *entry, size_t length)
{
	size_t places = length + 1;
	size_t limit;

	if (entry->code_size == 0 || places > SHORT_SEARCH / SHORT_LIMIT)
		return 0;
	limit = SHORT_SEARCH / places / (places + entry->code_size);
	return limit < SHORT_LIMIT   ? 0
		   : limit > MATCH_LIMIT ? MATCH_LIMIT
								 : (uint32_t) limit;
}

static MatchResult
search_pcre2(MatchCache *cache, CacheEntry *entry, Work *work)
{
	const UnitBuffer *text = &cache->text;
	AskingSearch search = {work, 0};
	uint32_t limit = short_limit(entry, text->length);
	int result = PCRE2_ERROR_MATCHLIMIT;

	if (limit > 0)
		result = run_pcre2(cache, entry->code, limit);
	if ((result == PCRE2_ERROR_MATCHLIMIT && limit < MATCH_LIMIT) ||
		result == PCRE2_ERROR_JIT_STACKLIMIT)
	{
		if (entry->asking_code == NULL && entry->program == NULL &&
			!compile_asking(cache, entry, work))
			return MATCH_UNDEFINED;
		if (entry->asking_code == NULL)
			return entry->program == NULL
					   ? MATCH_UNDEFINED
					   : backtrack_search(entry->program, text->units,
										  text->length, cache->source, work);
		(void) pcre2_set_callout(cache->match, callout, &search);
		result = run_pcre2(cache, entry->asking_code, MATCH_LIMIT);
		if (result == PCRE2_ERROR_JIT_STACKLIMIT)
			result = pcre2_match(entry->asking_code, text->units, text->length,
								 0, PCRE2_NO_JIT, cache->data, cache->match);
		(void) pcre2_set_callout(cache->match, NULL, NULL);
	}
	if (result >= 0)
		return MATCH_YES;
	return result == PCRE2_ERROR_NOMATCH ? MATCH_NO : MATCH_UNDEFINED;
}

MatchResult
match_search(MatchCache *cache, EngineText text, EngineText pattern, Work *work)
{
	CacheEntry *entry;

	/* so many bytes are too many units, too, and not worth a place */
	if (pattern.length / 3 > MATCH_MAX_PATTERN)
		return MATCH_UNDEFINED;
	if (!work_goes_on(work, SEARCH_COST))
		return MATCH_UNDEFINED;
	entry = find_pattern(cache, pattern, work);
	if (entry == NULL || (entry->code == NULL && entry->program == NULL) ||
		!buffer_set_text(&cache->text, text, work))
		return MATCH_UNDEFINED;
	if (entry->code != NULL)
		return search_pcre2(cache, entry, work);
	return backtrack_search(entry->program, cache->text.units,
							cache->text.length, cache->source, work);
}
