/*
 * arena.c
 *		A bump allocator over chunks that its host gives.
 *
 * Chunks start small, because most arenas hold one compiled expression or
 * one error message, and double, because the others hold a whole answer of
 * the collector.
 */
#include "arena.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARENA_ALIGNMENT 8
#define ARENA_FIRST_CHUNK ((size_t) 8 * 1024)
#define ARENA_LAST_CHUNK ((size_t) 1024 * 1024)

struct ArenaChunk
{
	ArenaChunk *older;
	size_t size; /* of the whole chunk, this header included */
};

/* The header's size, rounded so that what follows is aligned. */
#define ARENA_HEADER                              \
	((sizeof(ArenaChunk) + ARENA_ALIGNMENT - 1) & \
	 ~(size_t) (ARENA_ALIGNMENT - 1))

void
arena_init(Arena *arena, const ArenaSource *source)
{
	arena->source = source;
	arena->chunks = NULL;
	arena->next = NULL;
	arena->end = NULL;
	arena->failed = false;
}

bool
arena_interrupted(Arena *arena)
{
	if (arena->source->interrupted != NULL &&
		arena->source->interrupted(arena->source->context))
		arena->failed = true;
	return arena->failed;
}

/*
 * Zeroes new memory.  Where it is much the system has to find it first, which
 * takes long enough to ask the host now and then; NULL if it says no.
 */
static void *
clear(Arena *arena, char *memory, size_t size)
{
	size_t done = 0;

	while (size - done > ARENA_LAST_CHUNK)
	{
		memset(memory + done, 0, ARENA_LAST_CHUNK);
		done += ARENA_LAST_CHUNK;
		if (arena_interrupted(arena))
			return NULL;
	}
	memset(memory + done, 0, size - done);
	return memory;
}

/*
 * Serves what does not fit into the newest chunk: a large request gets a
 * chunk of its own, put behind the newest one so that its rest stays usable.
 */
static void *
arena_alloc_slow(Arena *arena, size_t size)
{
	size_t chunk_size = ARENA_FIRST_CHUNK;
	bool separate = false;
	ArenaChunk *chunk;

	if (arena_interrupted(arena))
		return NULL;
	if (arena->chunks != NULL)
	{
		chunk_size = arena->chunks->size * 2;
		if (chunk_size < ARENA_FIRST_CHUNK)
			chunk_size = ARENA_FIRST_CHUNK;
		if (chunk_size > ARENA_LAST_CHUNK)
			chunk_size = ARENA_LAST_CHUNK;
	}
	if (size > chunk_size / 4)
	{
		separate = arena->chunks != NULL;
		if (size > SIZE_MAX - ARENA_HEADER)
		{
			arena->failed = true;
			return NULL;
		}
		if (separate || size > chunk_size - ARENA_HEADER)
			chunk_size = size + ARENA_HEADER;
	}

	chunk = arena->source->alloc(arena->source->context, chunk_size);
	if (chunk == NULL)
	{
		arena->failed = true;
		return NULL;
	}
	chunk->size = chunk_size;
	if (separate)
	{
		chunk->older = arena->chunks->older;
		arena->chunks->older = chunk;
	}
	else
	{
		chunk->older = arena->chunks;
		arena->chunks = chunk;
		arena->next = (char *) chunk + ARENA_HEADER + size;
		arena->end = (char *) chunk + chunk_size;
	}
	return clear(arena, (char *) chunk + ARENA_HEADER, size);
}

void *
arena_alloc(Arena *arena, size_t size)
{
	void *result;

	if (size > SIZE_MAX - ARENA_ALIGNMENT)
	{
		arena->failed = true;
		return NULL;
	}
	size = (size + ARENA_ALIGNMENT - 1) & ~(size_t) (ARENA_ALIGNMENT - 1);
	if (arena->next == NULL || size > (size_t) (arena->end - arena->next))
		return arena_alloc_slow(arena, size);
	result = arena->next;
	arena->next += size;
	return memset(result, 0, size);
}

char *
arena_strdup(Arena *arena, const char *text, size_t length)
{
	char *copy;

	if (length == SIZE_MAX)
	{
		arena->failed = true;
		return NULL;
	}
	copy = arena_alloc(arena, length + 1);
	if (copy != NULL && length > 0)
		memcpy(copy, text, length);
	return copy;
}

char *
arena_printf(Arena *arena, const char *format, ...)
{
	va_list arguments;
	char *text;
	int length;

	va_start(arguments, format);
	length = vsnprintf(NULL, 0, format, arguments);
	va_end(arguments);
	if (length < 0)
		return NULL;

	text = arena_alloc(arena, (size_t) length + 1);
	if (text == NULL)
		return NULL;
	va_start(arguments, format);
	(void) vsnprintf(text, (size_t) length + 1, format, arguments);
	va_end(arguments);
	return text;
}

void
arena_release(Arena *arena)
{
	ArenaChunk *chunk = arena->chunks;

	while (chunk != NULL)
	{
		ArenaChunk *older = chunk->older;

		arena->source->free(arena->source->context, chunk);
		chunk = older;
	}
	arena_init(arena, arena->source);
}

static void *
malloc_alloc(void *context, size_t size)
{
	(void) context;
	return malloc(size);
}

static void
malloc_free(void *context, void *chunk)
{
	(void) context;
	free(chunk);
}

const ArenaSource arena_malloc_source = {malloc_alloc, malloc_free, NULL, NULL};
