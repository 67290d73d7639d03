/*
 * granted.c
 *		Rights on the extension's views, for the functions behind them.
 */
#include "postgres.h"

#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "sql/granted.h"

bool
granted_view(FunctionCallInfo fcinfo, const char *view)
{
	Oid function = fcinfo->flinfo->fn_oid;
	Oid extension = getExtensionOfObject(ProcedureRelationId, function);
	Oid relation = get_relname_relid(view, get_func_namespace(function));
	Oid role = GetUserId();

	/* another one of that name is anybody's */
	if (!OidIsValid(relation) || !OidIsValid(extension) ||
		getExtensionOfObject(RelationRelationId, relation) != extension)
		return superuser();
	return pg_class_aclcheck(relation, role, ACL_SELECT) == ACLCHECK_OK ||
		   pg_attribute_aclcheck_all(relation, role, ACL_SELECT, ACLMASK_ANY) ==
			   ACLCHECK_OK;
}

void
granted_refuse(FunctionCallInfo fcinfo, const char *view)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for function %s",
					get_func_name(fcinfo->flinfo->fn_oid)),
			 errdetail("It gives what the view \"%s\" shows.", view),
			 errhint("Grant SELECT on the view to those who shall see it.")));
}
