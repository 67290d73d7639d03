/*
 * context.h
 *		The session's context: what a context object is in other SDKs
 *		(DESIGN 3.2, protocol 8).
 *
 * A session has one at most.  Its units, attributes, overrides and assignments
 * are state of the session, like prepared statements; the events that it
 * records, and the marks of what it has exposed, belong to transactions.
 *
 * Who calls anything here is in a backend; what raises leaves the context as it
 * was.  Of several values those before the one that cannot be are set.
 */
#ifndef ABSMARTLY_CONTEXT_CONTEXT_H
#define ABSMARTLY_CONTEXT_CONTEXT_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/jsonb.h"

#include "data/version.h"
#include "engine/assign.h"
#include "events/encoding.h"

/* attributes that were set, at most; the oldest superseded ones go first */
#define CONTEXT_MAX_ATTRIBUTES 1000

typedef enum ContextState
{
	CONTEXT_NOT_READY,
	CONTEXT_READY,
	CONTEXT_FINALIZING,
	CONTEXT_FINALIZED
} ContextState;

typedef struct ContextOptions
{
	int64 publish_delay; /* ms; -1: held until it is published */
	bool own_delay; /* else that of the setting */
	int64 refresh_interval; /* ms; 0: none */
	bool historic;
	bool system_attributes;
	bool transaction_scope;
} ContextOptions;

typedef struct ContextUnit
{
	EngineText type; /* UTF-8 */
	const Jsonb *value; /* a scalar: a trimmed string, or a number */
	UnitHash hash;
	uint8 digest[ENCODING_UNIT_BYTES];
} ContextUnit;

/* One call that set an attribute. */
typedef struct ContextAttribute
{
	EngineText name; /* UTF-8 */
	EngineText json; /* the value, as it is sent */
	const Jsonb *value; /* NULL: superseded */
	int64 set_at; /* ms */
} ContextAttribute;

/* What a context knows of an experiment, by its name. */
typedef struct ContextEntry
{
	EngineText name; /* UTF-8, as it is asked for */
	bool has_override;
	bool has_custom;
	int32 override;
	int32 custom;

	/* the experiment in the data; valid if data_number is the context's */
	uint64 data_number;
	const SnapExperiment *experiment; /* NULL: unknown */

	/* the cached assignment */
	bool assigned; /* there is one */
	bool exposed;
	uint64 checked; /* the context's changes when it was last found good */
	uint64 serial; /* of this assignment */
	Assignment assignment;
	int64 id; /* what its exposure says */
	EngineText unit_type; /* data NULL: null */
	const Jsonb *variables; /* NULL: none, the variant is out of range */
	bool detached; /* the last two are the context's, not the data's */
	uint64 fingerprint; /* of what makes the assignment another one */
	uint64 rules; /* of the rules and the environment */
	uint64 attributes_seen; /* at the last check of rules and audience */
} ContextEntry;

/* experiments that a context knows by name, at most */
#define CONTEXT_MAX_ENTRIES 100000

struct context_entries_hash;

typedef struct Context
{
	MemoryContext memory;
	uint64 key;
	ContextOptions options;
	ContextState state;
	bool failed;
	char *ready_error; /* NULL: none */
	uint64 round; /* of fetching, that decides whether it fails; 0: not
				   * known yet */
	TimestampTz next_refresh; /* with a refresh interval */

	/* the data */
	DataHold data;
	const SnapImage *snapshot; /* NULL: none */
	uint64 data_number; /* grows when the image is another one */

	/* grows with all that may make an assignment another one */
	uint64 changes;

	int nunits;
	int max_units;
	ContextUnit *units;

	int nattributes;
	int max_attributes;
	ContextAttribute *attributes;
	uint64 attributes_set; /* how often one was set */
	const Jsonb
		*attributes_object; /* the last of each name; NULL: to be made */

	struct context_entries_hash *entries;
	ContextEntry *unkept; /* of the experiment that was asked for last, if there
						   * was no room for it; NULL: there never was */
	uint64 last_serial;

	/* what requests are sent under: units and attributes */
	uint64 header_version;
	uint64 header_built; /* version that header is of; 0: none */
	MemoryContext header_memory;
	EventContext header;
	uint64 header_left; /* version that a committed record has */
	uint64 header_recorded; /* that a record of this transaction has; 0: none */

	/* events */
	int64 uncommitted; /* of this transaction */
	int64 committed; /* without a worker, or failed: nobody else counts */
	uint64 last_sequence; /* of what is committed */
	bool hand_over; /* what this transaction recorded goes without delay */
	bool recount; /* a prepared transaction may have events of its */
} Context;

/* The session's context; NULL: none.  For context_current() and fast paths. */
extern Context *context_mine;

/* Installs what follows utility commands and queries; in _PG_init only. */
extern void context_install(void);

/*
 * Makes a new context and closes the one before it.  Arguments are jsonb or
 * NULL; data is JSON text in UTF-8 or has data NULL.  Raises 22023 for units,
 * attributes or options that cannot be, 22032 and 53200 for data.
 */
extern void context_create(const Jsonb *units, const Jsonb *attributes,
						   EngineText data, const ContextOptions *options);

/* Ends the session's context, if there is one; nothing is raised. */
extern void context_drop(void);

/*
 * The session's context, as it is now: what it has waited for may have come,
 * and the event logger may have been told of it.  Raises 55000 if there is
 * none.
 */
extern Context *context_current(void);

/*
 * The session's context if it is the one with this key, else NULL: whoever has
 * let code of the user's run, the event logger's above all, goes on with this.
 */
static inline Context *
context_of_key(uint64 key)
{
	return context_mine != NULL && context_mine->key == key ? context_mine
															: NULL;
}

/*
 * Raises 42501 in a security-restricted operation, like PREPARE: code of others
 * that a maintenance command or an event logger runs leaves nothing in the
 * session.  Thus the context and its data stay as they are, too, while those
 * who have called an event logger use them.
 */
extern void context_require_unrestricted(Oid function);

/* Raises 55000 if it is not ready, finalizing or finalized (protocol 8). */
extern void context_require_ready(const Context *context);
extern void context_require_open(const Context *context);

/* Puts other data in force; takes over what is held. */
extern void context_set_data(Context *context, DataHold *data);

/*
 * Units and attributes.  Types and names are in UTF-8.  Setting a unit raises
 * 22023 with the texts of protocol 8; both raise 54000 beyond their bounds.
 */
extern const ContextUnit *context_find_unit(const Context *context,
											EngineText type);
extern void context_set_unit(Context *context, EngineText type,
							 const JsonbValue *value);
extern const ContextAttribute *context_find_attribute(const Context *context,
													  EngineText name);
extern void context_set_attribute(Context *context, EngineText name,
								  const Jsonb *value);

/* The last value of each attribute, an object. */
extern const Jsonb *context_attributes_object(Context *context);

/* Calls visit for each member of an object, with its name in UTF-8. */
extern void context_visit_members(Context *context, const Jsonb *object,
								  void (*visit)(Context *context,
												EngineText name,
												const JsonbValue *value));

/* Makes room for one more element of a list in the context's memory. */
extern void *context_grow(const Context *context, void *list, int count,
						  int *most, Size size);

/* The context's copy of a text. */
extern EngineText context_copy_text(const Context *context, EngineText text);

#endif /* ABSMARTLY_CONTEXT_CONTEXT_H */
