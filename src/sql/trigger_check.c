/*
 * trigger_check.c
 *		Triggers that cannot work: found when they are made, when a command
 *		changes their table, and by absmartly_check_triggers() (DESIGN 3.4).
 *
 * An error that a trigger raises is an error of whoever writes to its table. So
 * it is raised before: by an event trigger, which sees all commands, also where
 * the library is not loaded yet.  It looks at what the command has left, and
 * only at triggers of relations that the command has changed: another trigger
 * that does not work is not this command's fault.
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/event_trigger.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "compat.h"
#include "settings.h"
#include "sql/function.h"
#include "sql/trigger.h"

/* A trigger, and the relation that it is on. */
typedef struct TriggerPlace
{
	Oid trigger;
	Oid relation;
} TriggerPlace;

/* Triggers of the function's that fire; those of partitions are their parent's.
 */
#define TRIGGERS                                               \
	"SELECT t.oid, t.tgrelid FROM pg_catalog.pg_trigger AS t " \
	"WHERE t.tgfoid OPERATOR(pg_catalog.=) $1 "                \
	"AND t.tgparentid OPERATOR(pg_catalog.=) '0'::pg_catalog.oid "

#define ENABLED \
	"AND t.tgenabled OPERATOR(pg_catalog.<>) 'D'::pg_catalog.\"char\" "

#define OF_CHANGED                               \
	"AND t.tgrelid OPERATOR(pg_catalog.=) ANY (" \
	"SELECT changed.relation FROM changed)"

/* Relations that a command has changed, with those that inherit the change. */
#define CHANGED_BY_COMMAND(others)                                             \
	"WITH RECURSIVE changed (relation) AS ("                                   \
	"(SELECT c.objid FROM pg_catalog.pg_event_trigger_ddl_commands() AS c "    \
	"WHERE c.classid OPERATOR(pg_catalog.=) '1259'::pg_catalog.oid "           \
	"UNION SELECT r.tgrelid "                                                  \
	"FROM pg_catalog.pg_event_trigger_ddl_commands() AS c "                    \
	"JOIN pg_catalog.pg_trigger AS r ON r.oid OPERATOR(pg_catalog.=) c.objid " \
	"WHERE c.classid OPERATOR(pg_catalog.=) '2620'::pg_catalog.oid" others     \
	") UNION SELECT i.inhrelid FROM changed JOIN pg_catalog.pg_inherits AS i " \
	"ON i.inhparent OPERATOR(pg_catalog.=) changed.relation) "

/* Tables of a composite type that was changed. */
#define OF_TYPE                                                              \
	" UNION SELECT k.oid "                                                   \
	"FROM pg_catalog.pg_event_trigger_ddl_commands() AS c "                  \
	"JOIN pg_catalog.pg_class AS y ON y.oid OPERATOR(pg_catalog.=) c.objid " \
	"JOIN pg_catalog.pg_class AS k "                                         \
	"ON k.reloftype OPERATOR(pg_catalog.=) y.reltype "                       \
	"WHERE c.classid OPERATOR(pg_catalog.=) '1259'::pg_catalog.oid "         \
	"AND y.relkind OPERATOR(pg_catalog.=) 'c'::pg_catalog.\"char\""

/*
 * Relations that have lost a column, with whatever it has depended on.  One
 * that the command has named is of ALTER TABLE, whose end is looked at.
 */
#define DROPPED_COLUMNS                                              \
	"SELECT d.objid "                                                \
	"FROM pg_catalog.pg_event_trigger_dropped_objects() AS d "       \
	"WHERE d.classid OPERATOR(pg_catalog.=) '1259'::pg_catalog.oid " \
	"AND d.objsubid OPERATOR(pg_catalog.<>) 0 AND NOT d.original"

#define CHANGED_BY_DROP "WITH changed (relation) AS (" DROPPED_COLUMNS ") "

/* Those that the user may make, or fire. */
#define OF_USER                                            \
	"AND pg_catalog.has_table_privilege(t.tgrelid, "       \
	"'INSERT, UPDATE, DELETE, TRIGGER'::pg_catalog.text) " \
	"ORDER BY t.tgrelid, t.tgname"

/* The trigger function that is in the schema of this one. */
static Oid
track_function(FunctionCallInfo fcinfo)
{
	Oid schema = get_func_namespace(fcinfo->flinfo->fn_oid);

	return GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
						   CStringGetDatum("absmartly_track_trigger"),
						   PointerGetDatum(buildoidvector(NULL, 0)),
						   ObjectIdGetDatum(schema));
}

