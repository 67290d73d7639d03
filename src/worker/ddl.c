/*
 * ddl.c
 *		What SQL commands mean for the workers.
 *
 * DROP DATABASE, CREATE DATABASE ... TEMPLATE, RENAME and moving to another
 * tablespace need a database for themselves: its worker is stopped before and
 * kept away until the command has ended.  ALTER DATABASE ... SET restarts the
 * worker at commit.  CREATE and DROP EXTENSION make the launcher look at the
 * database at commit.
 *
 * What happens at commit is only noted before: nothing there may fail.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "data/file.h"
#include "data/shared.h"
#include "data/version.h"
#include "worker/ddl.h"

/* a worker that does not go by itself is terminated after so long */
#define POLITE_STOP_MS 500
/* and waited for so long: PostgreSQL itself waits for 5 s then */
#define STOP_TIMEOUT_MS 3000

/* settings that act in the worker, which has no role */
static const char *const worker_settings[] = {"absmartly.endpoint",
											  "absmartly.api_key_file",
											  "absmartly.application",
											  "absmartly.application_version",
											  "absmartly.environment",
											  "absmartly.refresh_interval",
											  "absmartly.connect_timeout",
											  "absmartly.request_timeout",
											  "absmartly.max_retries",
											  "absmartly.ca_file",
											  "absmartly.proxy"};

/* what commit has to do; lives in TopTransactionContext */
typedef struct ChangedDatabase
{
	struct ChangedDatabase *next;
	Oid database;
	bool target; /* what data is fetched for may have changed */
} ChangedDatabase;

static ChangedDatabase *changed_databases = NULL;
static bool probe_my_database = false;
static bool wake_launcher = false;

static ProcessUtility_hook_type prev_process_utility = NULL;
static object_access_hook_type prev_object_access = NULL;

/*
 * Keeps workers away from a database and stops the one that runs.  *held is
 * the database's state, for release_database(), as soon as that is needed.
 */
