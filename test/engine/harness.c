/*
 * harness.c
 *		Test programs that speak TAP, in as few words as possible.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "harness.h"

static int tests = 0;
static int failures = 0;

/* Prints one line of words; a line break in them would end the TAP line. */
static void
print_words(const char *format, va_list arguments)
{
	char words[1024];

	vsnprintf(words, sizeof(words), format, arguments);
	for (char *c = words; *c != '\0'; c++)
		putchar(*c == '\n' || *c == '\r' || *c == '#' ? ' ' : *c);
	putchar('\n');
}

void
tap_ok(bool ok, const char *format, ...)
{
	va_list arguments;

	tests++;
	if (!ok)
		failures++;
	printf("%sok %d - ", ok ? "" : "not ", tests);
	va_start(arguments, format);
	print_words(format, arguments);
	va_end(arguments);
	fflush(stdout);
}

void
tap_skip(const char *why, ...)
{
	va_list arguments;

	tests++;
	printf("ok %d # SKIP ", tests);
	va_start(arguments, why);
	print_words(why, arguments);
	va_end(arguments);
	fflush(stdout);
}

void
tap_diag(const char *format, ...)
{
	va_list arguments;

	printf("# ");
	va_start(arguments, format);
	print_words(format, arguments);
	va_end(arguments);
	fflush(stdout);
}

int
tap_done(void)
{
	printf("1..%d\n", tests);
	if (failures > 0)
		tap_diag("%d of %d tests failed", failures, tests);
	return failures > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

char *
tap_read_file(const char *dir, const char *name, size_t *length)
{
	char path[4096];
	FILE *file;
	char *content = NULL;
	size_t used = 0;
	size_t size = 0;

	if (dir == NULL)
		return NULL;
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	file = fopen(path, "rb");
	if (file == NULL)
		return NULL;
	for (;;)
	{
		size_t got;

		if (size - used < 2)
		{
			char *larger;

			size = size == 0 ? 65536 : 2 * size;
			larger = realloc(content, size);
			if (larger == NULL)
				abort();
			content = larger;
		}
		got = fread(content + used, 1, size - used - 1, file);
		if (got == 0)
			break;
		used += got;
	}
	fclose(file);
	content[used] = '\0';
	*length = used;
	return content;
}
