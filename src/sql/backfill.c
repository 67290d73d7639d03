/*
 * backfill.c
 *		Procedures that make events of the rows of a table (DESIGN 6.4).
 *
 * A table is walked by a unique key, in chunks of one transaction each.  How
 * far it has got is written to the outbox in the same transaction as a chunk's
 * events, so that a backfill that was interrupted, by whatever it may be, goes
 * on with the row after the last one whose event was committed.
 *
 * Everything runs with the rights of the caller.  The queries refer to all
 * objects by their schemas, and depend on no search path.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xact.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "parser/scansup.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "compat.h"
#include "data/shared.h"
#include "events/buffer.h"
#include "events/outbox.h"
#include "events/progress.h"
#include "settings.h"
#include "sql/condition.h"
#include "sql/evaluation.h"
#include "sql/function.h"
#include "sql/pairs.h"
#include "sql/row_json.h"
#include "sql/text.h"
#include "sql/units.h"

/* bytes of a name, and of a key: each chunk writes them */
#define MAX_TEXT ((size_t) 1024 * 1024)

/* members of an object that one call of jsonb_build_object() can make */
#define OBJECT_MEMBERS 50

/* time between notices, unless the number of rows has doubled */
#define NOTICE_INTERVAL_MS 5000
#define WAIT_NOTICE_INTERVAL_MS 60000
#define WAIT_MS 200

/* times before are nobody's, nor those that are so much ahead of the clock */
#define FIRST_TIME "2000-01-01 00:00:00+00"
#define CLOCK_TOLERANCE "1 minute"

typedef struct Backfill
{
	/* what is called, and with what */
	const char *procedure;
	const char *function; /* that makes an event */
	const char *event_word; /* argument that names the goal or experiment */
	const char *time_word; /* argument that names the column of times */
	bool goals; /* or exposures */
	Oid source;
	char *key; /* as given; then the column's name */
	char *event;
	char *units;
	char *properties; /* NULL: there are none */
	char *time; /* NULL: now */
	char *attributes; /* NULL: there are none */
	char *filter; /* NULL: all rows */
	int32 chunk;
	char *name;
	bool restart;
	bool any_time; /* also times that cannot be right */
	bool unknown_experiment; /* also one that there is not */
	bool other_units; /* also without the one that it assigns */

	/* what was made of it */
	char *extension_schema;
	char *relation; /* qualified and quoted */
	List *unit_types; /* their names */
	char *start_query; /* of the first chunk */
	char *query; /* of the chunks after a position */
	bool styled_key; /* its text may depend on DateStyle and IntervalStyle */
	char *nulls_query; /* whether there is a row without key; NULL: no */

	BackfillProgress progress; /* how far it is */
} Backfill;

/*
 * Arguments
 */

pg_noreturn static void
report_malformed(const Backfill *backfill, const char *argument, const char *at)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("argument \"%s\" of %s() is malformed", argument,
					backfill->procedure),
			 *at == '\0' ? errdetail("A name is missing at its end.")
						 : errdetail("It cannot be read from \"%s\" on.", at),
			 errhint("Names follow the rules of SQL identifiers: one with "
					 "other characters than letters, digits, \"_\" and \"$\" "
					 "needs double quotes.")));
}

/* The NamePairs of an argument; texts only where they make sense. */
static List *
parse_pairs(const Backfill *backfill, const char *argument, const char *value,
			bool texts)
{
	PairsError error;
	List *pairs;

	if (pairs_parse(value, texts, &pairs, &error))
		return pairs;
	if (error.at != NULL)
		report_malformed(backfill, argument, error.at);
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("name \"%s\" stands twice in argument \"%s\" of "
						   "%s()",
						   error.twice, argument, backfill->procedure)));
}

/* An argument that is the name of one column. */
static char *
parse_column(const Backfill *backfill, const char *argument, const char *value)
{
	PairsError error;
	char *name = pairs_parse_name(value, &error);

	if (name == NULL)
		report_malformed(backfill, argument, error.at);
	return name;
}

/*
 * Finds a column, and makes its name what the catalog says: identifiers are
 * cut.
 */
static Form_pg_attribute
find_column(const Backfill *backfill, Relation relation, const char *argument,
			char *name)
{
	TupleDesc columns = RelationGetDescr(relation);

	truncate_identifier(name, (int) strlen(name), false);
	for (int index = 0; index < columns->natts; index++)
	{
		Form_pg_attribute column = TupleDescAttr(columns, index);

		if (!column->attisdropped &&
			strcmp(NameStr(column->attname), name) == 0)
			return column;
	}
	ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
					errmsg("argument \"%s\" of %s() names column \"%s\", which "
						   "relation \"%s\" does not have",
						   argument, backfill->procedure, name,
						   RelationGetRelationName(relation)),
					errhint("Names are folded to lower case unless they are in "
							"double quotes.")));
}

