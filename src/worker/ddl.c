/*
 * ddl.c
 *		What SQL commands mean for the workers.
 *
 * DROP DATABASE, CREATE DATABASE ... TEMPLATE, RENAME and moving to another
 * tablespace need a database for themselves: its worker is stopped before and
 * kept away until the command has ended.  ALTER DATABASE ... SET restarts the
 * worker at commit.  CREATE and DROP EXTENSION make the launcher look at the
 * database at commit.  COMMIT PREPARED wakes the worker, which may find events
 * then, or the extension gone or its settings changed: what was done before
 * PREPARE was done by another process perhaps.
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
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "data/shared.h"
#include "events/endpoints.h"
#include "settings.h"
#include "worker/database_settings.h"
#include "worker/ddl.h"

/* a worker that does not go by itself is terminated after so long */
#define POLITE_STOP_MS 500
/* and waited for so long: PostgreSQL itself waits for 5 s then */
#define STOP_TIMEOUT_MS 3000
/* how long one may take to come after the server's start */
#define WORKER_TIMEOUT_MS 5000

/*
 * What the end of the transaction has to do for a database.  Lives in
 * TopTransactionContext.
 */
typedef struct PendingDatabase
{
	struct PendingDatabase *next;
	Oid database;
	int nest_level; /* of the subtransaction that it belongs to */
	bool target; /* what data is fetched for has changed */
} PendingDatabase;

typedef struct HeldDatabase
{
	struct HeldDatabase *next;
	DatabaseState *state;
} HeldDatabase;

static PendingDatabase *changed_databases = NULL;
static HeldDatabase *held_databases = NULL;
static bool probe_my_database = false;
static bool wake_launcher = false;

static ProcessUtility_hook_type prev_process_utility = NULL;
static object_access_hook_type prev_object_access = NULL;

/* Wakes a process, if it is there; with force it is terminated. */
static void
make_leave(pid_t pid, bool force)
{
	PGPROC *process = pid != 0 ? BackendPidGetProc(pid) : NULL;

	if (process == NULL)
		return;
	SetLatch(&process->procLatch);
	if (force)
		kill(pid, SIGTERM);
}

/*
 * Keeps workers away from a database until the transaction ends, and stops the
 * one that runs, and one that is leaving already.
 */
