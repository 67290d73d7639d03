/*
 * database_settings.h
 *		The settings of ours that ALTER DATABASE ... SET gives a database.
 */
#ifndef ABSMARTLY_WORKER_DATABASE_SETTINGS_H
#define ABSMARTLY_WORKER_DATABASE_SETTINGS_H

#include "postgres.h"

/* Palloc'd; the first two are one string each, to be compared with an earlier
 * one. */
typedef struct DatabaseSettings
{
	char *all; /* all settings of ours */
	char *target; /* those of them that say what data is fetched for */
	char *endpoint; /* the value of absmartly.endpoint; NULL: it has none */
} DatabaseSettings;

/* Reads them from the catalog; a transaction must be open. */
extern void database_settings_read(Oid database, DatabaseSettings *settings);

#endif /* ABSMARTLY_WORKER_DATABASE_SETTINGS_H */