pg_noreturn static void
report_wrong_type(const Backfill *backfill, Relation relation,
				  Form_pg_attribute column, const char *argument,
				  const char *types)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATATYPE_MISMATCH),
			 errtablecol(relation, column->attnum),
			 errmsg("column \"%s\" of relation \"%s\" cannot be used for "
					"argument \"%s\" of %s()",
					NameStr(column->attname), RelationGetRelationName(relation),
					argument, backfill->procedure),
			 errdetail("It is of type %s, and must be of type %s.",
					   format_type_be(column->atttypid), types)));
}

/*
 * The query of a chunk
 */

/* how the queries call a row of the source */
#define ROW "absmartly_row"

static void
append_column(StringInfo query, const Form_pg_attribute column)
{
	appendStringInfo(query, ROW ".%s",
					 quote_identifier(NameStr(column->attname)));
}

/*
 * Appends a column as a property.  Only some types have the same text as JSON
 * whatever the session's settings are.
 */
static void
append_property(StringInfo query, const Backfill *backfill,
				const Form_pg_attribute column)
{
	switch (column_kind(column->atttypid))
	{
		case COLUMN_BOOL:
		case COLUMN_INT2:
		case COLUMN_INT4:
		case COLUMN_INT8:
		case COLUMN_NUMERIC:
		case COLUMN_TEXT:
		case COLUMN_UUID:
		case COLUMN_JSON:
		case COLUMN_JSONB:
			append_column(query, column);
			break;
		default:
			appendStringInfo(query, "%s.absmartly_properties(ROW(",
							 quote_identifier(backfill->extension_schema));
			append_column(query, column);
			appendStringInfoString(query, ")) OPERATOR(pg_catalog.->) "
										  "'f1'::pg_catalog.text");
			break;
	}
}

/*
 * Appends an object of many members, as a concatenation of small ones.  Values
 * are columns, which are made texts if so wanted, or texts.
 */
static void
append_object(StringInfo query, const Backfill *backfill, Relation relation,
			  const char *argument, List *pairs, bool as_text)
{
	int count = 0;
	ListCell *cell;

	foreach (cell, pairs)
	{
		const NamePair *pair = lfirst(cell);
		Form_pg_attribute column;

		if (count % OBJECT_MEMBERS != 0)
			appendStringInfoString(query, ", ");
		else
			appendStringInfo(query, "%spg_catalog.jsonb_build_object(",
							 count > 0 ? ") OPERATOR(pg_catalog.||) " : "");
		appendStringInfo(query, "%s::pg_catalog.text, ",
						 quote_literal_cstr(pair->name));
		count++;
		if (pair->constant != NULL)
		{
			appendStringInfo(query, "%s::pg_catalog.text",
							 quote_literal_cstr(pair->constant));
			continue;
		}
		column = find_column(backfill, relation, argument, pair->column);
		if (as_text)
		{
			append_column(query, column);
			appendStringInfoString(query, "::pg_catalog.text");
		}
		else
			append_property(query, backfill, column);
	}
	appendStringInfoChar(query, ')');
}

/* Appends the units of a row; null if each of them is null. */
static void
append_units(StringInfo query, const Backfill *backfill, Relation relation)
{
	List *pairs = parse_pairs(backfill, "units", backfill->units, false);
	const char *separator = "";
	ListCell *cell;

	if (pairs == NIL || list_length(pairs) > ENCODING_MAX_UNITS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"units\" of %s() names %s units",
						backfill->procedure, pairs == NIL ? "no" : "too many"),
				 errhint("It names from 1 to %d of them, as in "
						 "'user_id=customer_id'.",
						 ENCODING_MAX_UNITS)));

	appendStringInfoString(query, "CASE WHEN ");
	foreach (cell, pairs)
	{
		const NamePair *pair = lfirst(cell);
		Form_pg_attribute column =
			find_column(backfill, relation, "units", pair->column);

		if (!unit_type_allowed(column->atttypid))
			report_wrong_type(backfill, relation, column, "units",
							  UNIT_TYPES_ALLOWED);
		appendStringInfoString(query, separator);
		append_column(query, column);
		appendStringInfoString(query, " IS NOT NULL");
		separator = " OR ";
	}
	appendStringInfoString(query, " THEN ");
	append_object(query, backfill, relation, "units", pairs, true);
	appendStringInfoString(query, " END");
}

static void
append_properties(StringInfo query, const Backfill *backfill, Relation relation)
{
	const char *properties = backfill->properties ? backfill->properties : "";
	List *pairs;

	if (pairs_are_all(properties))
	{
		appendStringInfo(query, "%s.absmartly_properties(" ROW ".*)",
						 quote_identifier(backfill->extension_schema));
		return;
	}
	pairs = parse_pairs(backfill, "properties", properties, true);
	if (pairs == NIL)
		appendStringInfoString(query, "NULL::pg_catalog.jsonb");
	else
		append_object(query, backfill, relation, "properties", pairs, false);
}

