/*
 * file.h
 *		What is kept of a database in files of the data directory.
 *
 * For each database absmartly/<oid> below the data directory is the last known
 * good answer, with what it was fetched for, and absmartly/<oid>.endpoints says
 * which endpoints were this server's.  Both are written atomically, with a
 * checksum.
 */
#ifndef ABSMARTLY_DATA_FILE_H
#define ABSMARTLY_DATA_FILE_H

#include "postgres.h"

#include "data/shared.h"

typedef struct DataFile
{
	DataTarget target;
	TimestampTz fetched_at;
	char *text; /* palloc'd, NUL-terminated */
	size_t length;
} DataFile;

/* Writes or replaces the file.  Failure is reported at WARNING, not raised. */
extern bool file_write(Oid database, const DataTarget *target,
					   TimestampTz fetched_at, const char *text, size_t length);

/*
 * Reads the file.  NULL if there is none, or if it is damaged (WARNING).  The
 * result is in the current memory context.
 */
extern DataFile *file_read(Oid database);

/* Changes whenever the file is replaced; 0: there is none. */
extern uint64 file_stamp(Oid database);

/* Which endpoints were this server's (events/endpoints.h). */
typedef struct FileEndpoints
{
	uint64 own[SHARED_MAX_ENDPOINTS]; /* hashes; the last one was in force
									   * last; 0: unused */
	/* what commands were about to give the database, the newest last */
	uint64 announced[SHARED_MAX_ENDPOINTS];
	bool reset_announced; /* or to let it have that of the configuration */
	bool adopted; /* what waited for the others was adopted by the last one */
	char unused[6];
} FileEndpoints;

/* Writes or replaces that file.  Failure is reported at WARNING, not raised. */
extern bool file_write_endpoints(Oid database, const FileEndpoints *endpoints);

/* Reads it; false, and all is zero, if there is none, or a damaged one. */
extern bool file_read_endpoints(Oid database, FileEndpoints *endpoints);

/* Removes a database's files; nothing happens if there are none. */
extern void file_remove(Oid database);

/* Calls visit for each database that has a file, perhaps more than once. */
extern void file_visit(void (*visit)(Oid database, void *context),
					   void *context);

#endif /* ABSMARTLY_DATA_FILE_H */
