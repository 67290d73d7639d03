/*
 * absmartly.c
 *		The module's entry: settings, hooks and the launcher.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "context/context.h"
#include "data/shared.h"
#include "data/version.h"
#include "events/guard.h"
#include "settings.h"
#include "transaction.h"
#include "worker/ddl.h"
#include "worker/launcher.h"

PG_MODULE_MAGIC;

void _PG_init(void);

/*
 * Without shared_preload_libraries there is no shared memory and no worker:
 * assignment then works from the file of the last known good answer, and what
 * needs a worker says so.
 */
void
_PG_init(void)
{
	settings_define();
	version_install();
	transaction_install();
	context_install();
	guard_install();

	if (!process_shared_preload_libraries_in_progress)
		return;

	shared_install();
	ddl_install();
	launcher_register();
}
