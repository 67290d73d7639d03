/*
 * match.h
 *		The match operator: JavaScript regular expressions on PCRE2
 *		(protocol 7).
 *
 * JavaScript's expressions without flags work on UTF-16 code units, so PCRE2's
 * 16-bit library is used, without its UTF mode: "^..$" matches one U+1F600.
 *
 * Patterns are rewritten from JavaScript's syntax to PCRE2's, compiled (JIT
 * where it works) and kept in a bounded cache, one for each process.
 */
#ifndef ABSMARTLY_ENGINE_MATCH_H
#define ABSMARTLY_ENGINE_MATCH_H

#include "arena.h"
#include "engine.h"
#include "work.h"

typedef enum MatchResult
{
	MATCH_NO = 0,
	MATCH_YES,
	MATCH_UNDEFINED /* invalid pattern, or a limit was hit */
} MatchResult;

/* Bounds on the cost of a pattern (DESIGN 7.2). */
#define MATCH_MAX_PATTERN 8192 /* UTF-16 code units */
#define MATCH_CACHE_SIZE 128 /* patterns */

typedef struct MatchCache MatchCache;

/* NULL when there is no memory.  Memory comes from the source only. */
extern MatchCache *match_cache_create(const ArenaSource *source);
extern void match_cache_destroy(MatchCache *cache);

/*
 * Whether pattern is found in text; MATCH_UNDEFINED also without memory, and
 * if the work was stopped.
 */
extern MatchResult match_search(MatchCache *cache, EngineText text,
								EngineText pattern, Work *work);

#endif /* ABSMARTLY_ENGINE_MATCH_H */
