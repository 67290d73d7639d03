/*
 * trigger.c
 *		absmartly_track_trigger(), which tracks a goal for each row (DESIGN
 *		3.4).
 *
 * What the trigger's arguments say about a relation's columns is worked out
 * once and kept; the relation's cache tells when it is to be worked out anew.
 * A row is read from the executor's slot, only up to the last column that is
 * needed.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "engine/hash.h"
#include "engine/number.h"
#include "events/buffer.h"
#include "settings.h"
#include "sql/function.h"
#include "sql/pairs.h"
#include "sql/recording.h"
#include "sql/row_json.h"
#include "sql/text.h"
#include "sql/trigger.h"
#include "sql/units.h"
#include "subtransaction.h"

/* the trigger's arguments, in their order */
#define ARGUMENT_GOAL 0
#define ARGUMENT_UNITS 1
#define ARGUMENT_PROPERTIES 2
#define ARGUMENT_OPTIONS 3 /* and all that follow */

typedef struct TrackUnit
{
	AttrNumber column;
	ColumnKind kind;
	TextCast cast; /* if it is none of the kinds of numbers or uuid */
	EngineText type;
} TrackUnit;

typedef struct TrackProperty
{
	AttrNumber column; /* 0: prefix is all of it */
	ColumnWriter writer;
	EngineText prefix; /* all that precedes the value: {"name": or ,"name": */
} TrackProperty;

/* What a trigger does with the rows of a relation. */
typedef struct TrackMap
{
	MemoryContext context; /* that it lies in */
	bool valid; /* the relation has not changed since */
	Oid trigger;
	Oid relation;
	EngineText goal;
	int ncolumns; /* up to the last one that is needed */
	int nunits;
	TrackUnit *units;
	int nproperties;
	TrackProperty *properties;
	AttrNumber achieved_at; /* 0: none */
	AttrNumber attributes;
} TrackMap;

typedef struct MapKey
{
	Oid trigger;
	Oid relation;
} MapKey;

typedef struct MapEntry
{
	MapKey key;
	TrackMap *map;
} MapEntry;

/* A row on its way, and what a message about it needs. */
typedef struct TrackedRow
{
	const TriggerData *data;
	AttrNumber column; /* that is being read; 0: none */
	bool named; /* the error names trigger and table itself */
} TrackedRow;

static HTAB *maps = NULL;
static MemoryContext maps_context;
static TrackMap *last_map = NULL; /* that was found */
static bool maps_stale = false; /* some are not valid any more */

/*
 * Errors.  Those of this file name trigger and table; others are given them as
 * their context.
 */

static const char *
trigger_name(const TrackedRow *row)
{
	return row->data->tg_trigger->tgname;
}

static const char *
table_name(const TrackedRow *row)
{
	return RelationGetRelationName(row->data->tg_relation);
}

static const char *
column_name(const TrackedRow *row, AttrNumber column)
{
	TupleDesc columns = RelationGetDescr(row->data->tg_relation);

	return NameStr(TupleDescAttr(columns, column - 1)->attname);
}

/* For ereport(): the message names trigger and table. */
static int
errnamed(TrackedRow *row)
{
	row->named = true;
	return errtable(row->data->tg_relation);
}

/* The same, and a column is at fault.  An error takes its table only once. */
static int
errnamed_column(TrackedRow *row, AttrNumber column)
{
	row->named = true;
	return errtablecol(row->data->tg_relation, column);
}

/* Where in a row something else has gone wrong. */
static const char *
place_of_error(const TrackedRow *row)
{
	if (row->column != 0)
		return psprintf(_("trigger \"%s\" on table \"%s\", column \"%s\""),
						trigger_name(row), table_name(row),
						column_name(row, row->column));
	return psprintf(_("trigger \"%s\" on table \"%s\""), trigger_name(row),
					table_name(row));
}

static void
error_callback(void *argument)
{
	const TrackedRow *row = argument;

	if (!row->named)
		errcontext("%s", place_of_error(row));
}

/*
 * Arguments
 */

