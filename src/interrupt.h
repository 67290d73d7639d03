/*
 * interrupt.h
 *		Whether long work that must not be left by an error has to end.
 */
#ifndef ABSMARTLY_INTERRUPT_H
#define ABSMARTLY_INTERRUPT_H

#include "postgres.h"

/*
 * Whether the statement is to end, and can: then CHECK_FOR_INTERRUPTS() will
 * end it, as soon as the work has been left.  Serves barriers on the way, since
 * DROP DATABASE of any database waits until every process has.
 */
extern bool interrupt_is_due(void *context);

#endif /* ABSMARTLY_INTERRUPT_H */
