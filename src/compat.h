/*
 * compat.h
 *		Differences between the PostgreSQL versions that are supported.
 *
 * Every conditional on the server's version stands here.
 */
#ifndef ABSMARTLY_COMPAT_H
#define ABSMARTLY_COMPAT_H

#include "postgres.h"

#include "access/parallel.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "replication/slot.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/resowner.h"

#if PG_VERSION_NUM < 150000
#error "absmartly needs PostgreSQL 15 or later"
#endif

#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* before a declaration: the function never returns */
#if PG_VERSION_NUM < 180000
#define pg_noreturn _Noreturn
#endif

/* the number of a catalog cache, as callbacks get it */
#if PG_VERSION_NUM < 190000
typedef int SysCacheIdentifier;
#endif

/* settings of newer servers that a worker must not inherit */
#if PG_VERSION_NUM >= 170000
#define COMPAT_PINNED_SETTINGS {"transaction_timeout", "0"},
#else
#define COMPAT_PINNED_SETTINGS
#endif

/* Whether CHECK_FOR_INTERRUPTS() would end the statement or the process. */
#if PG_VERSION_NUM >= 170000
#define compat_must_end()                                            \
	(ProcDiePending || QueryCancelPending || ClientConnectionLost || \
	 TransactionTimeoutPending)
#else
#define compat_must_end() \
	(ProcDiePending || QueryCancelPending || ClientConnectionLost)
#endif

/* Drops the temporary replication slots of this process. */
#if PG_VERSION_NUM >= 170000
#define drop_temporary_slots() ReplicationSlotCleanup(false)
#else
#define drop_temporary_slots() ReplicationSlotCleanup()
#endif

/* connection limit of a database whose DROP was interrupted */
#ifndef DATCONNLIMIT_INVALID_DB
#define DATCONNLIMIT_INVALID_DB (-2)
#endif

/* A process's number in arrays of one slot for each backend. */
#if PG_VERSION_NUM >= 170000
#define backend_slot_number() MyProcNumber
#define parallel_leader_slot_number() ParallelLeaderProcNumber
#else
#define backend_slot_number() (MyBackendId - 1)
#define parallel_leader_slot_number() (ParallelLeaderBackendId - 1)
#endif

/* How many such slots there can be. */
#define backend_slot_count() (MaxBackends + NUM_AUXILIARY_PROCS)

#if PG_VERSION_NUM >= 170000
#define create_wait_event_set(context, nevents) \
	CreateWaitEventSet(NULL, nevents)
#else
#define create_wait_event_set(context, nevents) \
	CreateWaitEventSet(context, nevents)
#endif

#if PG_VERSION_NUM >= 160000
#define owns_database(database, role) \
	object_ownercheck(DatabaseRelationId, database, role)
#else
#define owns_database(database, role) pg_database_ownercheck(database, role)
#endif

/*
 * Takes a lock without waiting for it: of the transaction, or of the session.
 * raise: it is an error, too, if the lock table is full.
 */
#if PG_VERSION_NUM >= 180000
#define compat_lock_at_once(tag, mode, session, raise, lock) \
	LockAcquireExtended(tag, mode, session, true, raise, lock, false)
#else
#define compat_lock_at_once(tag, mode, session, raise, lock) \
	LockAcquireExtended(tag, mode, session, true, raise, lock)
#endif

/* Whether this process holds a lock, in that mode. */
#if PG_VERSION_NUM >= 170000
#define compat_lock_is_held(tag, mode) LockHeldByMe(tag, mode, false)
#else
#define compat_lock_is_held(tag, mode) LockHeldByMe(tag, mode)
#endif

/* Whether a role may REFRESH a materialized view. */
#if PG_VERSION_NUM >= 170000
#define compat_may_refresh(relation, role) \
	(pg_class_aclcheck(relation, role, ACL_MAINTAIN) == ACLCHECK_OK)
#elif PG_VERSION_NUM >= 160000
#define compat_may_refresh(relation, role) \
	object_ownercheck(RelationRelationId, relation, role)
#else
#define compat_may_refresh(relation, role) pg_class_ownercheck(relation, role)
#endif

#if PG_VERSION_NUM >= 160000
#define qualified_name_list(name) stringToQualifiedNameList(name, NULL)
#else
#define qualified_name_list(name) stringToQualifiedNameList(name)
#endif

/* Whether a column has no stored value; column is a Form_pg_attribute. */
#if PG_VERSION_NUM >= 180000
#define column_is_virtual(column) \
	((column)->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL)
#else
#define column_is_virtual(column) false
#endif

/*
 * Calls an input function.  Where the server lets input functions say that a
 * text is no value without raising, those that do so give false.
 */
#if PG_VERSION_NUM >= 160000
#include "nodes/miscnodes.h"
static inline bool
compat_input(FmgrInfo *input, char *text, Oid io_parameter, Datum *result)
{
	ErrorSaveContext errors = {.type = T_ErrorSaveContext};

	return InputFunctionCallSafe(input, text, io_parameter, -1,
								 (Node *) &errors, result);
}
#else
static inline bool
compat_input(FmgrInfo *input, char *text, Oid io_parameter, Datum *result)
{
	*result = InputFunctionCall(input, text, io_parameter, -1);
	return true;
}
#endif

/*
 * Whether internal subtransactions that write nothing are allowed in parallel
 * mode, and in parallel workers.
 */
#define COMPAT_PARALLEL_SUBTRANSACTIONS (PG_VERSION_NUM >= 170000)

/* Gives a relation an empty file, which a rollback takes back. */
#if PG_VERSION_NUM >= 160000
#define set_new_file(relation) \
	RelationSetNewRelfilenumber(relation, (relation)->rd_rel->relpersistence)
#else
#define set_new_file(relation) \
	RelationSetNewRelfilenode(relation, (relation)->rd_rel->relpersistence)
#endif

/* memory for the extra of a setting */
#if PG_VERSION_NUM >= 160000
#define setting_alloc(size) guc_malloc(LOG, size)
#define setting_free(memory) guc_free(memory)
#else
#define setting_alloc(size) malloc(size)
#define setting_free(memory) free(memory)
#endif

#if PG_VERSION_NUM >= 180000
#define EXECUTOR_RUN_PARAMETERS \
	QueryDesc *query, ScanDirection direction, uint64 count
#define EXECUTOR_RUN_ARGUMENTS query, direction, count
#else
#define EXECUTOR_RUN_PARAMETERS \
	QueryDesc *query, ScanDirection direction, uint64 count, bool execute_once
#define EXECUTOR_RUN_ARGUMENTS query, direction, count, execute_once
#endif

#endif /* ABSMARTLY_COMPAT_H */
