/*
 * units.c
 *		Units as SQL gives them, and their hashes.
 */
#include "postgres.h"

#include "utils/builtins.h"

#include "engine/number.h"
#include "sql/jsonb_value.h"
#include "sql/text.h"
#include "sql/units.h"

/* Walks over the members of a jsonb object. */
typedef struct MemberCursor
{
	const JsonbContainer *object;
	const char *base; /* where names and values start */
	uint32 count;
	uint32 index;
	uint32 name_end; /* offsets of what has been read */
	uint32 value_end;
} MemberCursor;

typedef struct Member
{
	const char *name;
	uint32 name_length;
	JEntry entry; /* of the value */
	const char *value; /* not aligned */
	uint32 value_offset;
	uint32 value_length;
} Member;

bool
unit_type_allowed(Oid type)
{
	switch (column_kind(type))
	{
		case COLUMN_INT2:
		case COLUMN_INT4:
		case COLUMN_INT8:
		case COLUMN_TEXT:
		case COLUMN_UUID:
			return true;
		default:
			return text_type_is_string(type);
	}
}

/*
 * Errors.  All of them name the unit, or say that there is only one.
 */

pg_noreturn static void report_wrong_unit(const Member *member,
										  const char *kind);

static const char *
unit_label(const char *name, size_t length)
{
	if (name == NULL)
		return "unit";
	return psprintf("unit \"%s\"", pnstrdup(name, length));
}

static void
report_wrong_unit(const Member *member, const char *kind)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s must be a string or a number",
					unit_label(member->name, member->name_length)),
			 errdetail("It is %s.", kind),
			 errhint("Leave out units that are not known, or set them to "
					 "null.")));
}

static void
report_not_object(const Jsonb *units)
{
	Value value;
	const char *kind = "null";

	jsonb_to_value(units, &value);
	if (value.kind == VALUE_BOOLEAN)
		kind = "a boolean";
	else if (value.kind == VALUE_NUMBER)
		kind = "a number";
	else if (value.kind == VALUE_STRING)
		kind = "a string";
	else if (value.kind == VALUE_ARRAY)
		kind = "an array";
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("units must be a JSON object"),
					errdetail("They are %s.", kind),
					errhint("Name each unit's type, as in "
							"'{\"user_id\": 42}'.")));
}

static void
report_too_long(const char *name, size_t length)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("%s is too long", unit_label(name, length)),
					errdetail("A unit may have up to %d characters.",
							  ENGINE_MAX_UID)));
}

/*
 * Members
 */

static inline void
members_begin(MemberCursor *cursor, const Jsonb *units)
{
	const JsonbContainer *object = &units->root;
	uint32 index;

	if (unlikely(!JsonContainerIsObject(object)))
		report_not_object(units);
	cursor->object = object;
	cursor->count = JsonContainerSize(object);
	cursor->base = (const char *) &object->children[2 * cursor->count];
	cursor->index = 0;
	cursor->name_end = 0;
	/* values come after all names */
	cursor->value_end = 0;
	for (index = 0; index < cursor->count; index++)
		JBE_ADVANCE_OFFSET(cursor->value_end, object->children[index]);
}

static inline bool
members_next(MemberCursor *cursor, Member *member)
{
	uint32 start = cursor->name_end;

	if (cursor->index >= cursor->count)
		return false;

	JBE_ADVANCE_OFFSET(cursor->name_end,
					   cursor->object->children[cursor->index]);
	member->name = cursor->base + start;
	member->name_length = cursor->name_end - start;

	member->entry = cursor->object->children[cursor->count + cursor->index];
	member->value_offset = cursor->value_end;
	JBE_ADVANCE_OFFSET(cursor->value_end, member->entry);
	member->value = cursor->base + member->value_offset;
	member->value_length = cursor->value_end - member->value_offset;
	cursor->index++;
	return true;
}

static inline bool
is_plain(char c)
{
	return (unsigned char) c > ' ' && (unsigned char) c < 0x7F;
}

/*
 * A text as the value of a unit: in UTF-8, trimmed, not blank, not too long.
 * The name is for messages; NULL if the unit has none.
 */
static inline void
read_text(const char *name, size_t name_length, const char *data, size_t length,
		  UnitValue *value)
{
	value->given = true;
	value->number = NULL;

	/* blanks are trimmed; usually there are none */
	if (likely(length > 0 && is_plain(data[0]) && is_plain(data[length - 1]) &&
			   (text_database_is_utf8() || text_is_ascii(data, length))))
	{
		value->text.data = data;
		value->text.length = length;
	}
	else
	{
		value->text = text_trimmed(text_to_utf8(data, length));
		if (value->text.length == 0)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("%s must not be blank",
								   unit_label(name, name_length))));
	}
	if (unlikely(text_is_longer(value->text, ENGINE_MAX_UID)))
		report_too_long(name, name_length);
}

