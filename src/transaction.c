/*
 * transaction.c
 *		The ends of transactions.
 *
 * The context adds to the transaction's events before these are written, and
 * counts them after that.  Pins of data have callbacks of their own
 * (data/version.c): they have nothing to do with events.
 */
#include "postgres.h"

#include "access/xact.h"

#include "context/events.h"
#include "events/buffer.h"
#include "events/logger.h"
#include "transaction.h"

static void
transaction_end(XactEvent event, void *argument)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			context_before_commit();
			buffer_flush(event == XACT_EVENT_PRE_PREPARE);
			break;
		case XACT_EVENT_COMMIT:
			buffer_hand_over();
			context_after_commit();
			buffer_forget();
			logger_forget();
			break;
		case XACT_EVENT_PREPARE:
			context_after_prepare();
			buffer_forget();
			logger_forget();
			break;
		case XACT_EVENT_ABORT:
			context_after_abort();
			buffer_undone();
			buffer_forget();
			logger_forget();
			break;
		default:
			break;
	}
}

static void
subtransaction_end(SubXactEvent event, SubTransactionId id,
				   SubTransactionId parent, void *argument)
{
	buffer_subtransaction_end(event);
	context_subtransaction_end(event);
	logger_subtransaction_end(event);
}

void
transaction_install(void)
{
	RegisterXactCallback(transaction_end, NULL);
	RegisterSubXactCallback(subtransaction_end, NULL);
}