static void
report_malformed(TrackedRow *row, const char *argument, const char *at)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errnamed(row),
			 errmsg("argument \"%s\" of trigger \"%s\" on table \"%s\" is "
					"malformed",
					argument, trigger_name(row), table_name(row)),
			 *at == '\0' ? errdetail("A name is missing at its end.")
						 : errdetail("It cannot be read from \"%s\" on.", at),
			 errhint("Write \"column\" or \"name=column\", for properties "
					 "also \"name='text'\", separated by commas.  A name with "
					 "other characters than letters, digits, \"_\" and \"$\" "
					 "needs double quotes.")));
}

/* A name in UTF-8, in the current memory context. */
static EngineText
name_to_utf8(TrackedRow *row, const char *name)
{
	EngineText utf8 = text_to_utf8(name, strlen(name));

	if (utf8.length > ENGINE_MAX_NAME)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errnamed(row),
				 errmsg("name in an argument of trigger \"%s\" on table "
						"\"%s\" is too long",
						trigger_name(row), table_name(row)),
				 errdetail("A name may have up to %d bytes, this one has %zu.",
						   ENGINE_MAX_NAME, utf8.length)));
	return utf8;
}

/*
 * The NamePairs of an argument, in the current memory context; texts only where
 * they make sense.
 */
static List *
parse_pairs(TrackedRow *row, const char *argument, bool texts)
{
	PairsError error;
	List *pairs;

	if (pairs_parse(argument, texts, &pairs, &error))
		return pairs;
	if (error.at != NULL)
		report_malformed(row, argument, error.at);
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errnamed(row),
					errmsg("name \"%s\" stands twice in argument \"%s\" of "
						   "trigger \"%s\" on table \"%s\"",
						   error.twice, argument, trigger_name(row),
						   table_name(row))));
}

/*
 * The column map
 */

static AttrNumber
find_column(TrackedRow *row, TrackMap *map, const char *name)
{
	TupleDesc columns = RelationGetDescr(row->data->tg_relation);

	for (int index = 0; index < columns->natts; index++)
	{
		Form_pg_attribute column = TupleDescAttr(columns, index);

		if (column->attisdropped || strcmp(NameStr(column->attname), name) != 0)
			continue;
		if (column_is_virtual(column))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errnamed(row),
					 errmsg("trigger \"%s\" cannot use column \"%s\" of table "
							"\"%s\"",
							trigger_name(row), name, table_name(row)),
					 errdetail("Virtual generated columns have no values in "
							   "triggers.")));
		map->ncolumns = Max(map->ncolumns, index + 1);
		return (AttrNumber) (index + 1);
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN), errnamed(row),
			 errmsg("trigger \"%s\" names column \"%s\", which table \"%s\" "
					"does not have",
					trigger_name(row), name, table_name(row)),
			 errhint("Names are folded to lower case unless they are in "
					 "double quotes.")));
}

static Oid
column_type(const TrackedRow *row, AttrNumber column)
{
	return TupleDescAttr(RelationGetDescr(row->data->tg_relation), column - 1)
		->atttypid;
}

/* hint: what may help, or NULL. */
static void
report_wrong_type(TrackedRow *row, AttrNumber column, const char *use,
				  const char *types, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATATYPE_MISMATCH), errnamed_column(row, column),
			 errmsg("trigger \"%s\" cannot use column \"%s\" of table "
					"\"%s\" as %s",
					trigger_name(row), column_name(row, column),
					table_name(row), use),
			 errdetail("It is of type %s, and must be of type %s.",
					   format_type_be(column_type(row, column)), types),
			 hint ? errhint("%s", hint) : 0));
}

/* A time without a zone is no moment: only the user knows which one it is. */
static char *
timestamp_hint(const TrackedRow *row, AttrNumber column)
{
	const char *name = quote_identifier(column_name(row, column));

	if (getBaseType(column_type(row, column)) != TIMESTAMPOID)
		return NULL;
	return psprintf(_("Make it timestamptz, with ALTER COLUMN %s TYPE "
					  "timestamptz USING %s AT TIME ZONE 'UTC', or whatever "
					  "zone its times are of; or name a column GENERATED "
					  "ALWAYS AS (%s AT TIME ZONE 'UTC') STORED."),
					name, name, name);
}