static void
append_time(StringInfo query, const Backfill *backfill, Relation relation)
{
	Form_pg_attribute column;

	if (backfill->time == NULL)
	{
		appendStringInfoString(query, "NULL::pg_catalog.timestamptz");
		return;
	}
	column = find_column(
		backfill, relation, backfill->time_word,
		parse_column(backfill, backfill->time_word, backfill->time));
	switch (column_kind(column->atttypid))
	{
		case COLUMN_DATE:
		case COLUMN_TIMESTAMP:
		case COLUMN_TIMESTAMPTZ:
			break;
		default:
			report_wrong_type(backfill, relation, column, backfill->time_word,
							  "timestamp with time zone, timestamp or date");
	}
	append_column(query, column);
	appendStringInfoString(query, "::pg_catalog.timestamptz");
}

static void
append_attributes(StringInfo query, const Backfill *backfill, Relation relation)
{
	Form_pg_attribute column;

	if (backfill->attributes == NULL)
	{
		appendStringInfoString(query, "NULL::pg_catalog.jsonb");
		return;
	}
	column =
		find_column(backfill, relation, "attributes",
					parse_column(backfill, "attributes", backfill->attributes));
	if (column_kind(column->atttypid) != COLUMN_JSONB)
		report_wrong_type(backfill, relation, column, "attributes", "jsonb");
	append_column(query, column);
	appendStringInfoString(query, "::pg_catalog.jsonb");
}

/*
 * Appends the call that makes an event of a row.  It has every argument, in its
 * place and of its very type, so that no other function of that name fits as
 * well.
 */
static void
append_call(StringInfo query, const Backfill *backfill, Relation relation)
{
	appendStringInfo(query, "%s.%s(",
					 quote_identifier(backfill->extension_schema),
					 backfill->function);
	append_units(query, backfill, relation);
	appendStringInfo(query, ", %s::pg_catalog.text, ",
					 quote_literal_cstr(backfill->event));
	if (backfill->goals)
	{
		append_properties(query, backfill, relation);
		appendStringInfoString(query, ", ");
		append_time(query, backfill, relation);
		appendStringInfoString(query, ", ");
		append_attributes(query, backfill, relation);
	}
	else
	{
		append_attributes(query, backfill, relation);
		appendStringInfoString(query, ", NULL::pg_catalog.int4, ");
		append_time(query, backfill, relation);
	}
	appendStringInfoString(query, ", true)");
}

/* The condition that a key is greater than the parameter. */
static char *
after_position(Form_pg_attribute key, const char *quoted_key)
{
	Oid type = getBaseType(key->atttypid);
	TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_GT_OPR);
	HeapTuple tuple;
	Form_pg_operator op;
	char *condition;

	if (!OidIsValid(entry->gt_opr))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("key column \"%s\" is of type %s, which has no order",
						NameStr(key->attname), format_type_be(key->atttypid))));
	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(entry->gt_opr));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", entry->gt_opr);
	op = (Form_pg_operator) GETSTRUCT(tuple);
	condition = psprintf("%s OPERATOR(%s.%s) $1::%s", quoted_key,
						 quote_identifier(get_namespace_name(op->oprnamespace)),
						 NameStr(op->oprname),
						 format_type_extended(type, -1,
											  FORMAT_TYPE_TYPEMOD_GIVEN |
												  FORMAT_TYPE_FORCE_QUALIFY));
	ReleaseSysCache(tuple);
	return condition;
}

/* Whether a key's text may have dates or intervals in the session's style. */
static bool
key_is_styled(Form_pg_attribute key)
{
	switch (column_kind(key->atttypid))
	{
		case COLUMN_ARRAY:
		case COLUMN_ROW:
		case COLUMN_MULTIRANGE:
		case COLUMN_OTHER:
			return true;
		default:
			return false;
	}
}

/*
 * The text of a key that gives the same key again, whatever the session's
 * settings are then.
 */
static char *
key_to_text(Form_pg_attribute key, const char *quoted_key)
{
	switch (column_kind(key->atttypid))
	{
		case COLUMN_DATE:
		case COLUMN_TIMESTAMP:
		case COLUMN_TIMESTAMPTZ:
			return psprintf("pg_catalog.to_jsonb(" ROW
							".%s) OPERATOR(pg_catalog.#>>) "
							"'{}'::pg_catalog.text[]",
							quoted_key);
		default:
			return psprintf(ROW ".%s::pg_catalog.text", quoted_key);
	}
}

/*
 * Appends a column that gives what the first row has whose time cannot be
 * right.
 */