/* The triggers that a query names, in the current memory context. */
static TriggerPlace *
find_triggers(const char *query, Oid function, uint64 *count)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid types[] = {OIDOID};
	Datum values[] = {ObjectIdGetDatum(function)};
	TriggerPlace *places;

	SPI_connect();
	if (SPI_execute_with_args(query, lengthof(types), types, values, NULL,
							  false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not look for triggers");
	*count = SPI_processed;
	places = MemoryContextAlloc(caller, (*count + 1) * sizeof(TriggerPlace));
	for (uint64 i = 0; i < *count; i++)
	{
		HeapTuple tuple = SPI_tuptable->vals[i];
		TupleDesc columns = SPI_tuptable->tupdesc;
		bool isnull;

		places[i].trigger =
			DatumGetObjectId(SPI_getbinval(tuple, columns, 1, &isnull));
		places[i].relation =
			DatumGetObjectId(SPI_getbinval(tuple, columns, 2, &isnull));
	}
	SPI_finish();
	return places;
}

/* Whether a command has dropped a column: few do. */
static bool
column_was_dropped(void)
{
	bool was;

	SPI_connect();
	/* not read-only: DROP INDEX CONCURRENTLY leaves no snapshot */
	if (SPI_execute(DROPPED_COLUMNS, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look for dropped columns");
	was = SPI_processed > 0;
	SPI_finish();
	return was;
}

static Trigger *
trigger_of(Relation relation, Oid trigger)
{
	TriggerDesc *triggers = relation->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
		if (triggers->triggers[i].tgoid == trigger)
			return &triggers->triggers[i];
	return NULL;
}

/*
 * The end of a command
 */

/* created: the command has made triggers, else it has changed their tables. */
static void
report(ErrorData *problem, bool created)
{
	if (!created)
		problem->hint = _("Drop the trigger before, or disable it, and create "
						  "it again as it has to be afterwards.");
	if (settings_trigger_errors == TRIGGER_ERRORS_ERROR)
		ReThrowError(problem);
	ereport(WARNING,
			(errcode(problem->sqlerrcode),
			 errmsg_internal("%s", problem->message),
			 problem->detail ? errdetail_internal("%s", problem->detail) : 0,
			 problem->hint ? errhint("%s", problem->hint) : 0,
			 problem->context ? errcontext("%s", problem->context) : 0));
}

/*
 * What the command has changed it has locked.  A relation that can't be locked
 * without waiting is somebody else's to check.
 */
static void
check_place(const TriggerPlace *place, bool created)
{
	Relation relation = NULL;
	Trigger *trigger;
	ErrorData *problem;

	if (ConditionalLockRelationOid(place->relation, AccessShareLock))
		relation = try_relation_open(place->relation, NoLock);
	if (relation == NULL)
		return;
	trigger = trigger_of(relation, place->trigger);
	problem = trigger ? trigger_problem(relation, trigger) : NULL;
	relation_close(relation, AccessShareLock);
	if (problem != NULL)
		report(problem, created);
}

PG_FUNCTION_INFO_V1(absmartly_check_command);

/*
 * absmartly_check_command() -> event_trigger
 *
 * Raises the error of a trigger that cannot work after the command, or warns of
 * it, as absmartly.trigger_errors says.
 */
SQL_FUNCTION(absmartly_check_command)
{
	const EventTriggerData *data = (const EventTriggerData *) fcinfo->context;
	const char *query = CHANGED_BY_COMMAND("") TRIGGERS ENABLED OF_CHANGED;
	TriggerPlace *places;
	uint64 count;
	Oid function;

	if (!CALLED_AS_EVENT_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_EVENT_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("%s() was not called by an event trigger",
						"absmartly_check_command")));
	function = track_function(fcinfo);
	if (!OidIsValid(function) || IsBinaryUpgrade)
		PG_RETURN_NULL();
	if (strcmp(data->event, "sql_drop") == 0)
	{
		if (!column_was_dropped())
			PG_RETURN_NULL();
		query = CHANGED_BY_DROP TRIGGERS ENABLED OF_CHANGED;
	}
	else if (data->tag == CMDTAG_ALTER_TYPE)
		query = CHANGED_BY_COMMAND(OF_TYPE) TRIGGERS ENABLED OF_CHANGED;
	places = find_triggers(query, function, &count);
	for (uint64 i = 0; i < count; i++)
		check_place(&places[i], data->tag == CMDTAG_CREATE_TRIGGER ||
									data->tag == CMDTAG_CREATE_SCHEMA);
	PG_RETURN_NULL();
}

/*
 * All triggers
 */

#define PROBLEM_COLUMNS 7

static Datum
optional_text(const char *text, bool *isnull)
{
	*isnull = text == NULL;
	return text ? CStringGetTextDatum(text) : (Datum) 0;
}

PG_FUNCTION_INFO_V1(absmartly_check_triggers);

/*
 * absmartly_check_triggers() -> table
 *
 * The triggers of absmartly_track_trigger() that cannot work, on tables of
 * which the user may change rows or make triggers, and why they can't.
 */
SQL_FUNCTION(absmartly_check_triggers)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	TriggerPlace *places;
	uint64 count;

	InitMaterializedSRF(fcinfo, 0);
	places = find_triggers(TRIGGERS OF_USER, track_function(fcinfo), &count);
	for (uint64 i = 0; i < count; i++)
	{
		Relation relation =
			try_relation_open(places[i].relation, AccessShareLock);
		Trigger *trigger;
		ErrorData *problem;

		CHECK_FOR_INTERRUPTS();
		if (relation == NULL)
			continue;
		trigger = trigger_of(relation, places[i].trigger);
		problem = trigger ? trigger_problem(relation, trigger) : NULL;
		if (problem != NULL)
		{
			Datum values[PROBLEM_COLUMNS];
			bool nulls[PROBLEM_COLUMNS] = {false};
			int column = 0;

			values[column++] = ObjectIdGetDatum(places[i].relation);
			values[column++] =
				DirectFunctionCall1(namein, CStringGetDatum(trigger->tgname));
			values[column++] =
				BoolGetDatum(trigger->tgenabled != TRIGGER_DISABLED);
			values[column++] =
				CStringGetTextDatum(unpack_sql_state(problem->sqlerrcode));
			values[column++] = CStringGetTextDatum(problem->message);
			values[column] = optional_text(problem->detail, &nulls[column]);
			column++;
			values[column] = optional_text(problem->hint, &nulls[column]);
			tuplestore_putvalues(result->setResult, result->setDesc, values,
								 nulls);
			FreeErrorData(problem);
		}
		relation_close(relation, AccessShareLock);
	}
	return (Datum) 0;
}
