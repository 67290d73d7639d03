/*
 * source.h
 *		Sources: the records whose events are being delivered.
 *
 * A source is one record, or the records of a session context.  Its events have
 * numbers, from 0 on in the order of its records; items are ranges of them.
 */
#ifndef ABSMARTLY_WORKER_SOURCE_H
#define ABSMARTLY_WORKER_SOURCE_H

#include "postgres.h"

#include "lib/ilist.h"
#include "nodes/bitmapset.h"
#include "nodes/pg_list.h"

#include "events/encoding.h"
#include "events/record.h"

/* A record of a source. */
typedef struct SourceRecord
{
	EventRecord *record;
	bool damaged; /* could not be read to its end */
	bool repeated; /* it is the one before once more, after a crash */
} SourceRecord;

typedef struct BatchSource
{
	dlist_node node; /* in live, or in done */
	SourceRecord *records; /* in the order of their events */
	int nrecords;
	SourceRecord only; /* if it is just one */
	const EventOrigin *origin; /* what it is sent under */
	uint64 context; /* key of the session context; 0: of none */
	char *header; /* a payload: the context as it is sent; if there is one */
	uint32 header_length;
	uint32 undone; /* items, and 1 while it is read */
	Bitmapset *settled; /* numbers of events that are delivered, or refused */
	List *letters; /* Refused: that are to be written for some of these */
	uint64 pending; /* events that wait on, in a record of what is left */
	bool give_back; /* what is left is to be read again */
	bool discarded; /* is not to be sent: its context has failed */
} BatchSource;

/* Where a walk over a source's events is. */
typedef struct SourceWalk
{
	const BatchSource *source;
	int record;
	bool open; /* the decoder is in that record */
	/* the event that it is at */
	uint32 number;
	const EventContext *context; /* that it is sent under */
	const EventExposure *exposure; /* NULL: it is a goal */
	const EventGoal *goal;
	int64 delay; /* by which it is younger than its record, ms */
	uint32 next; /* number of the next one */
} SourceWalk;

/*
 * Goes over the events of a source again, those that are settled included.
 * There is one walk at a time.
 */
extern void source_walk(SourceWalk *walk, const BatchSource *source);
extern bool source_next(SourceWalk *walk);

/* Goes to the first event of that number or after it. */
extern bool source_seek(SourceWalk *walk, uint32 number);

/* Adds the event that a walk is at to a payload; bytes that suffice for it. */
extern bool source_encode(const SourceWalk *walk, Encoder *encoder);
extern size_t source_bound(const SourceWalk *walk);

#endif /* ABSMARTLY_WORKER_SOURCE_H */
