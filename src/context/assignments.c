/*
 * assignments.c
 *		The assignments of a context (protocol 8, "Assignment cache").
 *
 * What decides whether a cached assignment is kept is compared by a hash of 64
 * bits, so that nothing of the data needs to be kept for it.  What an
 * assignment gives to others, its variables and unit type, is read in the data
 * it was made with, and copied when that goes.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "context/assignments.h"
#include "engine/hash.h"
#include "sql/evaluation.h"
#include "sql/exposure.h"

typedef struct EntrySlot
{
	EngineText name; /* that of the entry */
	ContextEntry *entry;
	uint32 hash;
	char status;
} EntrySlot;

#define FIRST_ENTRIES 8

#define SH_PREFIX context_entries
#define SH_ELEMENT_TYPE EntrySlot
#define SH_KEY_TYPE EngineText
#define SH_KEY name
#define SH_HASH_KEY(table, key) \
	hash_bytes((const unsigned char *) (key).data, (int) (key).length)
#define SH_EQUAL(table, left, right)    \
	((left).length == (right).length && \
	 memcmp((left).data, (right).data, (left).length) == 0)
#define SH_STORE_HASH
#define SH_GET_HASH(table, slot) (slot)->hash
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

void
assignments_init(Context *context)
{
	context->entries =
		context_entries_create(context->memory, FIRST_ENTRIES, NULL);
}

ContextEntry *
assignments_find(const Context *context, EngineText name)
{
	EntrySlot *slot = context_entries_lookup(context->entries, name);

	return slot ? slot->entry : NULL;
}

static bool
is_full(const Context *context)
{
	return context->entries->members >= CONTEXT_MAX_ENTRIES;
}

static ContextEntry *
add_entry(Context *context, EngineText name)
{
	ContextEntry *entry;
	EntrySlot *slot;
	bool found;

	entry = MemoryContextAllocZero(context->memory, sizeof(ContextEntry));
	entry->name = context_copy_text(context, name);
	slot = context_entries_insert(context->entries, entry->name, &found);
	slot->entry = entry;
	return entry;
}

ContextEntry *
assignments_entry(Context *context, EngineText name)
{
	ContextEntry *entry = assignments_find(context, name);

	if (entry != NULL)
		return entry;
	if (is_full(context))
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("too many experiments"),
						errdetail("A context may know up to %d experiments.",
								  CONTEXT_MAX_ENTRIES)));
	return add_entry(context, name);
}

static void forget_copies(ContextEntry *entry);

ContextEntry *
assignments_use(Context *context, EngineText name, bool *kept)
{
	ContextEntry *entry = assignments_find(context, name);

	*kept = entry != NULL || !is_full(context);
	if (entry != NULL)
		return entry;
	if (*kept)
		return add_entry(context, name);

	entry = context->unkept;
	if (entry == NULL)
		entry = context->unkept =
			MemoryContextAllocZero(context->memory, sizeof(ContextEntry));
	forget_copies(entry);
	memset(entry, 0, sizeof(ContextEntry));
	entry->name.data = pnstrdup(name.data, name.length);
	entry->name.length = name.length;
	return entry;
}

/*
 * What makes an assignment another one
 */

static inline uint64
mix(uint64 hash, const void *data, size_t length)
{
	return hash_combine64(
		hash, hash_bytes_extended(data, (int) length, (uint64) length));
}

#define MIX(hash, value) mix(hash, &(value), sizeof(value))

static uint64
mix_split(uint64 hash, const SnapImage *snapshot, const SnapSplit *split)
{
	hash = MIX(hash, split->count);
	return mix(hash, snapshot_at(snapshot, split->weights),
			   split->count * sizeof(double));
}

