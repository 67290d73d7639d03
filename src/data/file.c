/*
 * file.c
 *		What is kept of a database in files of the data directory: the last
 *		known good answer, and which endpoints were this server's.
 *
 * The file of the answer starts with a header of fixed size; the target's
 * strings and the answer follow as they are.  The files belong to the data
 * directory, so that base backups and pg_rewind carry them along.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file_perm.h"
#include "miscadmin.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#include "data/file.h"

#define FILE_DIRECTORY "absmartly"
#define FILE_MAGIC 0x41425344 /* "ABSD" */
#define FILE_VERSION 1
#define ENDPOINTS_SUFFIX ".endpoints"
#define ENDPOINTS_MAGIC 0x41425345
#define ENDPOINTS_VERSION 1

/* a larger one was not written by us: answers are bounded to 64 MB */
#define FILE_MAX_TEXT ((uint64) 256 * 1024 * 1024)

typedef struct FileHeader
{
	uint32 magic;
	uint32 version;
	pg_crc32c crc; /* of the rest of the header and the text */
	int64 fetched_at;
	uint64 length; /* of the text, which follows the header */
	DataTarget target;
} FileHeader;

typedef struct EndpointsContent
{
	uint32 magic;
	uint32 version;
	pg_crc32c crc; /* of the endpoints */
	FileEndpoints endpoints;
} EndpointsContent;

static void
file_path(char *path, Oid database, const char *suffix)
{
	snprintf(path, MAXPGPATH, "%s/%u%s", FILE_DIRECTORY, database, suffix);
}

static pg_crc32c
file_crc(const FileHeader *header, const char *text)
{
	size_t start = offsetof(FileHeader, fetched_at);
	pg_crc32c crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, (const char *) header + start, sizeof(*header) - start);
	COMP_CRC32C(crc, text, header->length);
	FIN_CRC32C(crc);
	return crc;
}

/* write(2) until all is written; errno says why it failed */
static bool
write_all(int file, const char *data, size_t length)
{
	while (length > 0)
	{
		ssize_t written = write(file, data, length);

		if (written < 0 && errno == EINTR)
			continue;
		if (written <= 0)
		{
			if (written == 0)
				errno = ENOSPC;
			return false;
		}
		data += written;
		length -= written;
	}
	return true;
}

static bool
read_all(int file, char *data, size_t length)
{
	while (length > 0)
	{
		ssize_t got = read(file, data, length);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return false;
		data += got;
		length -= got;
	}
	return true;
}

/*
 * Writes or replaces a file, of a head and what follows it.  Failure is
 * reported at WARNING, with what it means.
 */
static bool
replace_file(Oid database, const char *suffix, const void *head,
			 size_t head_length, const char *text, size_t length,
			 const char *meaning)
{
	char path[MAXPGPATH];
	char temporary[MAXPGPATH];
	char temporary_suffix[32];
	int file;
	bool written;

	snprintf(temporary_suffix, sizeof(temporary_suffix), ".tmp%d", MyProcPid);
	file_path(path, database, suffix);
	file_path(temporary, database, temporary_suffix);

	if (MakePGDirectory(FILE_DIRECTORY) < 0 && errno != EEXIST)
	{
		ereport(WARNING, (errcode_for_file_access(),
						  errmsg("could not create directory \"%s\": %m",
								 FILE_DIRECTORY)));
		return false;
	}

	file =
		OpenTransientFile(temporary, O_CREAT | O_TRUNC | O_WRONLY | PG_BINARY);
	written = file >= 0 && write_all(file, head, head_length) &&
			  write_all(file, text, length);
	if (!written)
		ereport(WARNING, (errcode_for_file_access(),
						  errmsg("could not write file \"%s\": %m", temporary),
						  errdetail_internal("%s", meaning)));
	if (file >= 0)
		CloseTransientFile(file);

	/* durable_rename() syncs the file and the directory */
	if (!written || durable_rename(temporary, path, WARNING) != 0)
	{
		unlink(temporary);
		return false;
	}
	return true;
}

bool
file_write(Oid database, const DataTarget *target, TimestampTz fetched_at,
		   const char *text, size_t length)
{
	FileHeader *header = palloc0(sizeof(FileHeader));
	bool written;

	header->magic = FILE_MAGIC;
	header->version = FILE_VERSION;
	header->fetched_at = fetched_at;
	header->length = length;
	strlcpy(header->target.endpoint, target->endpoint, SHARED_MAX_ENDPOINT);
	strlcpy(header->target.application, target->application, SHARED_MAX_NAME);
	strlcpy(header->target.environment, target->environment, SHARED_MAX_NAME);
	strlcpy(header->target.application_version, target->application_version,
			SHARED_MAX_NAME);
	header->crc = file_crc(header, text);
	written = replace_file(database, "", header, sizeof(*header), text, length,
						   "The experiments are in force, but a restart would "
						   "begin with older ones.");
	pfree(header);
	return written;
}

