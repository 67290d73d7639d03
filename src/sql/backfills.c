/*
 * backfills.c
 *		Which backfills there are (DESIGN 6.4).
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "events/progress.h"
#include "sql/function.h"

#define COLUMNS 9

/* Whether another session runs it at this moment. */
static bool
is_running(const BackfillProgress *progress)
{
	LOCKTAG lock;
	int holders;

	progress_lock(&progress->key, &lock);
	(void) GetLockConflicts(&lock, ExclusiveLock, &holders);
	return holders > 0;
}

/* The name of a role; its number if it is gone. */
static Datum
role_name(Oid role)
{
	char *name = GetUserNameFromId(role, true);

	if (name == NULL)
		name = psprintf("%u", role);
	return DirectFunctionCall1(namein, CStringGetDatum(name));
}

PG_FUNCTION_INFO_V1(absmartly_backfills_get);

/*
 * absmartly_backfills_get() -> setof record
 *
 * The backfills of roles whose rights the present one has: keys and names may
 * tell of what others do.
 */
SQL_FUNCTION(absmartly_backfills_get)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	ListCell *cell;

	InitMaterializedSRF(fcinfo, 0);
	foreach (cell, progress_list())
	{
		const BackfillProgress *progress = lfirst(cell);
		Datum values[COLUMNS];
		bool nulls[COLUMNS] = {false};
		int column = 0;

		CHECK_FOR_INTERRUPTS();
		if (!has_privs_of_role(GetUserId(), progress->role))
			continue;
		values[column++] = CStringGetTextDatum(progress->name);
		values[column++] = role_name(progress->role);
		values[column++] = CStringGetTextDatum(progress->source);
		values[column++] =
			CStringGetTextDatum(progress->finished     ? "finished"
								: is_running(progress) ? "running"
													   : "interrupted");
		values[column++] = Int64GetDatum(progress->rows);
		nulls[column] = progress->position == NULL;
		values[column++] = progress->position != NULL
							   ? CStringGetTextDatum(progress->position)
							   : (Datum) 0;
		values[column++] = TimestampTzGetDatum(progress->started_at);
		values[column++] = TimestampTzGetDatum(progress->changed_at);
		nulls[column] = !progress->finished;
		values[column++] = TimestampTzGetDatum(progress->changed_at);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
