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
		SourceRecord *record = &walk->source->records[walk->record];
		const EventPayload *payload = &record->record->payload;

		if (record->repeated)
			continue;
		walk->open = decoder_begin(&decoder, payload->data, payload->length);
		if (!walk->open)
			record->damaged = true;
	}
	return walk->open;
}

bool
source_next(SourceWalk *walk)
{
	while (open_record(walk))
	{
		EventKind kind = decoder_next(&decoder);

		if (kind == EVENT_CONTEXT)
			continue;
		if (kind == EVENT_END || kind == EVENT_MALFORMED)
		{
			if (kind == EVENT_MALFORMED)
				walk->source->records[walk->record].damaged = true;
			walk->open = false;
			continue;
		}
		walk->number = walk->next++;
		walk->exposure = kind == EVENT_EXPOSURE ? &decoder.exposure : NULL;
		walk->goal = kind == EVENT_GOAL ? &decoder.goal : NULL;
		walk->delay = decoder.delay;
		return true;
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

bool
source_encode(const SourceWalk *walk, Encoder *encoder)
{
	return walk->goal != NULL
			   ? encoder_add_goal(encoder, walk->context, walk->goal)
			   : encoder_add_exposure(encoder, walk->context, walk->exposure);
}

size_t
source_bound(const SourceWalk *walk)
{
	return walk->goal != NULL
			   ? encoder_goal_bound(walk->context, walk->goal)
			   : encoder_exposure_bound(walk->context, walk->exposure);
}