static void
map_units(TrackedRow *row, TrackMap *map, const char *argument)
{
	List *pairs = parse_pairs(row, argument, false);
	ListCell *cell;

	if (pairs == NIL || list_length(pairs) > ENCODING_MAX_UNITS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errnamed(row),
				 errmsg("trigger \"%s\" on table \"%s\" has %s units",
						trigger_name(row), table_name(row),
						pairs == NIL ? "no" : "too many"),
				 errhint("The second argument names from 1 to %d of them, as "
						 "in 'user_id=customer_id'.",
						 ENCODING_MAX_UNITS)));

	map->units = palloc(list_length(pairs) * sizeof(TrackUnit));
	foreach (cell, pairs)
	{
		const NamePair *pair = lfirst(cell);
		TrackUnit *unit = &map->units[map->nunits++];

		unit->type = name_to_utf8(row, pair->name);
		unit->column = find_column(row, map, pair->column);
		unit->kind = column_kind(column_type(row, unit->column));
		if (!unit_type_allowed(column_type(row, unit->column)))
			report_wrong_type(row, unit->column, "a unit", UNIT_TYPES_ALLOWED,
							  NULL);
		text_cast_init(&unit->cast, column_type(row, unit->column),
					   map->context);
	}
}

/* The next property: its name in UTF-8, and its column or its text. */
static void
map_property(TrackedRow *row, TrackMap *map, EngineText name, AttrNumber column,
			 const char *constant)
{
	TrackProperty *property = &map->properties[map->nproperties];
	StringInfoData prefix;

	initStringInfo(&prefix);
	appendStringInfoChar(&prefix, map->nproperties == 0 ? '{' : ',');
	json_append_string(&prefix, name);
	appendStringInfoChar(&prefix, ':');
	if (constant != NULL)
		json_append_string(&prefix, text_to_utf8(constant, strlen(constant)));
	else
		column_writer_init(&property->writer, column_type(row, column),
						   map->context);
	property->prefix.data = prefix.data;
	property->prefix.length = prefix.len;
	property->column = column;
	map->nproperties++;
}

static void
map_all_properties(TrackedRow *row, TrackMap *map)
{
	TupleDesc columns = RelationGetDescr(row->data->tg_relation);

	map->properties = palloc(columns->natts * sizeof(TrackProperty));
	for (int index = 0; index < columns->natts; index++)
	{
		Form_pg_attribute column = TupleDescAttr(columns, index);

		if (column->attisdropped || column_is_virtual(column))
			continue;
		map_property(row, map,
					 name_to_utf8(row, pstrdup(NameStr(column->attname))),
					 (AttrNumber) (index + 1), NULL);
		map->ncolumns = Max(map->ncolumns, index + 1);
	}
}

static void
map_properties(TrackedRow *row, TrackMap *map, const char *argument)
{
	List *pairs;
	ListCell *cell;

	if (pairs_are_all(argument))
	{
		map_all_properties(row, map);
		return;
	}
	pairs = parse_pairs(row, argument, true);
	if (pairs == NIL)
		return;
	map->properties = palloc(list_length(pairs) * sizeof(TrackProperty));
	foreach (cell, pairs)
	{
		const NamePair *pair = lfirst(cell);

		map_property(row, map, name_to_utf8(row, pair->name),
					 pair->column ? find_column(row, map, pair->column) : 0,
					 pair->constant);
	}
}

/* Reads an option that names a column of a certain type. */
static bool
map_option(TrackedRow *row, TrackMap *map, const NamePair *pair,
		   const char *name, Oid type, AttrNumber *column)
{
	if (strcmp(pair->name, name) != 0)
		return false;
	if (*column != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errnamed(row),
				 errmsg("option \"%s\" of trigger \"%s\" on table \"%s\" is "
						"given twice",
						name, trigger_name(row), table_name(row))));
	*column = find_column(row, map, pair->column);
	if (getBaseType(column_type(row, *column)) != type)
		report_wrong_type(
			row, *column, psprintf("\"%s\"", name), format_type_be(type),
			type == TIMESTAMPTZOID ? timestamp_hint(row, *column) : NULL);
	return true;
}

