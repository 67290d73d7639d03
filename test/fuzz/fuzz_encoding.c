/*
 * fuzz_encoding.c
 *		Fuzz target: a payload of events is read, and written again.
 *
 * What can be read must be the same when it is written and read once more.
 */
#include <stdlib.h>

#include "../engine/same_event.h"
#include "fuzz.h"

static Decoder first;
static Decoder second;
static Encoder encoder;

/* The next event, after the context that it belongs to. */
static EventKind
next_event(Decoder *decoder)
{
	EventKind kind;

	do
		kind = decoder_next(decoder);
	while (kind == EVENT_CONTEXT);
	return kind;
}

static bool
write_event(EventKind kind, const Decoder *decoder)
{
	return kind == EVENT_EXPOSURE
			   ? encoder_add_exposure(&encoder, &decoder->context,
									  &decoder->exposure)
			   : encoder_add_goal(&encoder, &decoder->context, &decoder->goal);
}

/*
 * Writes a context; every other one alone, without an event.  False if it does
 * not fit.
 */
static bool
write_context(const Decoder *decoder)
{
	static unsigned contexts = 0;
	uint32_t before = encoder.at.contexts;

	if (contexts++ % 2 == 0)
		return true;
	return encoder_add_context(&encoder, &decoder->context) &&
		   encoder.at.contexts == before + 1;
}

/*
 * Writes what data holds; gives the number of events.  It may be more than
 * fits: an event that says what others have said already takes few bytes in
 * data.
 */
static unsigned
write_again(const char *data, size_t size)
{
	unsigned events = 0;
	EventKind kind;

	if (!decoder_begin(&first, data, size))
		return 0;
	while ((kind = decoder_next(&first)) != EVENT_END &&
		   kind != EVENT_MALFORMED)
	{
		EncoderMark mark = encoder.at;

		if (kind == EVENT_CONTEXT)
		{
			if (!write_context(&first))
				break;
			continue;
		}

		/* what is taken back must leave no trace */
		if (write_event(kind, &first) && events % 3 == 0)
		{
			encoder_truncate(&encoder, &mark);
			if (!write_event(kind, &first))
				break;
		}
		else if (encoder.at.exposures + encoder.at.goals == events)
		{
			if (encoder.at.length != mark.length ||
				encoder.at.ntexts != mark.ntexts)
				abort();
			break;
		}
		events++;
	}

	/* the end, of whatever kind, stays the end */
	if ((kind == EVENT_END || kind == EVENT_MALFORMED) &&
		decoder_next(&first) != kind)
		abort();
	return events;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint32_t capacity = (uint32_t) (4 * size + 4096);
	char *memory = malloc(capacity);
	unsigned events;

	if (memory == NULL)
		abort();
	encoder_begin(&encoder, memory, capacity);
	events = write_again((const char *) data, size);
	if (encoder.at.exposures + encoder.at.goals != events)
		abort();

	if (!decoder_begin(&second, memory, encoder.at.length))
		abort();
	if (events > 0 && !decoder_begin(&first, (const char *) data, size))
		abort();
	for (unsigned i = 0; i < events; i++)
	{
		EventKind kind = next_event(&first);

		if (next_event(&second) != kind ||
			!same_context(&first.context, &second.context))
			abort();
		if (kind == EVENT_EXPOSURE
				? !same_exposure(&first.exposure, &second.exposure)
				: !same_goal(&first.goal, &second.goal))
			abort();
	}
	if (next_event(&second) != EVENT_END)
		abort();
	free(memory);
	return 0;
}
