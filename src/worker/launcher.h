/*
 * launcher.h
 *		The launcher: keeps one worker for each database that has the
 *		extension (DESIGN 7.5).
 */
#ifndef ABSMARTLY_WORKER_LAUNCHER_H
#define ABSMARTLY_WORKER_LAUNCHER_H

#include "postgres.h"

/* Registers the launcher; called while the postmaster starts. */
extern void launcher_register(void);

/* The launcher's and the workers' main functions. */
extern PGDLLEXPORT void absmartly_launcher_main(Datum argument);

#endif /* ABSMARTLY_WORKER_LAUNCHER_H */
