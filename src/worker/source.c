/*
 * source.c
 *		Sources: the records whose events are being delivered.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "worker/source.h"

static Decoder decoder;
static Decoder header_decoder;

void
source_walk(SourceWalk *walk, const BatchSource *source)
{
	*walk = (SourceWalk){.source = source, .record = -1};
	walk->context = &decoder.context;
	if (source->header != NULL)
	{
		(void) decoder_begin(&header_decoder, source->header,
							 source->header_length);
		(void) decoder_next(&header_decoder);
		walk->context = &header_decoder.context;
	}
}

/* Goes to the next record that can be read; false at the source's end. */
static bool
open_record(SourceWalk *walk)
{
	while (!walk->open && ++walk->record < walk->source->nrecords)
	{
		const SourceRecord *record = &walk->source->records[walk->record];
		const EventPayload *payload = &record->record->payload;

		walk->open = !record->repeated &&
					 decoder_begin(&decoder, payload->data, payload->length);
	}
	return walk->open;
}

/* The walk has come to an exposure, or to a goal. */
static void
come_to(SourceWalk *walk, const EventExposure *exposure, const EventGoal *goal)
{
	const EventRecord *record = walk->source->records[walk->record].record;

	walk->number = walk->next++;
	walk->exposure = exposure;
	walk->goal = goal;
	walk->created = TimestampTzPlusMilliseconds(record->created, decoder.delay);
}

bool
source_next(SourceWalk *walk)
{
	while (open_record(walk))
	{
		switch (decoder_next(&decoder))
		{
			case EVENT_CONTEXT:
				break;
			case EVENT_EXPOSURE:
				come_to(walk, &decoder.exposure, NULL);
				return true;
			case EVENT_GOAL:
				come_to(walk, NULL, &decoder.goal);
				return true;
			case EVENT_END:
			case EVENT_MALFORMED:
				walk->open = false;
				break;
		}
	}
	return false;
}

bool
source_seek(SourceWalk *walk, uint32 number)
{
	do
	{
		if (!source_next(walk))
			return false;
	} while (walk->number < number);
	return true;
}
