/*
 * guard.h
 *		Keeps commands from what they would do to the outbox.
 */
#ifndef ABSMARTLY_EVENTS_GUARD_H
#define ABSMARTLY_EVENTS_GUARD_H

#include "postgres.h"

#include "nodes/nodes.h"

/*
 * Has each command of this process looked at: a REFRESH of a heap does nothing,
 * what would change a heap's name, schema or layout is refused.
 */
extern void guard_install(void);

/*
 * For a command that began before the library was loaded: a REFRESH of a heap
 * is turned to a materialized view that is always empty.
 */
extern void guard_command(Node *command);

#endif /* ABSMARTLY_EVENTS_GUARD_H */