/* Id, unit type, iteration, full on variant, traffic split, and holdouts. */
static uint64
fingerprint(const SnapImage *snapshot, const SnapExperiment *experiment)
{
	const SnapHoldout *holdouts = snapshot_at(snapshot, snapshot->holdouts);
	const uint32_t *indexes = snapshot_at(snapshot, experiment->holdouts);
	EngineText unit_type = exposure_unit_type(snapshot, experiment);
	bool has_unit_type = unit_type.data != NULL;
	uint64 hash = 0;

	hash = MIX(hash, experiment->id);
	hash = MIX(hash, experiment->iteration);
	hash = MIX(hash, experiment->full_on_variant);
	hash = MIX(hash, has_unit_type);
	if (has_unit_type)
		hash = mix(hash, unit_type.data, unit_type.length);
	hash = mix_split(hash, snapshot, &experiment->traffic);
	for (uint32 i = 0; i < experiment->nholdouts; i++)
	{
		const SnapHoldout *holdout = &holdouts[indexes[i]];

		hash = MIX(hash, holdout->id);
		hash = MIX(hash, holdout->split.seed_hi);
		hash = MIX(hash, holdout->split.seed_lo);
		hash = mix_split(hash, snapshot, &holdout->split);
	}
	return hash;
}

/* The rules' text and the environment. */
static uint64
rules_fingerprint(const SnapImage *snapshot, const SnapExperiment *experiment)
{
	EngineText rules = snapshot_text(snapshot, experiment->rules_text);
	EngineText environment = snapshot_text(snapshot, snapshot->environment);
	uint64 hash = 0;

	if (experiment->rules_text.offset != 0)
		hash = mix(hash, rules.data, rules.length);
	if (snapshot->environment.offset != 0)
		hash = mix(hash, environment.data, environment.length);
	return hash;
}

/*
 * Assigning
 */

static void
begin_evaluation(Context *context, Evaluation *evaluation)
{
	evaluation_begin(evaluation, context->data.version,
					 context->options.system_attributes, true,
					 PointerGetDatum(context_attributes_object(context)));
}

static void
check_status(EngineStatus status)
{
	if (unlikely(status != ENGINE_OK))
		evaluation_raise(status);
}

/*
 * Whether rules and audience say what they said when the assignment was made,
 * or last checked.  They are looked at only if something may be different.
 */
static bool
rules_and_audience_agree(Context *context, ContextEntry *entry)
{
	const SnapImage *snapshot = context->snapshot;
	const SnapExperiment *experiment = entry->experiment;
	uint64 rules = rules_fingerprint(snapshot, experiment);
	bool was_ruled = (entry->assignment.flags & ASSIGN_RULE_OVERRIDE) != 0;
	Evaluation evaluation;
	bool ruled;
	int32_t variant;
	int position;

	if (rules == entry->rules &&
		context->attributes_set <= entry->attributes_seen)
		return true;

	begin_evaluation(context, &evaluation);
	check_status(assign_rules(snapshot, experiment, &evaluation.context, &ruled,
							  &variant, &position));
	ruled = ruled && variant >= 0 && (uint32) variant < experiment->nvariants;
	if (ruled != was_ruled || (ruled && variant != entry->assignment.variant))
		return false;
	if (!ruled && experiment->audience_text.length > 0)
	{
		bool was_mismatch =
			(entry->assignment.flags & ASSIGN_AUDIENCE_MISMATCH) != 0;
		AudienceVerdict verdict;

		check_status(assign_audience(snapshot, experiment, &evaluation.context,
									 &verdict));
		if ((verdict == AUDIENCE_MISMATCH) != was_mismatch)
			return false;
	}
	entry->rules = rules;
	entry->attributes_seen = context->attributes_set;
	return true;
}

/* Whether the cached assignment is kept: protocol 8, tests 1 to 3. */
static bool
is_kept(Context *context, ContextEntry *entry, const int32 *override)
{
	const Assignment *assignment = &entry->assignment;

	if (!entry->assigned)
		return false;
	if (override != NULL)
		return (assignment->flags & ASSIGN_OVERRIDDEN) != 0 &&
			   assignment->variant == *override;
	/* one of absmartly.overrides has been taken back */
	if (assignment->flags & ASSIGN_OVERRIDDEN)
		return false;
	if (entry->experiment == NULL)
		return (assignment->flags & ASSIGN_ASSIGNED) == 0;
	return (!entry->has_custom || entry->custom == assignment->variant) &&
		   entry->fingerprint ==
			   fingerprint(context->snapshot, entry->experiment) &&
		   rules_and_audience_agree(context, entry);
}