static void
append_wrong_time(StringInfo query, const char *column)
{
	appendStringInfo(query,
					 ", (pg_catalog.array_agg(%s) FILTER (WHERE "
					 "event_time OPERATOR(pg_catalog.<) "
					 "'" FIRST_TIME "'::pg_catalog.timestamptz OR "
					 "event_time OPERATOR(pg_catalog.>) "
					 "(pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) "
					 "'" CLOCK_TOLERANCE "'::pg_catalog.interval)))[1]",
					 column);
}

/*
 * A query that makes events of the next rows and gives number and last key, and
 * key and time of a row whose time cannot be right.
 */
static char *
chunk_query(const Backfill *backfill, Relation relation, Form_pg_attribute key,
			const char *condition)
{
	const char *quoted_key = quote_identifier(NameStr(key->attname));
	StringInfoData query;

	initStringInfo(&query);
	appendStringInfo(&query,
					 "SELECT pg_catalog.count(*), "
					 "(pg_catalog.array_agg(key))[pg_catalog.count(*)], "
					 "pg_catalog.count(event)");
	if (backfill->time != NULL && !backfill->any_time)
	{
		append_wrong_time(&query, "key");
		append_wrong_time(&query, "event_time::pg_catalog.text");
	}
	appendStringInfo(&query, " FROM (SELECT %s AS key, ",
					 key_to_text(key, quoted_key));
	append_call(&query, backfill, relation);
	appendStringInfoString(&query, " AS event, ");
	append_time(&query, backfill, relation);
	appendStringInfo(&query, " AS event_time FROM (SELECT * FROM %s",
					 backfill->relation);
	if (condition != NULL)
		appendStringInfo(&query, " WHERE %s", condition);
	if (backfill->filter != NULL)
		/* a comment at the filter's end must not reach further */
		appendStringInfo(&query, " %s (%s\n)",
						 condition != NULL ? "AND" : "WHERE", backfill->filter);
	appendStringInfo(&query,
					 " ORDER BY %s LIMIT $2) AS " ROW " ORDER BY " ROW
					 ".%s) AS chunk",
					 quoted_key, quoted_key);
	return query.data;
}

/* Whether a unique index covers the key, and nothing else. */
static bool
has_unique_index(Relation relation, Form_pg_attribute key)
{
	bool unique = false;
	ListCell *cell;

	foreach (cell, RelationGetIndexList(relation))
	{
		HeapTuple tuple =
			SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(cell)));
		Form_pg_index index;

		if (!HeapTupleIsValid(tuple))
			continue;
		index = (Form_pg_index) GETSTRUCT(tuple);
		unique |= index->indisunique && index->indisvalid &&
				  index->indimmediate && index->indnkeyatts == 1 &&
				  index->indkey.values[0] == key->attnum &&
				  heap_attisnull(tuple, Anum_pg_index_indpred, NULL);
		ReleaseSysCache(tuple);
	}
	return unique;
}

/* A key must be unique.  Where that can't be known the user must know. */
static void
check_key(const Backfill *backfill, Relation relation, Form_pg_attribute key)
{
	int level = ERROR;

	switch (relation->rd_rel->relkind)
	{
		case RELKIND_RELATION:
			/* an index tells nothing of the rows of children */
			if (has_subclass(RelationGetRelid(relation)))
				level = WARNING;
			break;
		case RELKIND_PARTITIONED_TABLE:
		case RELKIND_MATVIEW:
			break;
		case RELKIND_VIEW:
		case RELKIND_FOREIGN_TABLE:
			level = WARNING;
			break;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("%s() cannot walk \"%s\"", backfill->procedure,
							RelationGetRelationName(relation)),
					 errhint("Name a table, a view, a materialized view or a "
							 "foreign table.")));
	}
	if (level == ERROR && has_unique_index(relation, key))
		return;
	ereport(level,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("no unique index covers key column \"%s\" of relation "
					"\"%s\"",
					NameStr(key->attname), RelationGetRelationName(relation)),
			 errdetail("Where two rows have the same key, one of them may be "
					   "left out.")));
}

