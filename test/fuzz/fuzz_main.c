/*
 * fuzz_main.c
 *		Runs a fuzz target over files and folders, without libFuzzer.
 *
 * Each argument is a file, or a folder whose files are read.  Good for seeds,
 * for inputs that once failed, and for other fuzzers.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "fuzz.h"

static unsigned long inputs = 0;

/* Runs one file; false if it cannot be read. */
static int
run_file(const char *path, size_t size)
{
	uint8_t *data = malloc(size == 0 ? 1 : size);
	FILE *file = fopen(path, "rb");
	int done = 0;

	if (data != NULL && file != NULL && fread(data, 1, size, file) == size)
	{
		LLVMFuzzerTestOneInput(data, size);
		inputs++;
		done = 1;
	}
	if (file != NULL)
		fclose(file);
	free(data);
	return done;
}

/* Runs a file, or all files of a folder. */
static int
run_path(const char *path)
{
	struct stat status;
	struct dirent *entry;
	DIR *folder;
	int done = 1;

	if (stat(path, &status) != 0)
		return 0;
	if (!S_ISDIR(status.st_mode))
		return run_file(path, (size_t) status.st_size);
	folder = opendir(path);
	if (folder == NULL)
		return 0;
	while ((entry = readdir(folder)) != NULL)
	{
		char name[4096];

		if (entry->d_name[0] == '.')
			continue;
		snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
		done = run_path(name) && done;
	}
	closedir(folder);
	return done;
}

int
main(int argc, char **argv)
{
	int done = 1;

	for (int i = 1; i < argc; i++)
	{
		if (!run_path(argv[i]))
		{
			fprintf(stderr, "%s: cannot read \"%s\"\n", argv[0], argv[i]);
			done = 0;
		}
	}
	printf("%lu inputs\n", inputs);
	return done ? EXIT_SUCCESS : EXIT_FAILURE;
}
