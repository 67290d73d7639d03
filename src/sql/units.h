/*
 * units.h
 *		Units as SQL gives them, and their hashes (DESIGN 3.1, protocol 3).
 *
 * A units object is read in place, in one pass that looks at every member, so
 * that a wrong one is reported whether or not an experiment asks for it.
 */
#ifndef ABSMARTLY_SQL_UNITS_H
#define ABSMARTLY_SQL_UNITS_H

#include "postgres.h"

#include "utils/jsonb.h"
#include "utils/numeric.h"

#include "engine/hash.h"
#include "engine/snapshot.h"

/* The value of a unit; refers to the argument that it was read from. */
typedef struct UnitValue
{
	bool given;
	Numeric number; /* NULL: it is a text */
	EngineText text; /* UTF-8, trimmed */
} UnitValue;

/*
 * Reads units and finds the value of one unit type (its data NULL: of none).
 * Raises 22023 if units is not an object, or for any member that is not a
 * value of a unit.
 */
extern void units_find(const Jsonb *units, EngineText unit_type,
					   UnitValue *value);

/*
 * The values of all unit types of the experiments, as SnapExperiment.unit_slot
 * counts them, with their hashes once these are known.  Few fit without an
 * allocation.
 */
#define UNITS_INLINE_SLOTS 8

typedef struct UnitSlot
{
	UnitValue value;
	bool hashed;
	UnitHash hash;
} UnitSlot;

typedef struct UnitSlots
{
	UnitSlot *slots;
	UnitSlot few[UNITS_INLINE_SLOTS];
} UnitSlots;

/* Reads units as units_find() does, for all unit types. */
extern void units_read(const Jsonb *units, const SnapImage *snapshot,
					   UnitSlots *slots);

/* A text that is the value of a unit by itself; raises 22023. */
extern void units_from_text(const char *data, size_t length, UnitValue *value);

/*
 * For assign() (AssignUnitSource): context is the UnitValue of the
 * experiment's unit type, or UnitSlots.
 */
extern bool unit_from_value(void *context, const SnapExperiment *experiment,
							UnitHash *hash);
extern bool unit_from_slots(void *context, const SnapExperiment *experiment,
							UnitHash *hash);

#endif /* ABSMARTLY_SQL_UNITS_H */
