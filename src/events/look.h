/*
 * look.h
 *		What is in the outbox and in the memory queue, for the views.
 */
#ifndef ABSMARTLY_EVENTS_LOOK_H
#define ABSMARTLY_EVENTS_LOOK_H

#include "postgres.h"

#include "engine/engine.h"
#include "events/outbox.h"
#include "events/record.h"

/* A record that was seen.  What it refers to lives as long as the visit. */
typedef struct LookRecord
{
	const char *place; /* the word for it */
	OutboxStatus status;
	int64 id;
	TimestampTz created;
	Oid database;
	EngineText application; /* UTF-8 */
	EngineText application_version;
	EngineText environment;
	EngineText note; /* in the database's encoding */
	EventPayload payload;
} LookRecord;

typedef void (*LookVisit)(void *argument, const LookRecord *record);

/*
 * Visits the records that have one of these statuses, bits 1 << OUTBOX_...: all
 * that were committed when it was called and are not delivered, each once,
 * wherever it is moved meanwhile.  A record is as it is found; what was
 * committed later may be seen or not.  Interrupts are heeded, and no lock is
 * held while visit runs that others wait for.
 */
extern void look(uint32 statuses, LookVisit visit, void *argument);

#endif /* ABSMARTLY_EVENTS_LOOK_H */
