/*
 * guard.c
 *		Keeps commands from what they would do to the outbox.
 *
 * The heaps are materialized views, so commands come by that take all of these:
 * a script that refreshes each one would empty the heaps, or fail at them.
 * Therefore a REFRESH of a heap, in whatever form, does nothing and says so.
 *
 * Where the library is loaded a utility hook sees to it.  Where it is not, an
 * event trigger loads it when a REFRESH begins, too late for the hook to see
 * that command.  An event trigger can't skip a command; but the tree that it is
 * given is the one that is executed, and is nobody else's (the server copies
 * those that are kept): so the command gets another object.
 *
 * The rest is refused.  What is done in a session without the library is met
 * when the next event is written (heaps.c, outbox.c).
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "events/guard.h"
#include "events/heaps.h"

/* a materialized view of the extension that has no rows at any time */
#define NOTHING "absmartly_outbox_nothing"

static ProcessUtility_hook_type prev_process_utility = NULL;

/* The heap that a name stands for; InvalidOid: none. */
static Oid
named_heap(const RangeVar *name)
{
	Oid relation = name ? RangeVarGetRelid(name, NoLock, true) : InvalidOid;

	return OidIsValid(relation) && heaps_belongs(relation) ? relation
														   : InvalidOid;
}

/*
 * Whether a command refreshes a heap, and says so.  Who may not do that is left
 * to the server, which refuses it.
 */
static bool
refreshes_heap(const RefreshMatViewStmt *statement)
{
	Oid heap = named_heap(statement->relation);

	if (!OidIsValid(heap) || !compat_may_refresh(heap, GetUserId()))
		return false;
	ereport(NOTICE,
			(errmsg("materialized view \"%s\" is not refreshed",
					get_rel_name(heap)),
			 errdetail("It belongs to the outbox of absmartly, which holds "
					   "events that wait to be sent.")));
	return true;
}

/* The relation that a command would make unfit to be a heap. */
static const RangeVar *
changed_relation(const Node *command)
{
	const ListCell *cell;

	switch (nodeTag(command))
	{
		case T_IndexStmt:
			return ((const IndexStmt *) command)->relation;
		case T_RenameStmt:
			switch (((const RenameStmt *) command)->renameType)
			{
				case OBJECT_MATVIEW:
				case OBJECT_TABLE:
				case OBJECT_VIEW:
				case OBJECT_INDEX:
				case OBJECT_SEQUENCE:
					return ((const RenameStmt *) command)->relation;
				default:
					return NULL;
			}
		case T_AlterObjectSchemaStmt:
			return ((const AlterObjectSchemaStmt *) command)->relation;
		case T_AlterTableStmt:
			foreach (cell, ((const AlterTableStmt *) command)->cmds)
			{
				switch (lfirst_node(AlterTableCmd, cell)->subtype)
				{
					case AT_SetStorage:
					case AT_SetCompression:
					case AT_SetAccessMethod:
						return ((const AlterTableStmt *) command)->relation;
					default:
						break;
				}
			}
			return NULL;
		case T_AlterExtensionContentsStmt:
		{
			const AlterExtensionContentsStmt *alter =
				(const AlterExtensionContentsStmt *) command;

			if (alter->action > 0 || alter->objtype != OBJECT_MATVIEW)
				return NULL;
			return makeRangeVarFromNameList(castNode(List, alter->object));
		}
		default:
			return NULL;
	}
}

static void
refuse_change(const Node *command)
{
	Oid heap;

	if (creating_extension || IsBinaryUpgrade)
		return;
	heap = named_heap(changed_relation(command));
	if (OidIsValid(heap))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("materialized view \"%s\" cannot be changed in this "
						"way",
						get_rel_name(heap)),
				 errdetail("It belongs to the outbox of absmartly, and must be "
						   "as the extension has made it.")));
}

static void
guard_process_utility(PlannedStmt *statement, const char *source,
					  bool read_only_tree, ProcessUtilityContext context,
					  ParamListInfo parameters, QueryEnvironment *environment,
					  DestReceiver *receiver, QueryCompletion *completion)
{
	const Node *command = statement->utilityStmt;

	if (IsA(command, RefreshMatViewStmt) &&
		refreshes_heap((const RefreshMatViewStmt *) command))
		return;
	refuse_change(command);
	if (prev_process_utility)
		prev_process_utility(statement, source, read_only_tree, context,
							 parameters, environment, receiver, completion);
	else
		standard_ProcessUtility(statement, source, read_only_tree, context,
								parameters, environment, receiver, completion);
}

void
guard_command(Node *command)
{
	RefreshMatViewStmt *refresh;
	MemoryContext previous;
	Oid schema;
	Oid nothing;

	if (!IsA(command, RefreshMatViewStmt))
		return;
	refresh = (RefreshMatViewStmt *) command;
	if (!refreshes_heap(refresh))
		return;

	schema = get_rel_namespace(named_heap(refresh->relation));
	nothing = get_relname_relid(NOTHING, schema);
	if (!OidIsValid(nothing) || !heaps_belongs(nothing) ||
		!compat_may_refresh(nothing, GetUserId()))
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("the outbox of absmartly cannot be refreshed"),
						errdetail("It holds events that wait to be sent.")));
	/* as long as the command lives */
	previous = MemoryContextSwitchTo(GetMemoryChunkContext(refresh));
	refresh->relation =
		makeRangeVar(get_namespace_name(schema), pstrdup(NOTHING), -1);
	refresh->concurrent = false;
	refresh->skipData = true;
	MemoryContextSwitchTo(previous);
}

void
guard_install(void)
{
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = guard_process_utility;
}
