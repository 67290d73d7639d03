/*
 * arena.h
 *		Memory for the engine: a bump allocator over chunks from its host.
 *
 * The engine never allocates anywhere else, never frees single objects and
 * never raises: when the host has no memory left, arena_alloc() returns NULL
 * and the arena remembers it, so that a caller may build a whole structure
 * and look at arena->failed once.
 */
#ifndef ABSMARTLY_ENGINE_ARENA_H
#define ABSMARTLY_ENGINE_ARENA_H

#include <stdbool.h>
#include <stddef.h>

/*
 * Where an arena's chunks come from.  alloc() returns NULL when it can't.
 * interrupted() is asked now and then during long work: if it says true, the
 * work ends as if there were no memory left.  NULL: never.
 */
typedef struct ArenaSource
{
	void *(*alloc)(void *context, size_t size);
	void (*free)(void *context, void *chunk);
	void *context;
	bool (*interrupted)(void *context);
} ArenaSource;

typedef struct ArenaChunk ArenaChunk;

typedef struct Arena
{
	const ArenaSource *source;
	ArenaChunk *chunks; /* newest first */
	char *next; /* first free byte of the newest chunk */
	char *end;
	bool failed; /* an allocation could not be served */
} Arena;

extern void arena_init(Arena *arena, const ArenaSource *source);

/* size bytes, zeroed, aligned to 8; NULL when the host has no memory left */
extern void *arena_alloc(Arena *arena, size_t size);

/* Whether the host wants the work to end; the arena has failed then. */
extern bool arena_interrupted(Arena *arena);

/* a copy of text with a terminating NUL */
extern char *arena_strdup(Arena *arena, const char *text, size_t length);

/* a formatted string in the arena; NULL when there is no memory */
extern char *arena_printf(Arena *arena, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* gives all chunks back to the host */
extern void arena_release(Arena *arena);

/* malloc() and free(): for tests, the fuzzers and other plain programs */
extern const ArenaSource arena_malloc_source;

#endif /* ABSMARTLY_ENGINE_ARENA_H */