/* Checks a member and reads its value. */
static inline void
read_member(const MemberCursor *cursor, const Member *member, UnitValue *value)
{
	if (unlikely(member->name_length > ENGINE_MAX_NAME))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("name of a unit type is too long"),
				 errdetail("A name may have up to %d bytes, this one has %u.",
						   ENGINE_MAX_NAME, member->name_length)));

	if (JBE_ISSTRING(member->entry))
		read_text(member->name, member->name_length, member->value,
				  member->value_length, value);
	else if (JBE_ISNUMERIC(member->entry))
	{
		value->given = true;
		value->number = (Numeric) unconstify(
			char *, cursor->base + INTALIGN(member->value_offset));
		if (unlikely(jsonb_number_is_too_long(value->number)))
			report_too_long(member->name, member->name_length);
	}
	else if (JBE_ISNULL(member->entry))
		value->given = false;
	else if (JBE_ISBOOL(member->entry))
		report_wrong_unit(member, "a boolean");
	else
		report_wrong_unit(
			member,
			JsonContainerIsObject(
				(const JsonbContainer *) (cursor->base +
										  INTALIGN(member->value_offset)))
				? "an object"
				: "an array");
}

/* Whether a member's name is a unit type, which is UTF-8. */
static inline bool
is_unit_type(const Member *member, EngineText unit_type)
{
	EngineText name;

	if (member->name_length == unit_type.length &&
		memcmp(member->name, unit_type.data, unit_type.length) == 0)
		return true;
	if (likely(text_database_is_utf8()))
		return false;
	name = text_to_utf8(member->name, member->name_length);
	return name.length == unit_type.length &&
		   memcmp(name.data, unit_type.data, unit_type.length) == 0;
}

void
units_find(const Jsonb *units, EngineText unit_type, UnitValue *value)
{
	MemberCursor cursor;
	Member member;

	value->given = false;
	members_begin(&cursor, units);
	while (members_next(&cursor, &member))
	{
		UnitValue read;

		read_member(&cursor, &member, &read);
		if (unit_type.data != NULL && is_unit_type(&member, unit_type))
			*value = read;
	}
}

void
units_read(const Jsonb *units, const SnapImage *snapshot, UnitSlots *slots)
{
	const SnapName *unit_types = snapshot_at(snapshot, snapshot->unit_types);
	MemberCursor cursor;
	Member member;
	uint32 slot;

	slots->slots = slots->few;
	if (snapshot->nunit_types > UNITS_INLINE_SLOTS)
		slots->slots = palloc(snapshot->nunit_types * sizeof(UnitSlot));
	for (slot = 0; slot < snapshot->nunit_types; slot++)
	{
		slots->slots[slot].value.given = false;
		slots->slots[slot].hashed = false;
	}

	members_begin(&cursor, units);
	while (members_next(&cursor, &member))
	{
		UnitValue read;

		read_member(&cursor, &member, &read);
		for (slot = 0; slot < snapshot->nunit_types; slot++)
		{
			if (is_unit_type(&member,
							 snapshot_text(snapshot, unit_types[slot].name)))
			{
				slots->slots[slot].value = read;
				break;
			}
		}
	}
}

void
unit_list_read(const Jsonb *units, UnitList *list)
{
	MemberCursor cursor;
	Member member;

	members_begin(&cursor, units);
	list->count = 0;
	list->own = -1;
	list->units = list->few_units;
	list->listed = list->few_listed;
	if (unlikely(cursor.count > UNITS_INLINE_LIST))
	{
		uint32 room = Min(cursor.count, ENCODING_MAX_UNITS);

		list->units = palloc(room * sizeof(EventUnit));
		list->listed = palloc(room * sizeof(ListedUnit));
	}
	while (members_next(&cursor, &member))
	{
		ListedUnit *listed;
		UnitValue read;

		read_member(&cursor, &member, &read);
		if (!read.given)
			continue;
		if (unlikely(list->count == ENCODING_MAX_UNITS))
			ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
							errmsg("too many units"),
							errdetail("An event may have up to %d units.",
									  ENCODING_MAX_UNITS)));
		listed = &list->listed[list->count];
		listed->value = read;
		listed->digested = false;
		listed->hashed = false;
		list->units[list->count++].type =
			text_to_utf8(member.name, member.name_length);
	}
}

