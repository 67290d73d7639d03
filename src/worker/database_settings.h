/*
 * database_settings.h
 *		The settings of ours that ALTER DATABASE ... SET gives a database.
 */
#ifndef ABSMARTLY_WORKER_DATABASE_SETTINGS_H
#define ABSMARTLY_WORKER_DATABASE_SETTINGS_H

#include "postgres.h"

/* One string each, palloc'd, to be compared with an earlier one. */
typedef struct DatabaseSettings
{
	char *all; /* all settings of ours */
	char *target; /* those of them that say what data is fetched for */
} DatabaseSettings;

/* Reads them from the catalog; a transaction must be open. */
extern void database_settings_read(Oid database, DatabaseSettings *settings);

#endif /* ABSMARTLY_WORKER_DATABASE_SETTINGS_H */
