/*
 * progress.h
 *		How far backfills have got (DESIGN 6.4).
 *
 * A backfill is known by its role and its name.  Each of its transactions
 * leaves a record in the parked heap; what is finished keeps its last one, so
 * that it is not done again unawares.
 */
#ifndef ABSMARTLY_EVENTS_PROGRESS_H
#define ABSMARTLY_EVENTS_PROGRESS_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "storage/lock.h"

/* Which backfill it is: names of any length count in full. */
typedef struct ProgressKey
{
	uint8 bytes[16];
} ProgressKey;

typedef struct BackfillProgress
{
	ProgressKey key; /* of role and name */
	Oid role;
	const char *name;
	const char *source; /* what it walks over */
	const char *position; /* last key, as text; NULL: there is none yet */
	int64 rows;
	bool finished;
	TimestampTz started_at;
	TimestampTz changed_at; /* when its last transaction ended */
} BackfillProgress;

/* Works out the key. */
extern void progress_identify(BackfillProgress *progress, Oid role,
							  const char *name);

/* Bytes of the note on the records of a backfill that hold its events. */
#define PROGRESS_NOTE_SIZE 192

/* Writes that note, and says whether a note is that of a backfill. */
extern void progress_note(const BackfillProgress *progress,
						  char note[PROGRESS_NOTE_SIZE]);
extern bool progress_noted(const ProgressKey *key, const char *note,
						   size_t length);

/* The lock that a backfill has while it runs; SQL can't take one like it. */
extern void progress_lock(const ProgressKey *key, LOCKTAG *lock);

/* Records how far it is, at the end of the transaction that got it there. */
extern void progress_write(const BackfillProgress *progress,
						   TimestampTz created);

/*
 * All backfills as the active snapshot sees them, or the one of a key: NULL if
 * there is none.
 */
extern List *progress_list(void);
extern BackfillProgress *progress_find(const ProgressKey *key);

/*
 * Forgets how far a backfill was before it got there; NULL: all of it.  Takes
 * effect at once.
 */
extern void progress_forget(const ProgressKey *key,
							const BackfillProgress *before);

#endif /* ABSMARTLY_EVENTS_PROGRESS_H */
