/*
 * granted.h
 *		Rights on the extension's views, for the functions behind them.
 *
 * The server asks who reads a view for the right to execute the functions in
 * it, though it reads tables as the view's owner.  So that a GRANT on a view is
 * all that a reader needs, everybody may execute these functions, and they look
 * themselves whether their caller may read a view that shows what they give.
 */
#ifndef ABSMARTLY_SQL_GRANTED_H
#define ABSMARTLY_SQL_GRANTED_H

#include "postgres.h"

#include "fmgr.h"

#include "compat.h"

/*
 * Whether the present role may read any column of a view that belongs to the
 * same extension as the function that is called.
 */
extern bool granted_view(FunctionCallInfo fcinfo, const char *view);

/* Raises 42501, naming the view that would have to be granted. */
pg_noreturn extern void granted_refuse(FunctionCallInfo fcinfo,
									   const char *view);

#endif /* ABSMARTLY_SQL_GRANTED_H */
