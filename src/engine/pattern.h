/*
 * pattern.h
 *		JavaScript's regular expressions without flags, parsed (protocol 7).
 *
 * The tree is what match.c writes as a pattern of PCRE2, and what
 * backtrack.c runs where PCRE2 cannot do what JavaScript does.
 */
#ifndef ABSMARTLY_ENGINE_PATTERN_H
#define ABSMARTLY_ENGINE_PATTERN_H

#include "arena.h"
#include "engine.h"

/* Groups and classes nested deeper than this are refused. */
#define PATTERN_MAX_DEPTH 200

/* No upper limit, of a quantifier or of what a node may match */
#define PATTERN_UNBOUNDED UINT32_MAX

typedef enum PatternKind
{
	PATTERN_EMPTY = 0,
	PATTERN_UNIT, /* one UTF-16 code unit */
	PATTERN_CLASS,
	PATTERN_START, /* ^ */
	PATTERN_END, /* $ */
	PATTERN_EDGE, /* \b */
	PATTERN_NO_EDGE, /* \B */
	PATTERN_REFERENCE, /* to a group */
	PATTERN_GROUP, /* a capturing one */
	PATTERN_REPEAT,
	PATTERN_LOOK, /* ahead or behind */
	PATTERN_SEQUENCE,
	PATTERN_ALTERNATIVES
} PatternKind;

/* A range of code units, both ends included */
typedef struct PatternRange
{
	struct PatternRange *next;
	uint16_t low;
	uint16_t high;
} PatternRange;

typedef struct PatternNode
{
	PatternKind kind;
	uint32_t min_width; /* code units that a match has at least */
	uint32_t max_width; /* and at most; PATTERN_UNBOUNDED: any number */
	struct PatternNode *next; /* in its sequence or list of alternatives */
	struct PatternNode *child; /* the only or first one */
	union
	{
		uint16_t unit;
		uint32_t group; /* of PATTERN_GROUP and PATTERN_REFERENCE, from 1 */
		struct
		{
			const PatternRange *ranges;
			bool negated;
		} set;
		struct
		{
			uint32_t min;
			uint32_t max;
			uint32_t first_group; /* the groups inside, as [first, end) */
			uint32_t end_group;
			bool lazy;
		} repeat;
		struct
		{
			bool behind;
			bool negative;
		} look;
	} u;
} PatternNode;

typedef struct PatternTree
{
	const PatternNode *root;
	uint32_t groups; /* number of capturing groups */
	const bool *referenced; /* bool[groups + 1]: some reference names it */
} PatternTree;

/*
 * Parses a pattern as JavaScript does, into the arena: ENGINE_OK,
 * ENGINE_MALFORMED (JavaScript rejects it), ENGINE_TOO_DEEP or
 * ENGINE_NO_MEMORY.
 */
extern EngineStatus pattern_parse(const uint16_t *units, size_t length,
								  Arena *arena, PatternTree *tree);

#endif /* ABSMARTLY_ENGINE_PATTERN_H */