static void
map_options(TrackedRow *row, TrackMap *map, const char *argument)
{
	ListCell *cell;

	foreach (cell, parse_pairs(row, argument, false))
	{
		const NamePair *pair = lfirst(cell);

		if (!map_option(row, map, pair, "achieved_at", TIMESTAMPTZOID,
						&map->achieved_at) &&
			!map_option(row, map, pair, "attributes", JSONBOID,
						&map->attributes))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errnamed(row),
					 errmsg("unknown option \"%s\" of trigger \"%s\" on table "
							"\"%s\"",
							pair->name, trigger_name(row), table_name(row)),
					 errhint("After goal, units and properties there may be "
							 "\"achieved_at=column\" and "
							 "\"attributes=column\".")));
	}
}

/* A map in a memory context that goes away with the current one. */
static TrackMap *
make_map(TrackedRow *row)
{
	const Trigger *trigger = row->data->tg_trigger;
	MemoryContext context;
	MemoryContext previous;
	TrackMap *map;

	if (trigger->tgnargs <= ARGUMENT_UNITS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errnamed(row),
				 errmsg("trigger \"%s\" on table \"%s\" has too few arguments",
						trigger_name(row), table_name(row)),
				 errhint("Give a goal, units and properties, as in "
						 "absmartly_track_trigger('payment', "
						 "'user_id=customer_id', 'amount,currency').")));

	context = AllocSetContextCreate(CurrentMemoryContext, "absmartly trigger",
									ALLOCSET_SMALL_SIZES);
	previous = MemoryContextSwitchTo(context);
	map = palloc0(sizeof(TrackMap));
	map->context = context;
	map->valid = true;
	map->trigger = trigger->tgoid;
	map->relation = RelationGetRelid(row->data->tg_relation);
	map->goal =
		recording_goal_name(cstring_to_text(trigger->tgargs[ARGUMENT_GOAL]));
	map_units(row, map, trigger->tgargs[ARGUMENT_UNITS]);
	if (trigger->tgnargs > ARGUMENT_PROPERTIES)
		map_properties(row, map, trigger->tgargs[ARGUMENT_PROPERTIES]);
	for (int index = ARGUMENT_OPTIONS; index < trigger->tgnargs; index++)
		map_options(row, map, trigger->tgargs[index]);
	MemoryContextSwitchTo(previous);
	return map;
}

/*
 * The cache of maps
 */

/* A relation has changed, or (InvalidOid) any may have. */
static void
relation_changed(Datum argument, Oid relation)
{
	HASH_SEQ_STATUS scan;
	MapEntry *entry;

	hash_seq_init(&scan, maps);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (relation == InvalidOid || entry->key.relation == relation)
		{
			entry->map->valid = false;
			maps_stale = true;
		}
	}
}

/* A unit's cast to text may be another one. */
static void
cast_changed(Datum argument, SysCacheIdentifier cache, uint32 hash)
{
	relation_changed(argument, InvalidOid);
}

/*
 * Removes the maps that are not valid any more.  A trigger further out may be
 * using one: they live until the transaction ends.
 */
static void
sweep_maps(void)
{
	HASH_SEQ_STATUS scan;
	MapEntry *entry;

	maps_stale = false;
	last_map = NULL;
	hash_seq_init(&scan, maps);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (entry->map->valid)
			continue;
		MemoryContextSetParent(entry->map->context, TopTransactionContext);
		hash_search(maps, &entry->key, HASH_REMOVE, NULL);
	}
}

