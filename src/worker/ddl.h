/*
 * ddl.h
 *		What SQL commands mean for the workers: commands that need a database
 *		for themselves, changed settings, extensions that come and go.
 */
#ifndef ABSMARTLY_WORKER_DDL_H
#define ABSMARTLY_WORKER_DDL_H

/* Installs the hooks. */
extern void ddl_install(void);

#endif /* ABSMARTLY_WORKER_DDL_H */