/* Makes the queries of the arguments; raises what is wrong with these. */
static void
prepare(Backfill *backfill)
{
	Relation relation = relation_open(backfill->source, AccessShareLock);
	Form_pg_attribute key;
	const char *quoted_key;
	char *schema = get_namespace_name(RelationGetNamespace(relation));
	ListCell *cell;

	backfill->key = parse_column(backfill, "key", backfill->key);
	key = find_column(backfill, relation, "key", backfill->key);
	quoted_key = quote_identifier(backfill->key);
	check_key(backfill, relation, key);
	backfill->styled_key = key_is_styled(key);
	if (backfill->filter != NULL)
		condition_check(backfill->filter, relation, backfill->procedure,
						"filter");
	backfill->relation =
		quote_qualified_identifier(schema, RelationGetRelationName(relation));
	backfill->start_query = chunk_query(backfill, relation, key, NULL);
	backfill->query =
		chunk_query(backfill, relation, key, after_position(key, quoted_key));
	if (!key->attnotnull)
		backfill->nulls_query =
			backfill->filter == NULL
				? psprintf("SELECT 1 FROM %s WHERE %s IS NULL LIMIT 1",
						   backfill->relation, quoted_key)
				: psprintf("SELECT 1 FROM %s WHERE %s IS NULL AND (%s\n) "
						   "LIMIT 1",
						   backfill->relation, quoted_key, backfill->filter);

	if (backfill->name == NULL)
		backfill->name =
			psprintf("%s %s of %s by %s", backfill->event_word, backfill->event,
					 backfill->relation, quoted_key);
	if (strlen(backfill->name) > MAX_TEXT)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("name of the backfill is too long"),
				 errdetail("It may have up to %zu bytes, this one has %zu.",
						   MAX_TEXT, strlen(backfill->name)),
				 errhint("Give a name, as in name => 'payments'.")));

	foreach (cell, parse_pairs(backfill, "units", backfill->units, false))
		backfill->unit_types =
			lappend(backfill->unit_types, ((NamePair *) lfirst(cell))->name);

	/* roles do not see, or disturb, how far those of others are */
	progress_identify(&backfill->progress, GetUserId(), backfill->name);
	backfill->progress.source = backfill->relation;
	relation_close(relation, AccessShareLock);
}

/*
 * Running
 */

static void
set_locally(const char *setting, const char *value)
{
	(void) set_config_option(setting, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
}

/*
 * Ends a transaction and begins the next one.  That must see what is committed
 * when each of its queries starts, must not use the memory queue, where events
 * can be lost, and must give keys exactly, in a style that every session reads.
 */
static void
next_transaction(const Backfill *backfill)
{
	SPI_commit();
	set_locally("transaction_isolation", "read committed");
	set_locally("absmartly.durability", "transaction");
	set_locally("extra_float_digits", "1");
	if (backfill->styled_key)
	{
		/* the order in which dates are read stays as it is */
		set_locally("DateStyle", "ISO");
		set_locally("IntervalStyle", "postgres");
	}
}

/* Goes on where an earlier call has stopped, if there was one. */
static void
read_progress(Backfill *backfill)
{
	BackfillProgress *before;

	PushActiveSnapshot(GetTransactionSnapshot());
	before = progress_find(&backfill->progress.key);
	PopActiveSnapshot();
	if (before == NULL)
		return;
	if (before->finished)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("backfill \"%s\" is finished", backfill->name),
				 errdetail("It came to its end at %s, with %lld rows done.",
						   timestamptz_to_str(before->changed_at),
						   (long long) before->rows),
				 errhint("restart => true records all of them again; "
						 "a backfill of other rows needs another name.")));
	backfill->progress.position = before->position;
	backfill->progress.rows = before->rows;
	backfill->progress.started_at = before->started_at;
	ereport(NOTICE,
			(errmsg("backfill \"%s\" goes on after key %s, with %lld "
					"rows done before",
					backfill->name, before->position, (long long) before->rows),
			 errhint("Use restart => true to start from the "
					 "beginning.")));
}

/* Forgets all progress, or what was before this. */
static void
forget_progress(const Backfill *backfill, const BackfillProgress *before)
{
	PushActiveSnapshot(GetTransactionSnapshot());
	progress_forget(&backfill->progress.key, before);
	PopActiveSnapshot();
}

/*
 * Executes a query that has parts of the user's, and gives its result as SPI
 * does.
 */
static void
execute(const char *query, int narguments, Oid *types, Datum *values,
		const char *nulls, bool read_only)
{
	MemoryContext caller = CurrentMemoryContext;
	int status = SPI_OK_SELECT;

	PG_TRY();
	{
		status = SPI_execute_with_args(query, narguments, types, values, nulls,
									   read_only, 0);
	}
	PG_CATCH();
	{
		condition_rethrow(caller, query);
	}
	PG_END_TRY();
	if (status != SPI_OK_SELECT)
		elog(ERROR, "a query of a backfill gave no result");
}

static void
refuse_null_keys(const Backfill *backfill)
{
	if (backfill->nulls_query == NULL)
		return;
	execute(backfill->nulls_query, 0, NULL, NULL, NULL, true);
	if (SPI_processed > 0)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("key column \"%s\" of %s is null in some rows",
						backfill->key, backfill->relation),
				 errhint("Leave them out, as in filter => '%s IS NOT NULL'.",
						 quote_identifier(backfill->key))));
	SPI_freetuptable(SPI_tuptable);
	/* lets go of the snapshot */
	next_transaction(backfill);
}

/*
 * Waits while the outbox is so full that it may soon take no exposures.  Holds
 * no snapshot meanwhile.
 */
