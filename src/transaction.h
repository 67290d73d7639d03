/*
 * transaction.h
 *		What happens at the ends of transactions and subtransactions, in one
 *		place: the order matters.
 */
#ifndef ABSMARTLY_TRANSACTION_H
#define ABSMARTLY_TRANSACTION_H

/* Registers the callbacks; in _PG_init only. */
extern void transaction_install(void);

#endif /* ABSMARTLY_TRANSACTION_H */