static void
make_cache(void)
{
	HASHCTL control = {0};

	if (maps_context == NULL)
		maps_context = AllocSetContextCreate(
			CacheMemoryContext, "absmartly triggers", ALLOCSET_SMALL_SIZES);
	control.keysize = sizeof(MapKey);
	control.entrysize = sizeof(MapEntry);
	control.hcxt = maps_context;
	maps = hash_create("absmartly triggers", 16, &control,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(CASTSOURCETARGET, cast_changed, (Datum) 0);
}

static TrackMap *
find_map(TrackedRow *row)
{
	MapKey key = {row->data->tg_trigger->tgoid,
				  RelationGetRelid(row->data->tg_relation)};
	MapEntry *entry;

	if (likely(last_map != NULL && last_map->valid &&
			   last_map->trigger == key.trigger &&
			   last_map->relation == key.relation))
		return last_map;

	if (maps == NULL)
		make_cache();
	if (maps_stale)
		sweep_maps();
	entry = hash_search(maps, &key, HASH_FIND, NULL);
	if (entry == NULL)
	{
		TrackMap *map = make_map(row);

		entry = hash_search(maps, &key, HASH_ENTER, NULL);
		entry->map = map;
		MemoryContextSetParent(map->context, maps_context);
	}
	last_map = entry->map;
	return last_map;
}

/*
 * Rows
 */

static void
report_wrong_timing(TrackedRow *row, const char *timing, bool each_row)
{
	ereport(ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED), errnamed(row),
			 errmsg("trigger \"%s\" on table \"%s\" must be AFTER INSERT, "
					"UPDATE or DELETE and FOR EACH ROW",
					trigger_name(row), table_name(row)),
			 errdetail("It is %s and %s.", timing,
					   each_row ? "FOR EACH ROW" : "FOR EACH STATEMENT")));
}

static void
check_timing(TrackedRow *row)
{
	TriggerEvent event = row->data->tg_event;

	if (unlikely(!TRIGGER_FIRED_AFTER(event) || !TRIGGER_FIRED_FOR_ROW(event)))
		report_wrong_timing(row,
							TRIGGER_FIRED_BEFORE(event)  ? "BEFORE"
							: TRIGGER_FIRED_AFTER(event) ? "AFTER"
														 : "INSTEAD OF",
							TRIGGER_FIRED_FOR_ROW(event));
}

static void
report_wrong_unit(TrackedRow *row, const TrackUnit *unit, const char *problem)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errnamed_column(row, unit->column),
			 errmsg("unit \"%s\" of trigger \"%s\" on table \"%s\" %s",
					text_for_message(unit->type), trigger_name(row),
					table_name(row), problem),
			 errdetail("It comes from column \"%s\" and must have from 1 to "
					   "%d characters.",
					   column_name(row, unit->column), ENGINE_MAX_UID)));
}

/* False if it has no text, and counts as null. */
static bool
hash_text_unit(TrackedRow *row, TrackUnit *unit, Datum value, uint8 *digest)
{
	const text *datum = text_cast(&unit->cast, value);
	EngineText uid;

	if (unlikely(datum == NULL))
		return false;
	uid = text_trimmed(text_datum_to_utf8(datum));
	if (uid.length == 0)
		report_wrong_unit(row, unit, "is blank");
	if (text_is_longer(uid, ENGINE_MAX_UID))
		report_wrong_unit(row, unit, "is too long");
	unit_digest(uid.data, uid.length, digest);
	return true;
}

/* Reads the units that are not null; returns their number. */
static uint32
read_units(TrackedRow *row, const TrackMap *map, const TupleTableSlot *slot,
		   EventUnit *units)
{
	uint32 count = 0;

	for (int index = 0; index < map->nunits; index++)
	{
		TrackUnit *unit = &map->units[index];
		Datum value = slot->tts_values[unit->column - 1];
		char text[Max(MAXINT8LEN + 1, UUID_TEXT_LENGTH)];
		int length;

		if (slot->tts_isnull[unit->column - 1])
			continue;
		units[count].type = unit->type;
		switch (unit->kind)
		{
			case COLUMN_INT2:
				length = pg_ltoa((int32) DatumGetInt16(value), text);
				break;
			case COLUMN_INT4:
				length = pg_ltoa(DatumGetInt32(value), text);
				break;
			case COLUMN_INT8:
				length = pg_lltoa(DatumGetInt64(value), text);
				break;
			case COLUMN_UUID:
				uuid_to_text(DatumGetUUIDP(value), text);
				length = UUID_TEXT_LENGTH;
				break;
			default:
				row->column = unit->column;
				if (hash_text_unit(row, unit, value, units[count].hash))
					count++;
				row->column = 0;
				continue;
		}
		unit_digest(text, (size_t) length, units[count].hash);
		count++;
	}
	return count;
}

