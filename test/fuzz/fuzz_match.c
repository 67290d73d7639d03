/*
 * fuzz_match.c
 *		Fuzz target: a regular expression is searched in a text.
 *
 * The input is the pattern, a line feed, and the text; what is not UTF-8 is
 * not tried, since the engine never sees it.
 */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "json.h"
#include "match.h"

/* Whether bytes are UTF-8. */
static bool
is_utf8(const uint8_t *data, size_t size)
{
	for (size_t i = 0; i < size;)
	{
		size_t length = data[i] < 0x80   ? 1
						: data[i] < 0xc2 ? 0
						: data[i] < 0xe0 ? 2
						: data[i] < 0xf0 ? 3
						: data[i] < 0xf5 ? 4
										 : 0;

		if (length == 0 || size - i < length)
			return false;
		for (size_t j = 1; j < length; j++)
		{
			if ((data[i + j] & 0xc0) != 0x80)
				return false;
		}
		if ((data[i] == 0xe0 && data[i + 1] < 0xa0) ||
			(data[i] == 0xed && data[i + 1] > 0x9f) ||
			(data[i] == 0xf0 && data[i + 1] < 0x90) ||
			(data[i] == 0xf4 && data[i + 1] > 0x8f))
			return false;
		i += length;
	}
	return true;
}

static bool
is_interrupted(void *context)
{
	(void) context;
	return true;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *line_feed = size == 0 ? NULL : memchr(data, '\n', size);
	EngineText pattern = {(const char *) data, size};
	EngineText text = {"", 0};
	MatchCache *cache;
	MatchResult first;
	Work work = {.left = 0};
	Work interrupted;

	if (!is_utf8(data, size))
		return 0;
	if (line_feed != NULL)
	{
		pattern.length = (size_t) (line_feed - data);
		text.data = (const char *) line_feed + 1;
		text.length = size - pattern.length - 1;
	}
	cache = match_cache_create(&arena_malloc_source);
	if (cache == NULL)
		abort();
	first = match_search(cache, text, pattern, &work);

	/* the pattern, now in the cache, must give the same answer */
	if (match_search(cache, text, pattern, &work) != first)
		abort();

	/* so it must after it was interrupted, with code that asks */
	work_begin(&interrupted, is_interrupted, NULL);
	interrupted.granted = interrupted.left = size;
	if (match_search(cache, text, pattern, &interrupted) != first &&
		!interrupted.stopped)
		abort();
	if (match_search(cache, text, pattern, &work) != first)
		abort();
	match_cache_destroy(cache);
	return 0;
}
