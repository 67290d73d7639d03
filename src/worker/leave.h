/*
 * leave.h
 *		How a worker, or the launcher, is made to leave.
 */
#ifndef ABSMARTLY_WORKER_LEAVE_H
#define ABSMARTLY_WORKER_LEAVE_H

#include "postgres.h"

/*
 * The handler of SIGTERM.  Sets ShutdownRequestPending, and ends what the
 * process waits for, if it is at work.
 */
extern void leave_on_sigterm(SIGNAL_ARGS);

/*
 * Work is what may wait for others inside the server's code.  A SIGTERM that
 * comes, or has come, ends it with an error, at the next interrupt check or in
 * the wait itself; the caller must be ready for that.
 */
extern void leave_begin_work(void);
extern void leave_end_work(void);

/* The same for a function of the user's, which is ended also as last work. */
extern void leave_begin_user_code(void);

/*
 * What is put in order before the process ends: SIGTERM ends it no more, but
 * it waits for no lock any longer than a moment.
 */
extern void leave_begin_last_work(void);

/* How often there was a SIGTERM. */
extern int leave_terminations(void);

/* Whether work is to be begun no more. */
extern bool leave_is_near(void);

#endif /* ABSMARTLY_WORKER_LEAVE_H */