static void
hold_database(Oid database)
{
	HeldDatabase *held =
		MemoryContextAlloc(TopTransactionContext, sizeof(HeldDatabase));
	TimestampTz start = GetCurrentTimestamp();
	bool terminated = false;

	held->state = shared_database_hold(database);
	if (held->state == NULL)
		return;
	held->next = held_databases;
	held_databases = held;

	for (;;)
	{
		pid_t pid = held->state->worker_pid;
		pid_t leaver = held->state->leaver_pid;
		TimestampTz now = GetCurrentTimestamp();
		bool force;

		if ((pid == 0 && leaver == 0) ||
			TimestampDifferenceExceeds(start, now, STOP_TIMEOUT_MS))
			break;
		force = !terminated &&
				TimestampDifferenceExceeds(start, now, POLITE_STOP_MS);
		make_leave(pid, force);
		make_leave(leaver, force);
		terminated |= force;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 5L,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
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

/* Notes that a database's worker has something to learn at commit. */
static void
note_changed_database(Oid database, bool target)
{
	PendingDatabase *changed =
		MemoryContextAlloc(TopTransactionContext, sizeof(*changed));

	changed->next = changed_databases;
	changed->database = database;
	changed->nest_level = GetCurrentTransactionNestLevel();
	changed->target = target;
	changed_databases = changed;
}

/*
 * Another endpoint follows the one that the worker has seen.  Right after the
 * server's start that may be to come.
 */
static void
await_worker(Oid database)
{
	char *name = get_database_name(database);
	TimestampTz start = GetCurrentTimestamp();

	if (name == NULL || !settings_database_wanted(name))
		return;
	while (!endpoints_are_seen(database) &&
		   !TimestampDifferenceExceeds(start, GetCurrentTimestamp(),
									   WORKER_TIMEOUT_MS))
	{
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 10L,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * A database is about to have another endpoint: that is remembered before it is
 * committed.
 */
static void
announce_endpoint(Oid database, const char *endpoint)
{
	const char *utf8 = endpoint != NULL ? settings_to_utf8(endpoint) : NULL;

	endpoints_announce(database, utf8 != NULL ? utf8 : endpoint);
}

static bool
same_text(const char *left, const char *right)
{
	return left != NULL && right != NULL ? strcmp(left, right) == 0
										 : left == right;
}

/*
 * A role's value of a setting that acts in the worker would have no effect, or
 * a surprising one.
 */
static void
refuse_role_setting(const AlterRoleSetStmt *statement)
{
	const VariableSetStmt *set = statement->setstmt;

	/* ALTER ROLE ALL IN DATABASE is ALTER DATABASE by another name */
	if (statement->role == NULL && statement->database != NULL)
		return;
	if (set->name == NULL || set->kind == VAR_RESET ||
		!settings_acts_in_worker(set->name))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_CANT_CHANGE_RUNTIME_PARAM),
			 errmsg("parameter \"%s\" cannot be set for a role", set->name),
			 errdetail("It acts in the background worker of a database."),
			 errhint("Use ALTER DATABASE ... SET, or the configuration "
					 "file.")));
}

/* The database whose settings a command may change. */
static Oid
database_to_compare(Node *statement)
{
	const char *name = NULL;

	if (IsA(statement, AlterDatabaseSetStmt))
		name = ((AlterDatabaseSetStmt *) statement)->dbname;
	else if (IsA(statement, AlterRoleSetStmt) &&
			 ((AlterRoleSetStmt *) statement)->role == NULL)
		name = ((AlterRoleSetStmt *) statement)->database;
	return name ? get_database_oid(name, true) : InvalidOid;
}

/* Whether such a command may change the endpoint. */
static bool
is_about_endpoint(Node *statement)
{
	const VariableSetStmt *set =
		IsA(statement, AlterDatabaseSetStmt)
			? ((AlterDatabaseSetStmt *) statement)->setstmt
			: ((AlterRoleSetStmt *) statement)->setstmt;

	return set->name == NULL ||
		   pg_strcasecmp(set->name, "absmartly.endpoint") == 0;
}

/*
 * A prepared transaction has committed.  It may have left events, or have
 * created or dropped the extension, or changed settings: nobody knows any more,
 * it may have been prepared before the server's start.  The worker shall look;
 * if there is none the catalog tells whether there should be one.  That is
 * asked for without waiting, for the command must not fail any more.
 */
static void
announce_prepared(void)
{
	DatabaseState *state = shared_my_database();

	if (state != NULL && state->worker_pid != 0)
	{
		pg_atomic_write_u32(&state->look_wanted, 1);
		for (int lane = 0; lane < LANE_COUNT; lane++)
			shared_events_committed(state, (EventLane) lane, 1);
		shared_wake_worker(state);
	}
	else if (ConditionalLockRelationOid(ExtensionRelationId, AccessShareLock))
	{
		if (OidIsValid(get_extension_oid("absmartly", true)))
			shared_request_probe(MyDatabaseId);
		UnlockRelationOid(ExtensionRelationId, AccessShareLock);
	}
	else
		shared_request_probe(MyDatabaseId);
}

/* What it may have written is undone: the worker shall see that it is. */
static void
announce_undone(void)
{
	DatabaseState *state = shared_my_database();

	if (state != NULL)
		shared_events_undone(state);
}

static void
ddl_process_utility(PlannedStmt *statement, const char *source,
					bool read_only_tree, ProcessUtilityContext context,
					ParamListInfo parameters, QueryEnvironment *environment,
					DestReceiver *receiver, QueryCompletion *completion)
{
	Node *command = statement->utilityStmt;
	Oid to_hold = database_to_hold(command);
	Oid to_compare = database_to_compare(command);
	DatabaseSettings before;
	DatabaseSettings after;

	if (IsA(command, AlterRoleSetStmt))
		refuse_role_setting((AlterRoleSetStmt *) command);
	if (OidIsValid(to_hold))
		hold_database(to_hold);
	if (OidIsValid(to_compare))
	{
		if (is_about_endpoint(command))
			await_worker(to_compare);
		database_settings_read(to_compare, &before);
	}

	if (prev_process_utility)
		prev_process_utility(statement, source, read_only_tree, context,
							 parameters, environment, receiver, completion);
	else
		standard_ProcessUtility(statement, source, read_only_tree, context,
								parameters, environment, receiver, completion);

	if (OidIsValid(to_compare))
	{
		CommandCounterIncrement();
		database_settings_read(to_compare, &after);
		if (!same_text(before.endpoint, after.endpoint))
			announce_endpoint(to_compare, after.endpoint);
		if (strcmp(before.all, after.all) != 0)
			note_changed_database(to_compare,
								  strcmp(before.target, after.target) != 0);
	}
	switch (nodeTag(command))
	{
		case T_CreatedbStmt:
		case T_DropdbStmt:
		case T_AlterDatabaseStmt:
		case T_RenameStmt:
			wake_launcher = true;
			break;
		case T_TransactionStmt:
			if (((TransactionStmt *) command)->kind ==
				TRANS_STMT_COMMIT_PREPARED)
				announce_prepared();
			else if (((TransactionStmt *) command)->kind ==
					 TRANS_STMT_ROLLBACK_PREPARED)
				announce_undone();
			break;
		default:
			break;
	}
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
			note_changed_database(MyDatabaseId, false);
		}
	}
}

/*
 * Makes a worker look at its settings and its extension anew.  Data that is of
 * another epoch is out of force from this moment.
 */
static void
restart_worker(const PendingDatabase *changed)
{
	DatabaseState *state = shared_database(changed->database, false);

	if (state == NULL)
		return;
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	state->restart_requested = true;
	if (changed->target)
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
			for (PendingDatabase *changed = changed_databases; changed != NULL;
				 changed = changed->next)
				restart_worker(changed);
			if (probe_my_database)
				shared_request_probe(MyDatabaseId);
			else if (wake_launcher || changed_databases != NULL)
				shared_wake_launcher();
			/* FALLTHROUGH */
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			for (HeldDatabase *held = held_databases; held != NULL;
				 held = held->next)
			{
				shared_database_release(held->state);
				shared_wake_launcher();
			}
			held_databases = NULL;
			changed_databases = NULL;
			probe_my_database = false;
			wake_launcher = false;
			break;
		default:
			break;
	}
}

/* What a subtransaction has changed goes with it, or to its parent. */
static void
ddl_subtransaction_end(SubXactEvent event, SubTransactionId id,
					   SubTransactionId parent, void *argument)
{
	int level = GetCurrentTransactionNestLevel();

	if (event == SUBXACT_EVENT_ABORT_SUB)
		while (changed_databases != NULL &&
			   changed_databases->nest_level >= level)
			changed_databases = changed_databases->next;
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		for (PendingDatabase *changed = changed_databases;
			 changed != NULL && changed->nest_level >= level;
			 changed = changed->next)
			changed->nest_level = level - 1;
}

void
ddl_install(void)
{
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = ddl_process_utility;
	prev_object_access = object_access_hook;
	object_access_hook = ddl_object_access;
	RegisterXactCallback(ddl_transaction_end, NULL);
	RegisterSubXactCallback(ddl_subtransaction_end, NULL);
}