static void
wait_for_room(const Backfill *backfill)
{
	uint64 most = (uint64) settings_outbox_max_size * 1024 * 1024 / 4 * 3;
	TimestampTz told_at = 0;

	while (outbox_size(LANE_BULK) > most)
	{
		TimestampTz now = GetCurrentTimestamp();

		if (!shared_available())
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("the outbox is full"),
					 errdetail("No worker empties it, because absmartly is "
							   "not in shared_preload_libraries."),
					 errhint("The next CALL goes on where this one ends.")));
		if (told_at == 0 ||
			TimestampDifferenceExceeds(told_at, now, WAIT_NOTICE_INTERVAL_MS))
		{
			ereport(NOTICE,
					(errmsg("backfill \"%s\" waits until events were sent: the "
							"outbox is nearly full",
							backfill->name),
					 errhint("See absmartly_stat if this lasts.")));
			told_at = now;
		}
		InvalidateCatalogSnapshotConditionally();
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 WAIT_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

static void
error_callback(void *argument)
{
	const Backfill *backfill = argument;

	if (backfill->progress.position != NULL)
		errcontext("backfill \"%s\", in the rows after key %s", backfill->name,
				   backfill->progress.position);
	else
		errcontext("backfill \"%s\", in the first rows", backfill->name);
	if (backfill->filter != NULL)
		errcontext("filter of the backfill: %s", backfill->filter);
}

/*
 * What cannot be right, or would make exposures of nothing.  Experiments change
 * while it runs: each chunk looks anew.
 */
static void
check_experiment(const Backfill *backfill)
{
	const DataVersion *version;
	const SnapImage *snapshot;
	const SnapExperiment *experiment = NULL;
	EngineText name;
	EngineText unit_type;
	ListCell *cell;

	if (backfill->goals ||
		(backfill->unknown_experiment && backfill->other_units))
		return;
	name = text_to_utf8(backfill->event, strlen(backfill->event));
	version = evaluation_data();
	if (version != NULL)
	{
		snapshot = data_version_snapshot(version);
		experiment = snapshot_find_experiment(snapshot, name.data, name.length);
	}
	if (experiment == NULL)
	{
		if (backfill->unknown_experiment)
			return;
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no experiment \"%s\"", backfill->event),
				 errdetail("A backfill assigns by the experiments of today."),
				 errhint("With allow_unknown_experiment => true everybody is "
						 "exposed to variant 0.")));
	}
	if (backfill->other_units)
		return;
	if (!(experiment->flags & SNAP_HAS_UNIT_TYPE))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("experiment \"%s\" has no unit type", backfill->event),
				 errdetail("It assigns nobody."),
				 errhint("With allow_other_units => true everybody is exposed "
						 "nevertheless, without being assigned.")));
	unit_type = snapshot_text(snapshot, experiment->unit_type);
	foreach (cell, backfill->unit_types)
	{
		const char *given = lfirst(cell);
		EngineText utf8 = text_to_utf8(given, strlen(given));

		if (utf8.length == unit_type.length &&
			memcmp(utf8.data, unit_type.data, utf8.length) == 0)
			return;
	}
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("argument \"units\" of %s() does not name unit type "
						   "\"%s\", by which experiment \"%s\" assigns",
						   backfill->procedure, text_for_message(unit_type),
						   backfill->event),
					errhint("Name its column, as in '%s=column'.  With "
							"allow_other_units => true everybody is exposed "
							"nevertheless, without being assigned.",
							text_for_message(unit_type))));
}

/* A row of a chunk that is done has a time that cannot be right. */
static void
check_times(const Backfill *backfill, HeapTuple result, TupleDesc columns)
{
	char *key;

	if (columns->natts < 5 || (key = SPI_getvalue(result, columns, 4)) == NULL)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_DATETIME_FIELD_OVERFLOW),
			 errmsg("column \"%s\" of %s cannot be right in the row of key %s",
					backfill->time, backfill->relation, key),
			 errdetail("It is %s: in the future, or before the year 2000.",
					   SPI_getvalue(result, columns, 5)),
			 errhint("Leave such rows out with \"filter\", or take them with "
					 "allow_any_time => true.")));
}

/*
 * Makes events of the next rows, and notes in the same transaction how far that
 * is.
 */
