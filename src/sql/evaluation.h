/*
 * evaluation.h
 *		What functions that assign have in common: the data, the names that
 *		they look up in it, and what expressions see.
 */
#ifndef ABSMARTLY_SQL_EVALUATION_H
#define ABSMARTLY_SQL_EVALUATION_H

#include "postgres.h"

#include "fmgr.h"
#include "utils/jsonb.h"

#include "compat.h"
#include "data/version.h"
#include "engine/arena.h"
#include "engine/assign.h"
#include "settings.h"
#include "sql/jsonb_value.h"
#include "sql/text.h"

/*
 * The data of the present statement.  If there is none yet: raises 55000, or
 * gives NULL where absmartly.on_not_ready says that control shall do.
 */
extern const DataVersion *evaluation_data_missing(void);

static inline const DataVersion *
evaluation_data(void)
{
	const DataVersion *version = data_version();

	return likely(version != NULL) ? version : evaluation_data_missing();
}

/*
 * The last name that a call site looked up.  It lives in fn_extra; what it
 * found is valid as long as the data is the same.
 */
typedef struct NameCache
{
	uint64 serial; /* of the data; 0: nothing is cached */
	const void *found; /* NULL: unknown */
	size_t length;
	char name[2 * ENGINE_MAX_NAME]; /* in the database's encoding */
} NameCache;

/* state of a call site, zeroed at its first call, in fn_extra */
static inline void *
call_site_state(FunctionCallInfo fcinfo, Size size)
{
	if (unlikely(fcinfo->flinfo->fn_extra == NULL))
		fcinfo->flinfo->fn_extra =
			MemoryContextAllocZero(fcinfo->flinfo->fn_mcxt, size);
	return fcinfo->flinfo->fn_extra;
}

static inline bool
name_cache_holds(const NameCache *cache, const DataVersion *version,
				 const text *name)
{
	return cache->serial == version->serial &&
		   cache->length == VARSIZE_ANY_EXHDR(name) &&
		   memcmp(cache->name, VARDATA_ANY(name), cache->length) == 0;
}

/*
 * Names given by the user, in UTF-8; what is the word for the kind of name in
 * messages.  Raises 22023 if the name is too long.
 */
extern void evaluation_check_name(EngineText name, const char *what);

/* Raises 22023 for a variant that no exposure may have. */
extern void evaluation_check_variant(int64 variant);
extern EngineText evaluation_name(const text *name, const char *what);

extern const SnapExperiment *
evaluation_find_experiment(NameCache *cache, const DataVersion *version,
						   const text *name);
extern const SnapVariable *evaluation_find_variable(NameCache *cache,
													const DataVersion *version,
													const text *key);

static inline const SnapExperiment *
evaluation_experiment(NameCache *cache, const DataVersion *version,
					  const text *name)
{
	if (likely(name_cache_holds(cache, version, name)))
		return cache->found;
	return evaluation_find_experiment(cache, version, name);
}

static inline const SnapVariable *
evaluation_variable(NameCache *cache, const DataVersion *version,
					const text *key)
{
	if (likely(name_cache_holds(cache, version, key)))
		return cache->found;
	return evaluation_find_variable(cache, version, key);
}

/* What expressions see: the user's attributes and the system's. */
typedef struct Evaluation
{
	EvalContext context;
	SystemAttribute system[3];
	JsonbBuffer buffer; /* of small attributes */
} Evaluation;

/*
 * Attributes are jsonb, toasted or not, or none (has_attributes is false).
 * evaluation_check_object() raises 22023 if they are no object, and calls them
 * what in its message.  evaluation_begin() reads them; system says whether
 * there are attributes of the system, too, which needs a version.
 */
extern void evaluation_check_object(Datum attributes, const char *what);

/* The same for what is no attributes; example is one in the hint. */
extern void evaluation_check_other(Datum object, const char *what,
								   const char *example);
extern void evaluation_begin(Evaluation *evaluation, const DataVersion *version,
							 bool system, bool has_attributes,
							 Datum attributes);

/*
 * For work outside of an evaluation, whose end the caller has to look at: it is
 * stopped when the statement is to end.
 */
extern void evaluation_work_begin(Work *work);

/* Raises what a status other than ENGINE_OK means. */
pg_noreturn extern void evaluation_raise(EngineStatus status);

/* The variant that absmartly.overrides gives an experiment, or NULL. */
static inline const int32 *
evaluation_override(const text *name)
{
	EngineText utf8;

	if (likely(!settings_have_overrides()))
		return NULL;
	utf8 = text_datum_to_utf8(name);
	return settings_override(utf8.data, utf8.length);
}

/*
 * Whether the experiment's outcome depends on attributes; if not, these need
 * not be read.
 */
static inline bool
evaluation_needed(const SnapExperiment *experiment)
{
	return experiment != NULL &&
		   (experiment->audience != 0 || experiment->nrules > 0);
}

/* Text and jsonb as they stand in the data; they live as long as it does. */
#define evaluation_stored(snapshot, stored) \
	PointerGetDatum(snapshot_at(snapshot, (stored).offset))

#endif /* ABSMARTLY_SQL_EVALUATION_H */
