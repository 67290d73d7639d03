/*
 * events.h
 *		The events of a context: recorded in the transaction, told to the
 *		event logger, counted until they are delivered (DESIGN 3.2, 7.4).
 */
#ifndef ABSMARTLY_CONTEXT_EVENTS_H
#define ABSMARTLY_CONTEXT_EVENTS_H

#include "postgres.h"

#include "access/xact.h"

#include "context/context.h"

/*
 * Queues the exposure of an entry's assignment, unless that is done.  Raises as
 * recording does (events/buffer.h).  This, context_track() and the functions
 * that tell the event logger run the logger at their end: what their callers
 * have of the context is to be found anew afterwards, by its key.
 */
extern void context_expose(Context *context, ContextEntry *entry);

/* Queues a goal; properties are JSON text, data NULL: null. */
extern void context_track(Context *context, EngineText name,
						  EngineText properties, int64 achieved_at);

/*
 * Units or attributes are going to change, by so many bytes more: raises 54000
 * if they are too large for an event then, or as recording does, since what
 * waits is to be sent with them.
 */
extern void context_prepare_header(const Context *context, size_t added);

/* Events that are not delivered, those of this transaction included. */
extern int64 context_pending(const Context *context);

/* Those of them that are committed. */
extern int64 context_pending_committed(const Context *context);

/* What a failed context has recorded in this transaction does not count. */
extern void context_discard_uncommitted(Context *context);

/* Lets the worker know the present units and attributes at once. */
extern void context_leave_header(Context *context);

/*
 * Tells the event logger: of the data, of an error, or of something that has no
 * data.
 */
extern void context_log_data(const Context *context, const char *event);
extern void context_log_error(const Context *context, const char *message);
extern void context_log_plain(const Context *context, const char *event);

/* What this transaction has recorded of a context is forgotten. */
extern void context_events_reset(void);

/*
 * The ends of transactions, called in this order around the buffer's: before
 * it is written, and after that.  What follows a commit allocates nothing and
 * raises nothing.
 */
extern void context_before_commit(void);
extern void context_after_commit(void);
extern void context_after_prepare(void);
extern void context_after_abort(void);
extern void context_subtransaction_end(SubXactEvent event);

#endif /* ABSMARTLY_CONTEXT_EVENTS_H */
