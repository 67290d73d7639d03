/*
 * leave.c
 *		How a worker, or the launcher, is made to leave.
 *
 * A flag that the loop looks at is not enough: inside the server the process
 * may come to wait for others (locks, a page that somebody reads, a standby's
 * answer), and a fast shutdown or DROP DATABASE would wait with it.  So SIGTERM
 * cancels what is under way, as a query is cancelled.  The error undoes the
 * transaction, and the process leaves in good order: an end at once, as die()
 * has it, would lose what is in the memory queue at a shutdown.
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/latch.h"
#include "utils/guc.h"

#include "worker/leave.h"

/* how long the last work may wait for a lock */
#define LAST_LOCK_TIMEOUT "200ms"

static volatile sig_atomic_t at_work = false;
static volatile sig_atomic_t terminations = 0;
static bool last_work = false;

static void
cancel(void)
{
	InterruptPending = true;
	QueryCancelPending = true;
}

void
leave_on_sigterm(SIGNAL_ARGS)
{
	int saved_errno = errno;

	ShutdownRequestPending = true;
	terminations++;
	if (at_work)
		cancel();
	SetLatch(MyLatch);
	errno = saved_errno;
}

void
leave_begin_work(void)
{
	at_work = !last_work;
	if (ShutdownRequestPending && at_work)
		cancel();
}

void
leave_begin_user_code(void)
{
	at_work = true;
	if (ShutdownRequestPending)
		cancel();
}

void
leave_end_work(void)
{
	at_work = false;
	/* what has come too late would end something else */
	QueryCancelPending = false;
}

void
leave_begin_last_work(void)
{
	leave_end_work();
	last_work = true;
	SetConfigOption("lock_timeout", LAST_LOCK_TIMEOUT, PGC_SUSET,
					PGC_S_OVERRIDE);
}

int
leave_terminations(void)
{
	return (int) terminations;
}

bool
leave_is_near(void)
{
	return ShutdownRequestPending && !last_work;
}