static void
run_chunk(Backfill *backfill)
{
	BackfillProgress *progress = &backfill->progress;
	Oid types[] = {TEXTOID, INT8OID};
	Datum values[] = {(Datum) 0, Int64GetDatum(backfill->chunk)};
	char nulls[] = {'n', ' '};
	const char *query = backfill->start_query;
	HeapTuple result;
	TupleDesc columns;
	int64 count;
	char *last;
	bool isnull;

	check_experiment(backfill);
	if (progress->position != NULL)
	{
		query = backfill->query;
		values[0] = CStringGetTextDatum(progress->position);
		nulls[0] = ' ';
	}
	execute(query, lengthof(types), types, values, nulls, false);
	if (SPI_processed != 1)
		elog(ERROR, "the query of a backfill gave no result");
	result = SPI_tuptable->vals[0];
	columns = SPI_tuptable->tupdesc;
	check_times(backfill, result, columns);
	count = DatumGetInt64(SPI_getbinval(result, columns, 1, &isnull));
	last = SPI_getvalue(result, columns, 2);
	SPI_freetuptable(SPI_tuptable);
	if (nulls[0] != 'n')
		pfree(DatumGetPointer(values[0]));

	/* a key's cast to text may be the user's */
	if (count > 0 && last == NULL)
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("key column \"%s\" of %s has a key without text",
							   backfill->key, backfill->relation)));
	if (count > 0 && strlen(last) > MAX_TEXT)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("key is too long for a backfill"),
				 errdetail("Its text may have up to %zu bytes, this one has "
						   "%zu.",
						   MAX_TEXT, strlen(last))));
	if (count > 0)
	{
		if (progress->position != NULL)
			pfree(unconstify(char *, progress->position));
		progress->position = last;
		progress->rows += count;
	}
	progress->finished = count < backfill->chunk;
	buffer_progress(progress);
}

/* How fast it goes, since a time at which so many rows were done. */
static double
rows_per_second(const Backfill *backfill, TimestampTz started_at,
				int64 rows_before, double *seconds)
{
	*seconds = (double) (GetCurrentTimestamp() - started_at) / USECS_PER_SEC;
	return (double) (backfill->progress.rows - rows_before) /
		   Max(*seconds, 1e-6);
}

/* Walks the rest of the source, chunk by chunk. */
static void
run(Backfill *backfill)
{
	ErrorContextCallback context = {error_context_stack, error_callback,
									backfill};
	BackfillProgress *progress = &backfill->progress;
	TimestampTz started_at = GetCurrentTimestamp();
	TimestampTz told_at = started_at;
	int64 rows_before;
	int64 told_rows = 0;
	double seconds;
	double speed;

	check_experiment(backfill);
	progress->started_at = started_at;
	if (backfill->restart)
		forget_progress(backfill, NULL);
	else
		read_progress(backfill);
	rows_before = progress->rows;
	if (!backfill->goals)
		ereport(NOTICE,
				(errmsg("backfill \"%s\" assigns by the experiments of today",
						backfill->name),
				 errdetail("How they were when the rows came to be is not "
						   "known here: some units may have seen another "
						   "variant.")));
	error_context_stack = &context;
	refuse_null_keys(backfill);
	error_context_stack = context.previous;

	for (;;)
	{
		wait_for_room(backfill);
		error_context_stack = &context;
		run_chunk(backfill);
		error_context_stack = context.previous;
		next_transaction(backfill);
		forget_progress(backfill, progress);
		if (progress->finished)
			break;

		if (progress->rows >= 2 * told_rows ||
			TimestampDifferenceExceeds(told_at, GetCurrentTimestamp(),
									   NOTICE_INTERVAL_MS))
		{
			told_at = GetCurrentTimestamp();
			told_rows = progress->rows;
			speed =
				rows_per_second(backfill, started_at, rows_before, &seconds);
			ereport(NOTICE,
					(errmsg("backfill \"%s\": %lld rows done, last key %s",
							backfill->name, (long long) progress->rows,
							progress->position),
					 errdetail("%.0f rows per second.", speed)));
		}
	}

	/* what the caller does next shall not see our settings */
	SPI_commit();
	speed = rows_per_second(backfill, started_at, rows_before, &seconds);
	ereport(NOTICE, (errmsg("backfill \"%s\" is finished: %lld rows",
							backfill->name, (long long) progress->rows),
					 errdetail("%lld rows in %.1f s, %.0f rows per second.",
							   (long long) (progress->rows - rows_before),
							   seconds, speed)));
}

/*
 * Runs a backfill that no other session runs at the same time.  The lock is
 * the session's, since it outlives transactions.
 */
static void
run_alone(Backfill *backfill)
{
	LOCKTAG lock;

	progress_lock(&backfill->progress.key, &lock);
	if (LockAcquire(&lock, ExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_IN_USE),
						errmsg("backfill \"%s\" is running in another session",
							   backfill->name)));
	PG_TRY();
	{
		run(backfill);
	}
	PG_FINALLY();
	{
		LockRelease(&lock, ExclusiveLock, true);
	}
	PG_END_TRY();
}