/*
 * The properties as JSON text; false if there is no use in making it, since it
 * gets too large.
 */
static bool
write_properties(TrackedRow *row, TrackMap *map, const TupleTableSlot *slot,
				 EngineText *result)
{
	StringInfoData json;

	result->data = NULL;
	result->length = 0;
	if (map->nproperties == 0)
		return true;

	initStringInfo(&json);
	for (int index = 0; index < map->nproperties; index++)
	{
		TrackProperty *property = &map->properties[index];
		int at = property->column - 1;

		appendBinaryStringInfo(&json, property->prefix.data,
							   (int) property->prefix.length);
		if (property->column == 0)
		{
			/* texts of the trigger's are bounded as a column's is */
			if ((Size) json.len > recording_most_json())
				return false;
			continue;
		}
		if (slot->tts_isnull[at])
		{
			appendBinaryStringInfo(&json, "null", 4);
			continue;
		}
		row->column = property->column;
		if (!column_write(&property->writer, slot->tts_values[at], &json,
						  recording_most_json()))
			return false;
	}
	row->column = 0;
	appendStringInfoChar(&json, '}');
	result->data = json.data;
	result->length = json.len;
	return true;
}

/*
 * What is too large goes without its properties, and if need be without its
 * attributes: the goal itself is not lost.
 */
static void
make_fit(TrackedRow *row, EventContext *context, EventGoal *goal,
		 bool attributes_fit)
{
	const char *missing = "its properties";

	goal->properties.data = NULL;
	goal->properties.length = 0;
	if (!attributes_fit ||
		!buffer_event_fits(encoder_goal_bound(context, goal)))
	{
		missing = "its properties and attributes";
		context->attributes = NULL;
		context->nattributes = 0;
		context->set_at = 0;
	}
	ereport(
		WARNING,
		(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errnamed(row),
		 errmsg("goal of trigger \"%s\" on table \"%s\" is tracked without "
				"%s",
				trigger_name(row), table_name(row), missing),
		 recording_take_too_deep()
			 ? errdetail("They are nested more than %d deep.", ENGINE_MAX_DEPTH)
			 : errdetail("It is larger than \"absmartly.max_event_size\", "
						 "%d kB.",
						 settings_max_event_size)));
	row->named = false;
}

static void
track_row(TrackedRow *row)
{
	TupleTableSlot *slot;
	TrackMap *map;
	EventContext context = {0};
	EventGoal goal;
	EventUnit *units;
	Datum attributes = (Datum) 0;
	bool attributes_fit = true;
	bool fits;

	check_timing(row);
	map = find_map(row);
	slot = TRIGGER_FIRED_BY_UPDATE(row->data->tg_event)
			   ? row->data->tg_newslot
			   : row->data->tg_trigslot;
	slot_getsomeattrs(slot, map->ncolumns);

	units = palloc(map->nunits * sizeof(EventUnit));
	context.nunits = read_units(row, map, slot, units);
	if (context.nunits == 0)
		return;
	context.units = units;
	context.historic = settings_historic;

	goal.name = map->goal;
	if (map->achieved_at != 0 && !slot->tts_isnull[map->achieved_at - 1])
	{
		row->column = map->achieved_at;
		goal.achieved_at = recording_time_ms(
			DatumGetTimestampTz(slot->tts_values[map->achieved_at - 1]),
			"achieved_at");
	}
	else
		goal.achieved_at = buffer_time_ms(GetCurrentTimestamp());

	row->column = map->attributes;
	if (map->attributes != 0 && !slot->tts_isnull[map->attributes - 1])
		attributes = slot->tts_values[map->attributes - 1];
	if (attributes != (Datum) 0 || settings_include_system_attributes)
		context.attributes = recording_attributes(
			attributes, &context.nattributes, &attributes_fit);
	if (context.nattributes > 0)
		context.set_at = goal.achieved_at;

	fits = write_properties(row, map, slot, &goal.properties);
	row->column = 0;
	if (unlikely(!fits || !attributes_fit ||
				 !buffer_event_fits(encoder_goal_bound(&context, &goal))))
		make_fit(row, &context, &goal, attributes_fit);
	buffer_goal(&context, &goal);
}