static void
hold_database(Oid database, DatabaseState *volatile *held)
{
	DatabaseState *state = shared_database(database, true);
	TimestampTz start = GetCurrentTimestamp();
	bool terminated = false;

	if (state == NULL || !shared_database_hold(state))
		return;
	*held = state;

	for (;;)
	{
		pid_t pid = state->worker_pid;
		TimestampTz now;

		if (pid == 0 || BackendPidGetProc(pid) == NULL)
			break;
		now = GetCurrentTimestamp();
		if (TimestampDifferenceExceeds(start, now, STOP_TIMEOUT_MS))
			break;
		state->restart_requested = true;
		shared_wake_worker(state);
		if (!terminated &&
			TimestampDifferenceExceeds(start, now, POLITE_STOP_MS))
		{
			kill(pid, SIGTERM);
			terminated = true;
		}
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 5L,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

static void
release_database(DatabaseState *state)
{
	shared_database_release(state);
	shared_wake_launcher();
}

/*
 * The database that a command needs for itself, if its user may run it: others
 * shall not be able to stop a worker.
 */
static Oid
database_to_hold(Node *statement)
{
	const char *name = NULL;
	Oid database = InvalidOid;

	switch (nodeTag(statement))
	{
		case T_DropdbStmt:
			name = ((DropdbStmt *) statement)->dbname;
			break;
		case T_RenameStmt:
			if (((RenameStmt *) statement)->renameType == OBJECT_DATABASE)
				name = ((RenameStmt *) statement)->subname;
			break;
		case T_AlterDatabaseStmt:
		{
			AlterDatabaseStmt *alter = (AlterDatabaseStmt *) statement;
			ListCell *cell;

			foreach (cell, alter->options)
				if (strcmp(((DefElem *) lfirst(cell))->defname, "tablespace") ==
					0)
					name = alter->dbname;
			break;
		}
		case T_CreatedbStmt:
		{
			ListCell *cell;

			foreach (cell, ((CreatedbStmt *) statement)->options)
			{
				DefElem *option = lfirst(cell);

				if (strcmp(option->defname, "template") == 0 &&
					option->arg != NULL)
					name = defGetString(option);
			}
			break;
		}
		default:
			break;
	}

	if (name == NULL)
		return InvalidOid;
	database = get_database_oid(name, true);
	if (!OidIsValid(database) || !owns_database(database, GetUserId()))
		return InvalidOid;
	return database;
}

/* Notes that a database's settings change, for the end of the transaction. */
static void
note_changed_database(Oid database, const char *setting)
{
	ChangedDatabase *changed;

	if (!OidIsValid(database))
		return;
	changed = MemoryContextAlloc(TopTransactionContext, sizeof(*changed));
	changed->next = changed_databases;
	changed->database = database;
	changed->target = setting == NULL ||
					  strcmp(setting, "absmartly.endpoint") == 0 ||
					  strcmp(setting, "absmartly.application") == 0 ||
					  strcmp(setting, "absmartly.environment") == 0;
	changed_databases = changed;
}

/* Whether a SET or RESET is about a setting of ours; *name is NULL for ALL */
static bool
concerns_us(const VariableSetStmt *set, const char **name)
{
	*name = set->name;
	return set->kind == VAR_RESET_ALL ||
		   (set->name != NULL &&
			pg_strncasecmp(set->name, "absmartly.", 10) == 0);
}

/*
 * A role's value of a setting that acts in the worker would have no effect, or
 * a surprising one.
 */
static void
refuse_role_setting(const AlterRoleSetStmt *statement)
{
	const VariableSetStmt *set = statement->setstmt;

	if (set->name == NULL || set->kind == VAR_RESET)
		return;
	for (int i = 0; i < (int) lengthof(worker_settings); i++)
		if (pg_strcasecmp(set->name, worker_settings[i]) == 0)
			ereport(ERROR, (errcode(ERRCODE_CANT_CHANGE_RUNTIME_PARAM),
							errmsg("parameter \"%s\" cannot be set for a role",
								   worker_settings[i]),
							errdetail("It acts in the background worker of a "
									  "database."),
							errhint("Use ALTER DATABASE ... SET, or the "
									"configuration file.")));
}

/* Notes what a command that has succeeded means for the workers. */
static void
note_command(Node *statement)
{
	const char *setting;

	switch (nodeTag(statement))
	{
		case T_AlterDatabaseSetStmt:
		{
			AlterDatabaseSetStmt *alter = (AlterDatabaseSetStmt *) statement;

			if (concerns_us(alter->setstmt, &setting))
				note_changed_database(get_database_oid(alter->dbname, true),
									  setting);
			break;
		}
		case T_CreatedbStmt:
		case T_AlterDatabaseStmt:
		case T_RenameStmt:
			wake_launcher = true;
			break;
		default:
			break;
	}
}

static void
ddl_process_utility(PlannedStmt *statement, const char *source,
					bool read_only_tree, ProcessUtilityContext context,
					ParamListInfo parameters, QueryEnvironment *environment,
					DestReceiver *receiver, QueryCompletion *completion)
{
	Node *command = statement->utilityStmt;
	volatile Oid database = database_to_hold(command);
	DatabaseState *volatile state = NULL;

	if (IsA(command, AlterRoleSetStmt))
		refuse_role_setting((AlterRoleSetStmt *) command);

	PG_TRY();
	{
		if (OidIsValid(database))
			hold_database(database, &state);
		if (prev_process_utility)
			prev_process_utility(statement, source, read_only_tree, context,
								 parameters, environment, receiver, completion);
		else
			standard_ProcessUtility(statement, source, read_only_tree, context,
									parameters, environment, receiver,
									completion);
		if (state != NULL && IsA(command, DropdbStmt))
		{
			version_withdraw(state);
			file_remove(database);
		}
		note_command(command);
	}
	PG_FINALLY();
	{
		if (state != NULL)
			release_database(state);
	}
	PG_END_TRY();
}

/*
 * Extensions come and go by many commands: what counts is the catalog's row.
 * At creation its name can't be looked up yet, so each new one counts.
 */
static void
ddl_object_access(ObjectAccessType access, Oid class_id, Oid object_id,
				  int sub_id, void *argument)
{
	if (prev_object_access)
		prev_object_access(access, class_id, object_id, sub_id, argument);

	if (class_id != ExtensionRelationId)
		return;
	if (access == OAT_POST_CREATE)
		probe_my_database = true;
	else if (access == OAT_DROP)
	{
		char *name = get_extension_name(object_id);

		if (name != NULL && strcmp(name, "absmartly") == 0)
		{
			probe_my_database = true;
			note_changed_database(MyDatabaseId, NULL);
		}
	}
}

/*
 * Makes a worker look at its settings and its extension anew.  Data that may
 * be of another epoch is out of force from this moment.
 */
static void
restart_worker(const ChangedDatabase *changed)
{
	DatabaseState *state = shared_database(changed->database, false);

	if (state == NULL)
		return;
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	if (state->worker_pid != 0)
		state->restart_requested = true;
	if (changed->target && (state->worker_pid != 0 || state->launched_at != 0))
		state->suspended = true;
	LWLockRelease(&state->lock);
	shared_wake_worker(state);
}

static void
ddl_transaction_end(XactEvent event, void *argument)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			for (ChangedDatabase *changed = changed_databases; changed != NULL;
				 changed = changed->next)
				restart_worker(changed);
			if (probe_my_database)
				shared_request_probe(MyDatabaseId);
			else if (wake_launcher)
				shared_wake_launcher();
			/* FALLTHROUGH */
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			changed_databases = NULL;
			probe_my_database = false;
			wake_launcher = false;
			break;
		default:
			break;
	}
}

void
ddl_install(void)
{
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = ddl_process_utility;
	prev_object_access = object_access_hook;
	object_access_hook = ddl_object_access;
	RegisterXactCallback(ddl_transaction_end, NULL);
}
