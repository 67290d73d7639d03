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
#include "events/encoding.h"
#include "sql/row_json.h"

/* The value of a unit; refers to the argument that it was read from. */
typedef struct UnitValue
{
	bool given;
	Numeric number; /* NULL: it is a text */
	EngineText text; /* UTF-8, trimmed */
} UnitValue;

/*
 * Columns of these types can be units: numbers by their digits, all others by
 * the text that a cast makes of them.
 */
#define UNIT_TYPES_ALLOWED                                                  \
	"smallint, integer, bigint, uuid, text, another type of strings or an " \
	"enumeration"
extern bool unit_type_allowed(Oid type);

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

/*
 * All units that are given, in the object's order, as events carry them.  The
 * hash of one is worked out when it is asked for, and once.
 */
#define UNITS_INLINE_LIST 8

typedef struct ListedUnit
{
	UnitValue value;
	bool digested; /* the event has its hash */
	bool hashed; /* hash is known as well */
	UnitHash hash;
} ListedUnit;

typedef struct UnitList
{
	uint32 count;
	int own; /* the unit of the experiment's type; -1: none */
	EventUnit *units;
	ListedUnit *listed;
	EventUnit few_units[UNITS_INLINE_LIST];
	ListedUnit few_listed[UNITS_INLINE_LIST];
} UnitList;

/*
 * Reads units as units_find() does; raises 54000 for more than an event may
 * have.
 */
extern void unit_list_read(const Jsonb *units, UnitList *list);

/* The list of one unit, which is the own one; empty if there is no type. */
extern void unit_list_one(const UnitValue *value, EngineText unit_type,
						  UnitList *list);

/* Makes the unit of a type (its data NULL: of none) the own one. */
extern void unit_list_choose(UnitList *list, EngineText unit_type);

/* Works out the hash of one unit, or of all, for the event. */
extern void unit_list_digest(UnitList *list, uint32 index);
extern void unit_list_digest_all(UnitList *list);

/*
 * A value that is the unit by itself: a text or a numeric, which may raise
 * 22023, an integer by its decimal text, a uuid by its canonical one.  The
 * buffer holds the text.
 */
#define UNITS_BIGINT_LENGTH 20

extern void units_from_text(const char *data, size_t length, UnitValue *value);
extern void units_from_bigint(int64 number,
							  char buffer[UNITS_BIGINT_LENGTH + 1],
							  UnitValue *value);
extern void units_from_number(Numeric number, UnitValue *value);
extern void units_from_uuid(const pg_uuid_t *uuid,
							char buffer[UUID_TEXT_LENGTH], UnitValue *value);

/* The hash of a value that is given, and the bytes that it is the text of. */
extern void unit_value_hash(const UnitValue *value, UnitHash *hash,
							uint8 digest[ENCODING_UNIT_BYTES]);

/*
 * For assign() (AssignUnitSource): context is the UnitValue of the
 * experiment's unit type, UnitSlots, or a UnitList whose own unit it is.
 */
extern bool unit_from_value(void *context, const SnapExperiment *experiment,
							UnitHash *hash);
extern bool unit_from_slots(void *context, const SnapExperiment *experiment,
							UnitHash *hash);
extern bool unit_from_list(void *context, const SnapExperiment *experiment,
						   UnitHash *hash);

#endif /* ABSMARTLY_SQL_UNITS_H */
