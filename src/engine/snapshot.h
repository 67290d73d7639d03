/*
 * snapshot.h
 *		The compiled experiments: one flat image, read in place.
 *
 * An image is position-independent: an offset counts from its first byte (the
 * SnapImage itself), 0 means "none".  Everything is aligned to 8.  Written by
 * compile.c, read by any process that maps it; never changed after that.
 * The format belongs to one build of the library: it is never stored.
 */
#ifndef ABSMARTLY_ENGINE_SNAPSHOT_H
#define ABSMARTLY_ENGINE_SNAPSHOT_H

#include "engine.h"
#include "expression.h"

#define SNAPSHOT_MAGIC 0x41425331 /* "ABS1" */

typedef uint32_t SnapOffset;

/* UTF-8 text in the image, followed by a NUL */
typedef struct SnapText
{
	SnapOffset offset;
	uint32_t length;
} SnapText;

/* A value as the host stores it (jsonb, text datum), aligned to 8 */
typedef struct SnapStored
{
	SnapOffset offset; /* 0: none */
	uint32_t length;
} SnapStored;

/* seeds, split and number of parts for one choice */
typedef struct SnapSplit
{
	uint32_t seed_hi;
	uint32_t seed_lo;
	uint32_t count;
	SnapOffset weights; /* double[count] */
} SnapSplit;

typedef struct SnapMember
{
	uint32_t variable; /* index of the variable */
	SnapStored value; /* its jsonb */
} SnapMember;

typedef struct SnapVariant
{
	SnapText name; /* offset 0: no name given */
	SnapText config; /* as received; offset 0: null or absent */
	SnapStored variables; /* jsonb object, {} if there are none */
	uint32_t nmembers;
	SnapOffset members; /* SnapMember[nmembers], by variable */
} SnapVariant;

typedef struct SnapRule
{
	int32_t position; /* in the list as received, from 0 */
	int32_t variant; /* INT32_MAX if out of its range */
	SnapText name; /* offset 0: none */
	SnapOffset conditions; /* ExprNode; 0: applies to all */
} SnapRule;

typedef enum SnapFieldState
{
	SNAP_FIELD_VALUE = 0, /* value is set */
	SNAP_FIELD_NULL, /* null, of unknown type, or broken */
	SNAP_FIELD_NAN /* a number that does not parse */
} SnapFieldState;

typedef struct SnapField
{
	SnapText name;
	SnapText type;
	SnapStored type_text; /* text datum */
	SnapStored value; /* jsonb */
	uint32_t state; /* SnapFieldState */
} SnapField;

/* SnapExperiment.flags */
#define SNAP_AUDIENCE_STRICT 0x0001
#define SNAP_ALL_TRAFFIC 0x0002 /* the traffic split lets everybody in */
#define SNAP_HAS_UNIT_TYPE 0x0004
#define SNAP_SHADOWED 0x0008 /* a later one has the same name */

typedef struct SnapExperiment
{
	int64_t id;
	int64_t iteration;
	SnapText name;
	SnapStored name_text; /* text datum */
	SnapText unit_type;
	SnapStored unit_type_text; /* text datum */
	uint32_t unit_slot; /* index into the snapshot's unit types */
	uint32_t flags;
	SnapSplit split;
	SnapSplit traffic;
	int32_t full_on_variant;
	uint32_t nvariants;
	SnapOffset variants; /* SnapVariant[nvariants] */
	SnapOffset audience; /* ExprNode; 0: no verdict for anybody */
	SnapText audience_text; /* as received; offset 0: null or absent */
	SnapText rules_text; /* as received; offset 0: null or absent */
	uint32_t nrules;
	SnapOffset rules; /* SnapRule[nrules]: those of this environment */
	uint32_t nholdouts;
	SnapOffset holdouts; /* uint32_t[nholdouts]: indexes of holdouts */
	uint32_t nfields;
	SnapOffset fields; /* SnapField[nfields] */
} SnapExperiment;

typedef struct SnapHoldout
{
	int64_t id;
	SnapSplit split;
} SnapHoldout;

/* a variable, and the experiments that have it, lowest id first */
typedef struct SnapVariable
{
	SnapText key;
	SnapStored key_text; /* text datum */
	uint32_t nexperiments;
	SnapOffset experiments; /* uint32_t[nexperiments]: indexes */
} SnapVariable;

/* a name that stands alone: a unit type, a custom field's name */
typedef struct SnapName
{
	SnapText name;
	SnapStored text; /* text datum */
} SnapName;

typedef struct SnapImage
{
	uint32_t magic;
	uint32_t size; /* of the whole image */
	SnapText raw; /* what was compiled, as received */
	SnapText environment; /* whose rules were compiled in; offset 0: not
						   * known */
	uint32_t nexperiments;
	SnapOffset experiments; /* SnapExperiment[], in the data's order */
	uint32_t nleft_out; /* experiments with broken fields */
	uint32_t name_mask; /* size of the name index - 1 */
	SnapOffset name_index; /* uint32_t[name_mask + 1]: index + 1, or 0 */
	uint32_t nvariables;
	SnapOffset variables; /* SnapVariable[], in order of appearance */
	uint32_t variable_mask;
	SnapOffset variable_index; /* like name_index */
	uint32_t nholdouts;
	SnapOffset holdouts; /* SnapHoldout[] */
	bool has_holdouts; /* the data has a list of holdouts */
	uint32_t nunit_types;
	SnapOffset unit_types; /* SnapName[] */
	uint32_t nfield_keys;
	SnapOffset field_keys; /* SnapName[], in order of appearance */
} SnapImage;

static inline const void *
snapshot_at(const SnapImage *snapshot, SnapOffset offset)
{
	return (const char *) snapshot + offset;
}

static inline EngineText
snapshot_text(const SnapImage *snapshot, SnapText text)
{
	EngineText result = {(const char *) snapshot + text.offset, text.length};

	return result;
}

static inline const SnapExperiment *
snapshot_experiment(const SnapImage *snapshot, uint32_t index)
{
	return (const SnapExperiment *) snapshot_at(snapshot,
												snapshot->experiments) +
		   index;
}

static inline const SnapVariant *
snapshot_variant(const SnapImage *snapshot, const SnapExperiment *experiment,
				 uint32_t index)
{
	return (const SnapVariant *) snapshot_at(snapshot, experiment->variants) +
		   index;
}

/* The experiment of that name (of equal names the last one), or NULL. */
extern const SnapExperiment *snapshot_find_experiment(const SnapImage *snapshot,
													  const char *name,
													  size_t length);

/* The variable of that key, or NULL. */
extern const SnapVariable *snapshot_find_variable(const SnapImage *snapshot,
												  const char *key,
												  size_t length);

/* The variant's value of a variable; NULL if its config does not have it. */
extern const SnapStored *snapshot_variant_value(const SnapImage *snapshot,
												const SnapVariant *variant,
												const SnapVariable *variable);

/* The first custom field of that name, or NULL. */
extern const SnapField *snapshot_find_field(const SnapImage *snapshot,
											const SnapExperiment *experiment,
											const char *name, size_t length);

/* The hash that the image's indexes use. */
extern uint32_t snapshot_hash(const char *text, size_t length);

#endif /* ABSMARTLY_ENGINE_SNAPSHOT_H */