/*
 * absmartly.trigger_errors = warning: whatever is wrong with a row, it passes.
 */

/* Errors that are about the transaction, not about the row. */
static bool
error_ends_transaction(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
		   ERRCODE_TO_CATEGORY(error->sqlerrcode) ==
			   ERRCODE_TRANSACTION_ROLLBACK;
}

static void
warn(TrackedRow *row, const ErrorData *error)
{
	const char *message = error->message;

	if (!row->named)
		message = psprintf("%s: %s", place_of_error(row), message);
	row->named = true;
	ereport(WARNING,
			(errcode(error->sqlerrcode), errnamed(row),
			 errmsg_internal("%s", message),
			 error->detail ? errdetail_internal("%s", error->detail) : 0,
			 error->hint ? errhint("%s", error->hint) : 0));
}

/* In a subtransaction, since what has failed may have to be undone. */
static void
track_row_or_warn(TrackedRow *row)
{
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(caller);
	PG_TRY();
	{
		track_row(row);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(caller);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		ErrorData *error = subtransaction_undo(caller, owner);

		if (error_ends_transaction(error))
			ReThrowError(error);
		warn(row, error);
		FreeErrorData(error);
	}
	PG_END_TRY();
}

/*
 * Triggers that are not firing
 */

/* All that can be told of a trigger without a row. */
static void
check_definition(TrackedRow *row)
{
	int16 type = row->data->tg_trigger->tgtype;

	if (!TRIGGER_FOR_AFTER(type) || !TRIGGER_FOR_ROW(type))
		report_wrong_timing(row,
							TRIGGER_FOR_BEFORE(type)  ? "BEFORE"
							: TRIGGER_FOR_AFTER(type) ? "AFTER"
													  : "INSTEAD OF",
							TRIGGER_FOR_ROW(type));
	MemoryContextDelete(make_map(row)->context);
}

ErrorData *
trigger_problem(Relation relation, Trigger *trigger)
{
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	TriggerData data = {.tg_relation = relation, .tg_trigger = trigger};
	TrackedRow row = {.data = &data};
	ErrorContextCallback callback = {error_context_stack, error_callback, &row};
	ErrorData *volatile problem = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(caller);
	PG_TRY();
	{
		error_context_stack = &callback;
		check_definition(&row);
		error_context_stack = callback.previous;
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(caller);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		problem = subtransaction_undo(caller, owner);
		if (error_ends_transaction(problem))
			ReThrowError(problem);
	}
	PG_END_TRY();
	return problem;
}

PG_FUNCTION_INFO_V1(absmartly_track_trigger);

/*
 * absmartly_track_trigger(goal, units, properties, options...) -> trigger
 *
 * Queues a goal for a row: that of INSERT, the new one of UPDATE, the old one
 * of DELETE.
 */
SQL_FUNCTION(absmartly_track_trigger)
{
	TrackedRow row = {0};
	ErrorContextCallback callback;
	HeapTuple passing;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
						errmsg("absmartly_track_trigger() can only be called "
							   "by a trigger")));
	row.data = (const TriggerData *) fcinfo->context;

	callback.callback = error_callback;
	callback.arg = &row;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	if (likely(settings_trigger_errors == TRIGGER_ERRORS_ERROR))
		track_row(&row);
	else
		track_row_or_warn(&row);
	error_context_stack = callback.previous;

	/* a trigger of the wrong timing, warned of, must not swallow the row */
	passing = row.data->tg_newtuple != NULL ? row.data->tg_newtuple
											: row.data->tg_trigtuple;
	return PointerGetDatum(TRIGGER_FIRED_AFTER(row.data->tg_event) ? NULL
																   : passing);
}
