/*
 * version.h
 *		Versions of the experiments: which one a statement sees, and how long
 *		its memory stays (DESIGN 5).
 */
#ifndef ABSMARTLY_DATA_VERSION_H
#define ABSMARTLY_DATA_VERSION_H

#include "postgres.h"

#include "data/shared.h"
#include "engine/snapshot.h"

typedef enum DataSource
{
	DATA_FETCHED, /* by the worker */
	DATA_FILE, /* the last known good, read at start */
	DATA_SET /* absmartly_set_context_data() */
} DataSource;

/*
 * A version of the data.  The image follows at the next multiple of 16.  In
 * the area of shared memory, or, without preloading, in the backend's own.
 */
typedef struct DataVersion
{
	uint32 magic; /* VERSION_MAGIC while it may be read */
	pg_atomic_uint32 pins; /* processes that hold it */
	dsa_pointer next; /* of the retired ones */
	uint64 serial;
	uint64 generation;
	size_t size; /* with the image */
	DataTarget target; /* what it was fetched for */
} DataVersion;

#define VERSION_MAGIC 0x41627631

#define DATA_IMAGE_OFFSET TYPEALIGN(16, sizeof(DataVersion))

#ifdef USE_ASSERT_CHECKING
/* Whether this process keeps the version from being freed. */
extern bool version_is_held(const DataVersion *version);
#endif

/* The experiments of a version that this process holds. */
static inline const SnapImage *
data_version_snapshot(const DataVersion *version)
{
	Assert(version_is_held(version));
	return (const SnapImage *) ((const char *) version + DATA_IMAGE_OFFSET);
}

/*
 * The version that the present statement sees.  It stays where it is at least
 * until the transaction ends, unless the function that asks for it returns
 * before.  Reading it is free after the statement's first call.
 */
extern bool data_pinned;
extern const DataVersion *data_pinned_version; /* NULL: no data */

extern const DataVersion *data_pin(void);

static inline const DataVersion *
data_version(void)
{
	if (likely(data_pinned))
		return data_pinned_version;
	return data_pin();
}

/* The experiments that the present statement sees; NULL: no data. */
static inline const SnapImage *
data_snapshot(void)
{
	const DataVersion *version = data_version();

	return version ? data_version_snapshot(version) : NULL;
}

/* Installs the hooks that find the ends of statements. */
extern void version_install(void);

/*
 * Lets the statement's next call see the newest version.  In parallel mode all
 * see the same until all have ended: then this does nothing.
 */
extern void version_unpin_statement(void);

/*
 * How many functions of ours are at work, one on behalf of the other.  Each
 * counts itself (sql/function.h).
 */
extern uint32 version_calls;

/*
 * Data that a session goes on reading from statement to statement.  What is in
 * force is read where it lies; it becomes a private copy when it has been
 * replaced.  A hold that has just been made ends with the transaction, so that
 * no error leaves one behind; version_hold_keep() makes it last until it is
 * released.  What it was on stays readable to the transaction's end.
 */
typedef struct DataHold
{
	const DataVersion *version; /* NULL: none */
	struct Held *held;
	bool kept;
} DataHold;

/*
 * Holds the version in force; false if there is none.  data_round is that of
 * the version's database (DatabaseState), 0 without shared memory.
 */
extern bool version_hold(DataHold *hold, uint64 *data_round);

extern void version_hold_keep(DataHold *hold);

/*
 * Holds what text (UTF-8) compiles to, under the target in force.  Raises as
 * version_publish() does.
 */
extern void version_hold_text(DataHold *hold, const char *text, size_t length);

/* Whether what is held has been replaced, and is not a copy yet. */
extern bool version_hold_is_stale(const DataHold *hold);

/* Makes it a private copy, at another address.  Raises 53200. */
extern void version_hold_copy(DataHold *hold);

/* Lets go of it; never fails, and does nothing where nothing is held. */
extern void version_hold_release(DataHold *hold);

/* Called when a query has run: it may have been in parallel mode. */
extern void (*version_query_done)(void);

/*
 * Compiles text (UTF-8) for the state's present target and puts it in force.
 * Returns its generation.  If it is what was in force already, only fetched_at
 * and source are taken over, and *unchanged is set.  Raises 22032 if the text
 * is malformed and 53200 if memory is short; the old data stays then.  The
 * compiler's warnings are reported at WARNING.
 *
 * Without shared memory (state is NULL) the data is the session's own.
 */
extern uint64 version_publish(DatabaseState *state, const DataTarget *target,
							  const char *text, size_t length,
							  DataSource source, TimestampTz fetched_at,
							  bool *unchanged);

/* Whether data fetched for one target is data for the other one, too. */
extern bool version_same_target(const DataTarget *left,
								const DataTarget *right);

/*
 * Makes target what data is fetched for, and ends a suspension.  If it is
 * another one than before, a new epoch begins and the data of the old one goes
 * out of force at the same moment.  Returns whether that is so.
 */
extern bool version_set_target(DatabaseState *state, const DataTarget *target);

/* Takes the data out of force, for good: the extension has gone. */
extern void version_withdraw(DatabaseState *state);

/* Frees retired versions that nobody pins. */
extern void version_reap(DatabaseState *state);

/*
 * What is known of the data that the session would see: false if there is
 * none.  Without shared memory also where the data came from.
 */
typedef struct DataInfo
{
	DataSource source;
	TimestampTz fetched_at;
} DataInfo;
extern bool version_info(DataInfo *info);

/* A word for a source: fetched, file, set. */
extern const char *data_source_name(DataSource source);

#endif /* ABSMARTLY_DATA_VERSION_H */