void
unit_list_one(const UnitValue *value, EngineText unit_type, UnitList *list)
{
	bool has_type = unit_type.data != NULL;

	list->count = has_type ? 1 : 0;
	list->own = has_type ? 0 : -1;
	list->units = list->few_units;
	list->listed = list->few_listed;
	list->few_units[0].type = unit_type;
	list->few_listed[0].value = *value;
	list->few_listed[0].digested = false;
	list->few_listed[0].hashed = false;
}

void
unit_list_choose(UnitList *list, EngineText unit_type)
{
	uint32 index;

	list->own = -1;
	for (index = 0; unit_type.data != NULL && index < list->count; index++)
	{
		EngineText type = list->units[index].type;

		if (type.length == unit_type.length &&
			memcmp(type.data, unit_type.data, type.length) == 0)
		{
			list->own = (int) index;
			break;
		}
	}
}

void
units_from_text(const char *data, size_t length, UnitValue *value)
{
	read_text(NULL, 0, data, length, value);
}

void
units_from_bigint(int64 number, char buffer[UNITS_BIGINT_LENGTH + 1],
				  UnitValue *value)
{
	value->given = true;
	value->number = NULL;
	value->text.data = buffer;
	value->text.length = (size_t) pg_lltoa(number, buffer);
}

void
units_from_number(Numeric number, UnitValue *value)
{
	if (unlikely(jsonb_number_is_too_long(number)))
		report_too_long(NULL, 0);
	value->given = true;
	value->number = number;
}

void
units_from_uuid(const pg_uuid_t *uuid, char buffer[UUID_TEXT_LENGTH],
				UnitValue *value)
{
	uuid_to_text(uuid, buffer);
	value->given = true;
	value->number = NULL;
	value->text.data = buffer;
	value->text.length = UUID_TEXT_LENGTH;
}

/* The hash of a value that is given. */
static inline void
value_hash(const UnitValue *value, UnitHash *hash)
{
	char digits[ENGINE_MAX_UID];
	size_t length;

	if (likely(value->number == NULL))
	{
		unit_hash(value->text.data, value->text.length, hash);
		return;
	}
	if (jsonb_number_text(value->number, digits, &length) ==
		NUMBER_TEXT_INTEGRAL)
	{
		unit_hash(digits, length, hash);
		return;
	}
	unit_hash_number(jsonb_number_finite(value->number), hash);
}

/* The text that is hashed; refers to the value or to digits. */
static EngineText
value_text(const UnitValue *value, char digits[ENGINE_MAX_UID])
{
	EngineText text = {digits, 0};

	if (likely(value->number == NULL))
		return value->text;
	if (jsonb_number_text(value->number, digits, &text.length) !=
		NUMBER_TEXT_INTEGRAL)
		text.length =
			number_to_fixed(jsonb_number_finite(value->number), 0, digits);
	return text;
}

void
unit_list_digest(UnitList *list, uint32 index)
{
	ListedUnit *listed = &list->listed[index];
	char digits[ENGINE_MAX_UID];
	EngineText text;

	if (listed->digested)
		return;
	text = value_text(&listed->value, digits);
	unit_digest(text.data, text.length, list->units[index].hash);
	listed->digested = true;
}

void
unit_list_digest_all(UnitList *list)
{
	uint32 index;

	for (index = 0; index < list->count; index++)
		unit_list_digest(list, index);
}

void
unit_value_hash(const UnitValue *value, UnitHash *hash,
				uint8 digest[ENCODING_UNIT_BYTES])
{
	char digits[ENGINE_MAX_UID];
	EngineText text = value_text(value, digits);

	unit_hash_and_digest(text.data, text.length, hash, digest);
}

bool
unit_from_value(void *context, const SnapExperiment *experiment, UnitHash *hash)
{
	const UnitValue *value = context;

	if (!value->given)
		return false;
	value_hash(value, hash);
	return true;
}

bool
unit_from_slots(void *context, const SnapExperiment *experiment, UnitHash *hash)
{
	UnitSlot *slot = &((UnitSlots *) context)->slots[experiment->unit_slot];

	if (!slot->value.given)
		return false;
	if (!slot->hashed)
	{
		value_hash(&slot->value, &slot->hash);
		slot->hashed = true;
	}
	*hash = slot->hash;
	return true;
}

bool
unit_from_list(void *context, const SnapExperiment *experiment, UnitHash *hash)
{
	UnitList *list = context;
	ListedUnit *listed;

	if (list->own < 0)
		return false;
	listed = &list->listed[list->own];
	if (!listed->hashed)
	{
		unit_value_hash(&listed->value, &listed->hash,
						list->units[list->own].hash);
		listed->digested = true;
		listed->hashed = true;
	}
	*hash = listed->hash;
	return true;
}
