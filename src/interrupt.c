/*
 * interrupt.c
 *		Whether long work that must not be left by an error has to end.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/procsignal.h"

#include "compat.h"
#include "interrupt.h"

bool
interrupt_is_due(void *context)
{
	if (likely(!InterruptPending))
		return false;
	if (ProcSignalBarrierPending)
		ProcessProcSignalBarrier();
	return INTERRUPTS_CAN_BE_PROCESSED() && compat_must_end();
}