/* AssignUnitSource over the context's units. */
static bool
unit_of_context(void *argument, const SnapExperiment *experiment,
				UnitHash *hash)
{
	const Context *context = argument;
	const ContextUnit *unit = context_find_unit(
		context, exposure_unit_type(context->snapshot, experiment));

	if (unit == NULL)
		return false;
	*hash = unit->hash;
	return true;
}

static void
forget_copies(ContextEntry *entry)
{
	if (!entry->detached)
		return;
	if (entry->unit_type.data != NULL)
		pfree(unconstify(char *, entry->unit_type.data));
	if (entry->variables != NULL)
		pfree(unconstify(Jsonb *, entry->variables));
	entry->detached = false;
}

static void
make_assignment(Context *context, ContextEntry *entry, const int32 *override)
{
	const SnapImage *snapshot = context->snapshot;
	const SnapExperiment *experiment = entry->experiment;
	AssignRequest request = {.snapshot = snapshot,
							 .experiment = experiment,
							 .override = override,
							 .custom =
								 entry->has_custom ? &entry->custom : NULL,
							 .unit = unit_of_context,
							 .unit_context = context};
	Evaluation evaluation;
	Assignment made;

	if (evaluation_needed(experiment) && override == NULL)
	{
		begin_evaluation(context, &evaluation);
		request.eval = &evaluation.context;
	}
	check_status(assign(&request, &made));

	forget_copies(entry);
	entry->assignment = made;
	entry->assigned = true;
	entry->exposed = false;
	entry->checked = 0;
	entry->serial = ++context->last_serial;
	entry->attributes_seen = context->attributes_set;
	entry->id = 0;
	entry->unit_type = (EngineText){NULL, 0};
	entry->variables = NULL;
	entry->fingerprint = 0;
	entry->rules = 0;
	if (experiment == NULL)
		return;
	entry->id = experiment->id;
	entry->unit_type = exposure_unit_type(snapshot, experiment);
	entry->fingerprint = fingerprint(snapshot, experiment);
	entry->rules = rules_fingerprint(snapshot, experiment);
	if (made.variant >= 0 && (uint32) made.variant < experiment->nvariants)
	{
		const SnapVariant *variant =
			snapshot_variant(snapshot, experiment, (uint32) made.variant);

		entry->variables = snapshot_at(snapshot, variant->variables.offset);
	}
}

/* The experiment of an entry in the present data; NULL: unknown. */
static void
find_experiment(const Context *context, ContextEntry *entry)
{
	if (entry->data_number == context->data_number)
		return;
	entry->experiment = NULL;
	if (context->snapshot != NULL)
		entry->experiment = snapshot_find_experiment(
			context->snapshot, entry->name.data, entry->name.length);
	entry->data_number = context->data_number;
}

void
assignments_update(Context *context, ContextEntry *entry)
{
	const int32 *override = entry->has_override ? &entry->override : NULL;

	if (override == NULL && settings_have_overrides())
		override = settings_override(entry->name.data, entry->name.length);
	find_experiment(context, entry);
	if (!is_kept(context, entry, override))
	{
		make_assignment(context, entry, override);
		/* a custom assignment that is not used makes another one each time */
		if (override == NULL && entry->experiment != NULL &&
			entry->has_custom && entry->custom != entry->assignment.variant)
			return;
	}
	/* what absmartly.overrides says may change at any time */
	if (!settings_have_overrides())
		entry->checked = context->changes;
}

static void
detach(Context *context, ContextEntry *entry)
{
	EngineText unit_type = entry->unit_type;
	Jsonb *variables = NULL;

	if (!entry->assigned || entry->detached)
		return;
	if (entry->variables != NULL)
	{
		Size size = VARSIZE(entry->variables);

		variables = MemoryContextAlloc(context->memory, size);
		memcpy(variables, entry->variables, size);
	}
	if (unit_type.data != NULL)
		unit_type = context_copy_text(context, unit_type);
	entry->variables = variables;
	entry->unit_type = unit_type;
	entry->detached = true;
}

void
assignments_detach(Context *context)
{
	context_entries_iterator iterator;
	EntrySlot *slot;

	context_entries_start_iterate(context->entries, &iterator);
	while ((slot = context_entries_iterate(context->entries, &iterator)) !=
		   NULL)
		detach(context, slot->entry);
}
