/*
 * backtrack.h
 *		Matching by plain backtracking, exactly as JavaScript describes it.
 *
 * For the few patterns that PCRE2 cannot match in JavaScript's way: lookbehind
 * of variable length, references to groups that a repetition resets, and very
 * large quantifiers.  It is slower, by far, but bounded.
 */
#ifndef ABSMARTLY_ENGINE_BACKTRACK_H
#define ABSMARTLY_ENGINE_BACKTRACK_H

#include "arena.h"
#include "match.h"
#include "pattern.h"

/* Bounds of one search: steps, and what is kept to go back to */
#define BACKTRACK_MAX_STEPS 10000000
#define BACKTRACK_MAX_TRAIL (512 * 1024) /* entries of 8 bytes */

typedef struct BacktrackProgram BacktrackProgram;

/* The program refers to the tree.  NULL when the arena has no memory. */
extern const BacktrackProgram *backtrack_compile(const PatternTree *tree,
												 Arena *arena);

/*
 * Searches; working memory comes from source and is given back.
 * MATCH_UNDEFINED if a bound was hit, there is no memory, or the work was
 * stopped.
 */
extern MatchResult backtrack_search(const BacktrackProgram *program,
									const uint16_t *text, size_t length,
									const ArenaSource *source, Work *work);

#endif /* ABSMARTLY_ENGINE_BACKTRACK_H */
