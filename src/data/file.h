/*
 * file.h
 *		The last known good answer, kept in a file of the data directory.
 *
 * One file for each database, absmartly/<oid> below the data directory,
 * written atomically, with what it was fetched for and a checksum.
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

/* Removes the file; nothing happens if there is none. */
extern void file_remove(Oid database);

/* Calls visit for each database that has a file. */
extern void file_visit(void (*visit)(Oid database, void *context),
					   void *context);

#endif /* ABSMARTLY_DATA_FILE_H */
