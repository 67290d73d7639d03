/*
 * database_settings.c
 *		The settings of ours that ALTER DATABASE ... SET gives a database.
 *
 * Commands compare them before and after, so that only real changes count.  A
 * standby, which is told of no command, compares them now and then.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"

#include "settings.h"
#include "worker/database_settings.h"

/*
 * Adds the entries ("name=value") of a row to the strings; gives the value of
 * absmartly.endpoint, or NULL.
 */
static char *
append_entries(ArrayType *entries, StringInfo all, StringInfo target)
{
	Datum *values;
	char *endpoint = NULL;
	int count;

	deconstruct_array(entries, TEXTOID, -1, false, TYPALIGN_INT, &values, NULL,
					  &count);
	for (int i = 0; i < count; i++)
	{
		char *entry = TextDatumGetCString(values[i]);
		char *name = pnstrdup(entry, strcspn(entry, "="));

		if (pg_strncasecmp(name, "absmartly.", 10) != 0)
			continue;
		appendStringInfo(all, "%s\n", entry);
		if (settings_is_target(name))
			appendStringInfo(target, "%s\n", entry);
		if (pg_strcasecmp(name, "absmartly.endpoint") == 0)
			endpoint = entry + strlen(name) + 1;
	}
	return endpoint;
}

void
database_settings_read(Oid database, DatabaseSettings *settings)
{
	StringInfoData all;
	StringInfoData target;
	Relation relation;
	SysScanDesc scan;
	ScanKeyData keys[2];
	HeapTuple tuple;

	initStringInfo(&all);
	initStringInfo(&target);
	settings->endpoint = NULL;

	relation = table_open(DbRoleSettingRelationId, AccessShareLock);
	ScanKeyInit(&keys[0], Anum_pg_db_role_setting_setdatabase,
				BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(database));
	ScanKeyInit(&keys[1], Anum_pg_db_role_setting_setrole,
				BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(InvalidOid));
	scan = systable_beginscan(relation, DbRoleSettingDatidRolidIndexId, true,
							  NULL, 2, keys);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool isnull;
		Datum config = heap_getattr(tuple, Anum_pg_db_role_setting_setconfig,
									RelationGetDescr(relation), &isnull);

		if (!isnull)
			settings->endpoint =
				append_entries(DatumGetArrayTypeP(config), &all, &target);
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);

	settings->all = all.data;
	settings->target = target.data;
}