static void
backfill_execute(FunctionCallInfo fcinfo, Backfill *backfill)
{
	CallContext *call = (CallContext *) fcinfo->context;
	char *command;

	if (call == NULL || !IsA(call, CallContext) || call->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("%s() cannot run inside a transaction block",
						backfill->procedure),
				 errdetail("It commits after each chunk."),
				 errhint("Call it outside of BEGIN and COMMIT, and not from "
						 "a function.")));
	command = psprintf("%s()", backfill->procedure);
	PreventCommandDuringRecovery(command);
	PreventCommandIfReadOnly(command);
	outbox_require();

	backfill->extension_schema =
		get_namespace_name(get_func_namespace(fcinfo->flinfo->fn_oid));
	prepare(backfill);
	next_transaction(backfill);
	run_alone(backfill);
	SPI_finish();
}

/*
 * The procedures' arguments, copied to memory that outlives transactions: that
 * of SPI.
 */

static char *
optional_text(FunctionCallInfo fcinfo, int number)
{
	if (PG_ARGISNULL(number))
		return NULL;
	return text_to_cstring(PG_GETARG_TEXT_PP(number));
}

static void
check_given(FunctionCallInfo fcinfo, const Backfill *backfill, int number,
			const char *argument)
{
	if (PG_ARGISNULL(number))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("argument \"%s\" of %s() must not be null",
							   argument, backfill->procedure)));
}

/* Reads what both procedures have in common: the first and last arguments. */
static void
read_arguments(FunctionCallInfo fcinfo, Backfill *backfill, int after_units)
{
	check_given(fcinfo, backfill, 0, "source");
	check_given(fcinfo, backfill, 1, "key");
	check_given(fcinfo, backfill, 2, backfill->event_word);
	check_given(fcinfo, backfill, 3, "units");
	backfill->source = PG_GETARG_OID(0);
	backfill->key = optional_text(fcinfo, 1);
	backfill->event = optional_text(fcinfo, 2);
	backfill->units = optional_text(fcinfo, 3);

	check_given(fcinfo, backfill, after_units + 3, "chunk");
	check_given(fcinfo, backfill, after_units + 5, "restart");
	check_given(fcinfo, backfill, after_units + 6, "allow_any_time");
	backfill->time = optional_text(fcinfo, after_units);
	backfill->attributes = optional_text(fcinfo, after_units + 1);
	backfill->filter = optional_text(fcinfo, after_units + 2);
	backfill->chunk = PG_GETARG_INT32(after_units + 3);
	backfill->name = optional_text(fcinfo, after_units + 4);
	backfill->restart = PG_GETARG_BOOL(after_units + 5);
	backfill->any_time = PG_GETARG_BOOL(after_units + 6);
	if (backfill->chunk < 1)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("argument \"chunk\" of %s() must be greater "
							   "than 0",
							   backfill->procedure)));
}

PG_FUNCTION_INFO_V1(absmartly_backfill_goals);

/*
 * absmartly_backfill_goals(source regclass, key text, goal text, units text,
 *							properties text, achieved_at text,
 *							attributes text, filter text, chunk integer,
 *							name text, restart boolean,
 *							allow_any_time boolean)
 *
 * Tracks a goal for each row.  2D000 in a transaction block, 25006 where
 * nothing can be written, 55006 while another session runs the same backfill,
 * 55000 if it is finished, 22023, 42601, 42703 and 42804 for wrong arguments,
 * 22008 for a time that cannot be right, and the errors of absmartly_track().
 */
SQL_FUNCTION(absmartly_backfill_goals)
{
	Backfill backfill = {.procedure = "absmartly_backfill_goals",
						 .function = "absmartly_track",
						 .event_word = "goal",
						 .time_word = "achieved_at",
						 .goals = true};

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	read_arguments(fcinfo, &backfill, 5);
	backfill.properties = optional_text(fcinfo, 4);
	backfill_execute(fcinfo, &backfill);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(absmartly_backfill_exposures);

/*
 * absmartly_backfill_exposures(source regclass, key text, experiment text,
 *								units text, exposed_at text, attributes text,
 *								filter text, chunk integer, name text,
 *								restart boolean, allow_any_time boolean,
 *								allow_unknown_experiment boolean,
 *								allow_other_units boolean)
 *
 * Assigns and exposes the units of each row.  Errors as above, 42704 for an
 * unknown experiment, and those of absmartly_treatment().
 */
SQL_FUNCTION(absmartly_backfill_exposures)
{
	Backfill backfill = {.procedure = "absmartly_backfill_exposures",
						 .function = "absmartly_treatment",
						 .event_word = "experiment",
						 .time_word = "exposed_at"};

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	read_arguments(fcinfo, &backfill, 4);
	check_given(fcinfo, &backfill, 11, "allow_unknown_experiment");
	check_given(fcinfo, &backfill, 12, "allow_other_units");
	backfill.unknown_experiment = PG_GETARG_BOOL(11);
	backfill.other_units = PG_GETARG_BOOL(12);
	backfill_execute(fcinfo, &backfill);
	PG_RETURN_VOID();
}