DataFile *
file_read(Oid database)
{
	FileHeader header;
	DataFile *result = NULL;
	char path[MAXPGPATH];
	int file;
	bool sound = false;

	file_path(path, database, "");
	file = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	if (file < 0)
	{
		if (errno != ENOENT)
			ereport(WARNING, (errcode_for_file_access(),
							  errmsg("could not open file \"%s\": %m", path)));
		return NULL;
	}

	if (read_all(file, (char *) &header, sizeof(header)) &&
		header.magic == FILE_MAGIC && header.version == FILE_VERSION &&
		header.length <= FILE_MAX_TEXT)
	{
		result = palloc0(sizeof(DataFile));
		result->text =
			MemoryContextAllocHuge(CurrentMemoryContext, header.length + 1);
		sound = read_all(file, result->text, header.length) &&
				file_crc(&header, result->text) == header.crc;
	}
	CloseTransientFile(file);

	if (!sound)
	{
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("file \"%s\" is not usable", path),
				 errdetail("It is damaged, or of another version of "
						   "absmartly. It will be replaced at the next "
						   "fetch.")));
		return NULL;
	}

	result->text[header.length] = '\0';
	result->length = header.length;
	result->target = header.target;
	result->fetched_at = header.fetched_at;
	return result;
}

uint64
file_stamp(Oid database)
{
	char path[MAXPGPATH];
	struct stat status;

	file_path(path, database, "");
	if (stat(path, &status) != 0)
		return 0;
	/* a replaced file has another inode or another time; never 0 */
	return ((uint64) status.st_ino << 40 ^
			(uint64) status.st_mtim.tv_sec * 1000000000 ^
			(uint64) status.st_mtim.tv_nsec) |
		   1;
}

static pg_crc32c
endpoints_crc(const FileEndpoints *endpoints)
{
	pg_crc32c crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, endpoints, sizeof(*endpoints));
	FIN_CRC32C(crc);
	return crc;
}

bool
file_write_endpoints(Oid database, const FileEndpoints *endpoints)
{
	EndpointsContent content;

	memset(&content, 0, sizeof(content));
	content.magic = ENDPOINTS_MAGIC;
	content.version = ENDPOINTS_VERSION;
	content.crc = endpoints_crc(endpoints);
	content.endpoints = *endpoints;
	return replace_file(database, ENDPOINTS_SUFFIX, &content, sizeof(content),
						"", 0,
						"After a crash, events that wait may be taken for "
						"another server's.");
}

bool
file_read_endpoints(Oid database, FileEndpoints *endpoints)
{
	EndpointsContent content;
	char path[MAXPGPATH];
	bool sound;
	int file;

	memset(endpoints, 0, sizeof(*endpoints));
	file_path(path, database, ENDPOINTS_SUFFIX);
	file = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	if (file < 0)
	{
		if (errno != ENOENT)
			ereport(WARNING, (errcode_for_file_access(),
							  errmsg("could not open file \"%s\": %m", path)));
		return false;
	}
	sound = read_all(file, (char *) &content, sizeof(content)) &&
			content.magic == ENDPOINTS_MAGIC &&
			content.version == ENDPOINTS_VERSION &&
			content.crc == endpoints_crc(&content.endpoints);
	CloseTransientFile(file);
	if (!sound)
	{
		ereport(WARNING, (errcode(ERRCODE_DATA_CORRUPTED),
						  errmsg("file \"%s\" is not usable", path),
						  errdetail("It is damaged, or of another version of "
									"absmartly. It is replaced.")));
		return false;
	}
	*endpoints = content.endpoints;
	return true;
}

void
file_remove(Oid database)
{
	static const char *const suffixes[] = {"", ENDPOINTS_SUFFIX};

	for (int i = 0; i < (int) lengthof(suffixes); i++)
	{
		char path[MAXPGPATH];

		file_path(path, database, suffixes[i]);
		if (unlink(path) != 0 && errno != ENOENT)
			ereport(WARNING,
					(errcode_for_file_access(),
					 errmsg("could not remove file \"%s\": %m", path)));
	}
}

void
file_visit(void (*visit)(Oid database, void *context), void *context)
{
	DIR *directory = AllocateDir(FILE_DIRECTORY);
	struct dirent *entry;

	if (directory == NULL)
		return;
	while ((entry = ReadDirExtended(directory, FILE_DIRECTORY, LOG)) != NULL)
	{
		char *end;
		unsigned long number = strtoul(entry->d_name, &end, 10);

		if (end == entry->d_name || number == 0 || number > PG_UINT32_MAX)
			continue;
		if (*end == '\0' || strcmp(end, ENDPOINTS_SUFFIX) == 0)
			visit((Oid) number, context);
		else if (strncmp(end, ".tmp", 4) == 0)
		{
			/* left by a process that was killed, unless it is at it */
			char path[MAXPGPATH];
			long pid = strtol(end + 4, NULL, 10);

			snprintf(path, sizeof(path), "%s/%s", FILE_DIRECTORY,
					 entry->d_name);
			if (pid <= 0 || kill((pid_t) pid, 0) != 0)
				unlink(path);
		}
	}
	FreeDir(directory);
}
