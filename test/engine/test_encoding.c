/*
 * test_encoding.c
 *		Tests of the form in which events wait (events/encoding.h).
 */
#include <stdlib.h>
#include <string.h>

#include "engine/assign.h"
#include "events/encoding.h"
#include "harness.h"
#include "same_event.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* A text from a literal, NUL bytes included */
#define TEXT(literal) ((EngineText){(literal), sizeof(literal) - 1})
#define NO_TEXT ((EngineText){NULL, 0})

/* 2026-01-01 */
#define NOW INT64_C(1767225600000)

#define ROOM (1024 * 1024)

static Encoder encoder;
static Decoder decoder;
static char memory[ROOM];

/*
 * Events made from a number: the same number makes the same event.  They share
 * names, contexts and experiments, so that dictionaries matter.
 */

#define POOL_NAMES 40
#define MAX_UNITS 5
#define MAX_ATTRIBUTES 6

typedef struct Event
{
	EventKind kind;
	EventContext context;
	EventUnit units[MAX_UNITS];
	EventAttribute attributes[MAX_ATTRIBUTES];
	EventExposure exposure;
	EventGoal goal;
} Event;

static char pool[POOL_NAMES][64];
static uint64_t random_state;

static uint32_t
random_below(uint32_t limit)
{
	/* xorshift64* */
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return (uint32_t) ((random_state * UINT64_C(2685821657736338717)) >> 33) %
		   limit;
}

static void
random_seed(uint64_t seed)
{
	random_state = (seed + 1) * UINT64_C(0x9E3779B97F4A7C15);
}

static void
make_pool(void)
{
	for (int i = 0; i < POOL_NAMES; i++)
	{
		for (int j = 0; j < i; j++)
			pool[i][j] = (char) ('a' + (i * 7 + j * 3) % 26);
	}
}

static EngineText
random_name(uint32_t names)
{
	uint32_t i = random_below(names);

	return (EngineText){pool[i], i};
}

static int64_t
random_time(void)
{
	static const int64_t extremes[] = {INT64_MIN, INT64_MAX, 0, -1, 1, NOW};

	if (random_below(20) == 0)
		return extremes[random_below(COUNT(extremes))];
	return NOW - 1000 + random_below(2000);
}

static int64_t
random_id(void)
{
	static const int64_t extremes[] = {INT64_MIN, INT64_MAX, INT32_MIN, -1};

	if (random_below(20) == 0)
		return extremes[random_below(COUNT(extremes))];
	return random_below(3);
}

static EngineText
random_json(void)
{
	static const char *const values[] = {"null", "1", "\"text\"", "[1,2]", ""};
	const char *value = values[random_below(COUNT(values))];

	return (EngineText){value, strlen(value)};
}

static void
make_context(Event *event)
{
	EventContext *context = &event->context;

	context->units = event->units;
	context->attributes = event->attributes;
	context->nunits = random_below(2) == 0 ? 1 : random_below(MAX_UNITS + 1);
	context->historic = random_below(5) == 0;
	if (random_below(2) == 0)
		context->nattributes = random_below(MAX_ATTRIBUTES + 1);
	context->own_times = random_below(3) == 0;
	if (context->nattributes > 0 && !context->own_times)
		context->set_at = random_time();
	for (uint32_t i = 0; i < context->nunits; i++)
	{
		event->units[i].type = random_name(4);
		memset(event->units[i].hash, (int) random_below(3),
			   ENCODING_UNIT_BYTES);
	}
	for (uint32_t i = 0; i < context->nattributes; i++)
	{
		event->attributes[i].name = random_name(POOL_NAMES);
		event->attributes[i].value = random_json();
		if (context->own_times)
			event->attributes[i].set_at =
				random_below(5) == 0 ? ENCODING_AT_PUBLISH : random_time();
	}
}

static void
make_event(uint64_t seed, Event *event)
{
	memset(event, 0, sizeof(*event));

	/* events that follow each other often have the same context */
	random_seed(seed / 3);
	make_context(event);
	random_seed(seed);
	if (random_below(2) == 0)
	{
		EventExposure *exposure = &event->exposure;

		event->kind = EVENT_EXPOSURE;
		exposure->id = random_id();
		exposure->name = random_name(6);
		exposure->unit_type = random_below(3) == 0 ? NO_TEXT : random_name(3);
		exposure->variant =
			random_below(10) == 0 ? INT32_MIN : (int32_t) random_below(200);
		exposure->flags = random_below(256);
		exposure->has_holdouts = random_below(2) == 0;
		exposure->holdout_id = exposure->has_holdouts ? random_id() : 0;
		exposure->exposed_at = random_time();
	}
	else
	{
		event->kind = EVENT_GOAL;
		event->goal.name = random_name(POOL_NAMES);
		event->goal.properties = random_below(2) == 0 ? NO_TEXT : random_json();
		event->goal.achieved_at = random_time();
	}
}

static bool
add(const Event *event)
{
	return event->kind == EVENT_EXPOSURE
			   ? encoder_add_exposure(&encoder, &event->context,
									  &event->exposure)
			   : encoder_add_goal(&encoder, &event->context, &event->goal);
}

static size_t
bound(const Event *event)
{
	return event->kind == EVENT_EXPOSURE
			   ? encoder_exposure_bound(&event->context, &event->exposure)
			   : encoder_goal_bound(&event->context, &event->goal);
}

/* Reads on to the next event, which must be this one; counts contexts. */
static bool
next_is(const Event *event, unsigned *contexts)
{
	EventKind kind;

	while ((kind = decoder_next(&decoder)) == EVENT_CONTEXT)
		(*contexts)++;
	return kind == event->kind &&
		   same_context(&event->context, &decoder.context) &&
		   (kind == EVENT_EXPOSURE
				? same_exposure(&event->exposure, &decoder.exposure)
				: same_goal(&event->goal, &decoder.goal));
}

/* Whether the payload holds the events of these numbers and no more. */
static bool
holds(const uint64_t *seeds, unsigned count)
{
	unsigned contexts = 0;
	Event event;

	if (!decoder_begin(&decoder, encoder.data, encoder.at.length))
		return false;
	for (unsigned i = 0; i < count; i++)
	{
		make_event(seeds[i], &event);
		if (!next_is(&event, &contexts))
			return false;
	}
	return decoder_next(&decoder) == EVENT_END &&
		   contexts == encoder.at.contexts &&
		   count == encoder.at.exposures + encoder.at.goals;
}

/* Whether two payloads that were written alike are alike. */
static bool
same_mark(const EncoderMark *left, const EncoderMark *right)
{
	return left->length == right->length && left->contexts == right->contexts &&
		   left->exposures == right->exposures && left->goals == right->goals &&
		   left->ntexts == right->ntexts &&
		   left->nexperiments == right->nexperiments &&
		   left->last_time == right->last_time;
}

static void
test_round_trips(void)
{
	unsigned wrong = 0;
	uint64_t seeds[300];

	for (unsigned round = 0; round < 300; round++)
	{
		Event event;

		encoder_begin(&encoder, memory, ROOM);
		for (unsigned i = 0; i < round; i++)
		{
			seeds[i] = (uint64_t) round * 1000 + i;
			make_event(seeds[i], &event);
			if (!add(&event))
				wrong++;
		}
		if (!holds(seeds, round))
			wrong++;
	}
	tap_ok(wrong == 0, "events come out as they went in");
}

/*
 * At every capacity events go in until one does not fit; then the payload is
 * as it was, and what still fits goes in.
 */
static void
test_no_room(void)
{
	unsigned wrong = 0;
	unsigned refused = 0;
	uint64_t seeds[64];

	for (uint32_t capacity = 64; capacity < 1500; capacity++)
	{
		char *exact = malloc(capacity);
		char *before = malloc(capacity);
		unsigned count = 0;

		if (exact == NULL || before == NULL)
			abort();
		encoder_begin(&encoder, exact, capacity);
		for (unsigned i = 0; i < COUNT(seeds); i++)
		{
			uint64_t seed = (uint64_t) capacity * 100 + i;
			EncoderMark mark = encoder.at;
			Event event;

			memcpy(before, exact, mark.length);
			make_event(seed, &event);
			if (add(&event))
				seeds[count++] = seed;
			else
			{
				refused++;
				if (!same_mark(&mark, &encoder.at) ||
					memcmp(before, exact, mark.length) != 0)
					wrong++;
			}
		}
		if (!holds(seeds, count))
			wrong++;
		free(before);
		free(exact);
	}
	tap_ok(wrong == 0, "without room a payload stays as it was");
	tap_ok(refused > 1000, "and this was tried");
}

static void
test_bounds(void)
{
	unsigned wrong = 0;

	for (uint64_t seed = 0; seed < 5000; seed++)
	{
		uint32_t capacity;
		char *exact;
		Event event;

		make_event(seed, &event);
		capacity = (uint32_t) bound(&event);
		if (capacity < 64)
			capacity = 64;
		exact = malloc(capacity);
		if (exact == NULL)
			abort();
		encoder_begin(&encoder, exact, capacity);
		if (!add(&event) || !holds(&seed, 1))
			wrong++;
		free(exact);
	}
	tap_ok(wrong == 0, "an event fits an empty payload of its bound");
}

/* Going back makes a payload as if nothing had come after the mark. */
static void
test_truncate(void)
{
	static char other[ROOM];
	static Encoder straight;
	unsigned wrong = 0;
	uint64_t seeds[400];

	for (unsigned round = 0; round < 400; round++)
	{
		EncoderMark mark;
		Event event;
		unsigned kept = round / 2;

		encoder_begin(&encoder, memory, ROOM);
		mark = encoder.at;
		for (unsigned i = 0; i < round; i++)
		{
			if (i == kept)
				mark = encoder.at;
			seeds[i] = (uint64_t) round * 1000 + i;
			make_event(seeds[i], &event);
			if (!add(&event))
				wrong++;
		}
		if (kept == 0)
			encoder_begin(&encoder, memory, ROOM);
		else
			encoder_truncate(&encoder, &mark);
		if (!same_mark(&mark, &encoder.at) || !holds(seeds, kept))
			wrong++;

		/* texts and times go on from the mark */
		straight = encoder;
		memcpy(other, memory, mark.length);
		for (unsigned i = kept; i < round; i++)
		{
			seeds[i] = (uint64_t) round * 1000 + 500 + i;
			make_event(seeds[i], &event);
			if (!add(&event))
				wrong++;
		}
		if (!holds(seeds, round))
			wrong++;

		/* and the index over texts is what it would have been */
		encoder_begin(&encoder, memory, ROOM);
		for (unsigned i = 0; i < kept; i++)
		{
			seeds[i] = (uint64_t) round * 1000 + i;
			make_event(seeds[i], &event);
			if (!add(&event))
				wrong++;
		}
		if (memcmp(straight.slots, encoder.slots, sizeof(encoder.slots)) != 0 ||
			memcmp(other, memory, mark.length) != 0)
			wrong++;
	}
	tap_ok(wrong == 0, "going back to a mark leaves nothing behind");
}

static EventContext
one_unit(EventUnit *unit, EngineText type, int number)
{
	EventContext context = {.units = unit, .nunits = 1};

	unit->type = type;
	memset(unit->hash, 0, ENCODING_UNIT_BYTES);
	memcpy(unit->hash, &number, sizeof(number));
	return context;
}

/* Goals of as many names as there can be, then one of a known name. */
static void
test_text_limit(void)
{
	EventUnit unit;
	EventContext context = one_unit(&unit, TEXT("user_id"), 1);
	EventGoal goal = {.properties = NO_TEXT, .achieved_at = NOW};
	char name[16];
	int count = 0;

	encoder_begin(&encoder, memory, ROOM);
	goal.name.data = name;
	for (;;)
	{
		int number = count;

		goal.name.length = 6;
		for (int i = 5; i >= 0; i--, number /= 10)
			name[i] = (char) ('0' + number % 10);
		if (!encoder_add_goal(&encoder, &context, &goal))
			break;
		count++;
	}
	tap_ok(count == ENCODING_MAX_TEXTS - 1, "%d goals of different names",
		   count);
	tap_ok(encoder.at.contexts == 1, "are of one context");
	memcpy(name, "000017", 6);
	tap_ok(encoder_add_goal(&encoder, &context, &goal),
		   "a known name is still good");

	count = 0;
	if (decoder_begin(&decoder, memory, encoder.at.length))
	{
		EventKind kind;

		while ((kind = decoder_next(&decoder)) != EVENT_END &&
			   kind != EVENT_MALFORMED)
			count += kind == EVENT_GOAL;
	}
	tap_ok(count == ENCODING_MAX_TEXTS &&
			   same_text(decoder.goal.name, TEXT("000017")),
		   "and all are read");
}

static void
test_delays(void)
{
	static const int64_t delays[] = {0, 0, 5, 5, -1, INT64_MAX, INT64_MIN, 7};
	EventUnit unit;
	EventContext context = one_unit(&unit, TEXT("user_id"), 1);
	EventGoal goal = {.name = TEXT("goal"), .achieved_at = NOW};
	EncoderMark mark;
	uint32_t before;
	int read = 0;

	encoder_begin(&encoder, memory, ROOM);
	for (size_t i = 0; i < COUNT(delays); i++)
		if (!encoder_set_delay(&encoder, delays[i]) ||
			!encoder_add_goal(&encoder, &context, &goal))
			abort();
	tap_ok(encoder.at.contexts == 1, "a delay leaves the context in force");
	before = encoder.at.length;
	tap_ok(encoder_set_delay(&encoder, 7) && encoder.at.length == before,
		   "the same delay takes no room");

	mark = encoder.at;
	encoder_set_delay(&encoder, 1000);
	encoder_truncate(&encoder, &mark);
	encoder_set_delay(&encoder, 8);
	encoder_add_goal(&encoder, &context, &goal);
	if (!decoder_begin(&decoder, memory, encoder.at.length))
		abort();
	for (size_t i = 0; i < COUNT(delays); i++)
	{
		EventKind kind = decoder_next(&decoder);

		if (kind == EVENT_CONTEXT)
			kind = decoder_next(&decoder);
		read += kind == EVENT_GOAL && decoder.delay == delays[i];
	}
	tap_ok(read == COUNT(delays), "each event has its delay");
	while (decoder_next(&decoder) == EVENT_CONTEXT)
		;
	tap_ok(decoder.delay == 8, "also after going back");

	encoder_begin(&encoder, memory, 64);
	encoder.at.length = 64 - 5;
	tap_ok(!encoder_set_delay(&encoder, 1) && encoder.at.length == 64 - 5,
		   "a delay without room is not written");
}

static void
test_experiment_limit(void)
{
	EventUnit unit;
	EventContext context = one_unit(&unit, TEXT("user_id"), 1);
	EventExposure exposure = {.name = TEXT("experiment"),
							  .unit_type = TEXT("user_id"),
							  .exposed_at = NOW};

	encoder_begin(&encoder, memory, ROOM);
	while (encoder_add_exposure(&encoder, &context, &exposure))
		exposure.id++;
	tap_ok(exposure.id == ENCODING_MAX_EXPERIMENTS,
		   "%d experiments of one name", (int) exposure.id);
	exposure.id = 17;
	tap_ok(encoder_add_exposure(&encoder, &context, &exposure),
		   "a known one is still good");
	exposure.unit_type = NO_TEXT;
	tap_ok(!encoder_add_exposure(&encoder, &context, &exposure),
		   "with another unit type it is another one");
}

/* The largest context fits an empty payload. */
static void
test_context_limit(void)
{
	static EventUnit units[ENCODING_MAX_UNITS + 1];
	static EventAttribute attributes[ENCODING_MAX_ATTRIBUTES + 1];
	static char names[ENCODING_MAX_UNITS + ENCODING_MAX_ATTRIBUTES + 2][4];
	EventContext context = {.units = units,
							.nunits = ENCODING_MAX_UNITS,
							.attributes = attributes,
							.nattributes = ENCODING_MAX_ATTRIBUTES,
							.set_at = NOW};
	EventExposure exposure = {.name = TEXT("experiment"),
							  .unit_type = TEXT("user_id"),
							  .exposed_at = NOW};

	for (unsigned i = 0; i < COUNT(names); i++)
	{
		EngineText name = {names[i], 4};

		memcpy(names[i], &i, 4);
		if (i <= ENCODING_MAX_UNITS)
			units[i].type = name;
		else
		{
			attributes[i - ENCODING_MAX_UNITS - 1].name = name;
			attributes[i - ENCODING_MAX_UNITS - 1].value = TEXT("true");
		}
	}
	encoder_begin(&encoder, memory, ROOM);
	tap_ok(encoder_add_exposure(&encoder, &context, &exposure) &&
			   encoder_add_exposure(&encoder, &context, &exposure),
		   "the largest context is taken");
	tap_ok(encoder.at.contexts == 1, "and continued");
	tap_ok(decoder_begin(&decoder, memory, encoder.at.length) &&
			   decoder_next(&decoder) == EVENT_CONTEXT &&
			   same_context(&context, &decoder.context) &&
			   decoder_next(&decoder) == EVENT_EXPOSURE &&
			   decoder_next(&decoder) == EVENT_EXPOSURE &&
			   decoder_next(&decoder) == EVENT_END,
		   "and read");
	encoder_begin(&encoder, memory, ROOM);
	context.nunits++;
	tap_ok(!encoder_add_exposure(&encoder, &context, &exposure),
		   "one unit more is refused");
	context.nunits--;
	context.nattributes++;
	tap_ok(!encoder_add_exposure(&encoder, &context, &exposure),
		   "one attribute more is refused");
}

/* Each change of the context starts another one. */
static void
test_continuation(void)
{
	EventUnit units[2];
	EventAttribute attributes[2] = {{TEXT("age"), TEXT("5"), 0},
									{TEXT("lang"), TEXT("\"en\""), 0}};
	EventContext context = one_unit(&units[0], TEXT("user_id"), 1);
	EventExposure exposure = {.id = 1,
							  .name = TEXT("experiment"),
							  .unit_type = TEXT("user_id"),
							  .exposed_at = NOW};
	EventGoal goal = {.name = TEXT("goal"), .properties = TEXT("{}")};
	EncoderMark mark;

#define CONTEXTS(count, words)                                    \
	tap_ok(encoder_add_exposure(&encoder, &context, &exposure) && \
			   encoder_add_goal(&encoder, &context, &goal) &&     \
			   encoder.at.contexts == (count),                    \
		   "%s", words)

	(void) one_unit(&units[1], TEXT("session_id"), 2);
	encoder_begin(&encoder, memory, ROOM);
	CONTEXTS(1, "a unit");
	CONTEXTS(1, "the same unit");
	units[0].hash[15] = 1;
	CONTEXTS(2, "another one");
	units[0].type = TEXT("device");
	CONTEXTS(3, "another type");
	context.historic = true;
	CONTEXTS(4, "historic");
	CONTEXTS(4, "the same");
	context.nunits = 2;
	CONTEXTS(5, "a second unit");
	CONTEXTS(5, "the same two");
	units[1].hash[0]++;
	CONTEXTS(6, "another second one");
	context.historic = false;
	CONTEXTS(7, "not historic");
	context.attributes = attributes;
	context.nattributes = 1;
	context.set_at = NOW;
	CONTEXTS(8, "an attribute");
	exposure.exposed_at += 5;
	CONTEXTS(8, "the same attribute at another time");
	context.set_at++;
	CONTEXTS(9, "set at another time");
	attributes[0].value = TEXT("6");
	CONTEXTS(10, "of another value");
	attributes[0].name = TEXT("ages");
	CONTEXTS(11, "another one");
	context.nattributes = 2;
	CONTEXTS(12, "a second one");
	CONTEXTS(12, "the same two attributes");
	context.own_times = true;
	CONTEXTS(13, "attributes with times of their own");
	CONTEXTS(13, "the same times");
	context.set_at++;
	CONTEXTS(13, "the context's is of no account");
	attributes[1].set_at = NOW;
	CONTEXTS(14, "another time of the second one");
	attributes[0].set_at = ENCODING_AT_PUBLISH;
	CONTEXTS(15, "the first one is set at publishing");
	CONTEXTS(15, "the same");
	context.nattributes = 0;
	CONTEXTS(16, "no attributes");
	context.set_at++;
	CONTEXTS(16, "whose time is of no account");
	context.own_times = false;
	CONTEXTS(16, "nor whose it is");
	context.nunits = 0;
	CONTEXTS(17, "no units");
	CONTEXTS(17, "still none");
	mark = encoder.at;
	encoder_truncate(&encoder, &mark);
	CONTEXTS(18, "a context starts after going back");
	context.identity = 7;
	CONTEXTS(19, "an identity");
	context.nunits = 2;
	CONTEXTS(19, "the same one: nobody looks further");
	context.identity = 8;
	CONTEXTS(20, "another one");
	context.identity = 0;
	CONTEXTS(20, "none: compared again");
	context.identity = 8;
	mark = encoder.at;
	encoder_truncate(&encoder, &mark);
	CONTEXTS(21, "an identity is forgotten by going back");
	encoder_begin(&encoder, memory, ROOM);
	CONTEXTS(1, "and by beginning");
}

/* A context may stand alone, and is written each time. */
static void
test_context_alone(void)
{
	EventUnit unit;
	EventAttribute attributes[3] = {
		{TEXT("age"), TEXT("5"), NOW},
		{TEXT("age"), TEXT("null"), ENCODING_AT_PUBLISH},
		{TEXT("age"), TEXT("6"), NOW - 5}};
	EventContext context = one_unit(&unit, TEXT("user_id"), 1);
	EventGoal goal = {.name = TEXT("goal"), .achieved_at = NOW};
	EventContext large = context;
	uint32_t capacity;
	char *exact;

	encoder_begin(&encoder, memory, ROOM);
	tap_ok(encoder_add_context(&encoder, &context) &&
			   encoder_add_context(&encoder, &context),
		   "a context without events");
	context.attributes = attributes;
	context.nattributes = 3;
	context.own_times = true;
	tap_ok(encoder_add_context(&encoder, &context) &&
			   encoder_add_goal(&encoder, &context, &goal),
		   "another one, which goes on with an event");
	tap_ok(encoder.at.contexts == 3 && encoder.at.goals == 1 &&
			   encoder.at.exposures == 0,
		   "are counted");
	tap_ok(decoder_begin(&decoder, memory, encoder.at.length) &&
			   decoder_next(&decoder) == EVENT_CONTEXT &&
			   decoder_next(&decoder) == EVENT_CONTEXT &&
			   decoder.context.nunits == 1 &&
			   decoder.context.nattributes == 0 &&
			   decoder_next(&decoder) == EVENT_CONTEXT &&
			   same_context(&context, &decoder.context) &&
			   decoder_next(&decoder) == EVENT_GOAL &&
			   same_goal(&goal, &decoder.goal) &&
			   decoder_next(&decoder) == EVENT_END,
		   "and read");

	capacity = (uint32_t) encoder_context_bound(&context);
	exact = malloc(capacity);
	if (exact == NULL)
		abort();
	encoder_begin(&encoder, exact, capacity);
	tap_ok(encoder_add_context(&encoder, &context),
		   "it fits an empty payload of its bound");
	large.nunits = ENCODING_MAX_UNITS + 1;
	tap_ok(!encoder_add_context(&encoder, &context) &&
			   !encoder_add_context(&encoder, &large) &&
			   encoder.at.contexts == 1,
		   "without room it is refused");
	free(exact);
}

/* Bytes that are not what was written: no crash, and an end. */
static void
test_damage(void)
{
	char *exact;
	unsigned ends = 0;
	unsigned tries = 0;
	uint32_t length;

	encoder_begin(&encoder, memory, ROOM);
	for (uint64_t seed = 7000; seed < 7060; seed++)
	{
		Event event;

		make_event(seed, &event);
		(void) add(&event);
	}
	length = encoder.at.length;
	for (uint32_t cut = 0; cut < length; cut++)
	{
		EventKind kind = EVENT_END;

		/* memory of the exact size, for sanitizers */
		exact = malloc(cut > 0 ? cut : 1);
		if (exact == NULL)
			abort();
		memcpy(exact, memory, cut);
		tries++;
		if (decoder_begin(&decoder, exact, cut))
		{
			do
				kind = decoder_next(&decoder);
			while (kind != EVENT_END && kind != EVENT_MALFORMED);
		}
		ends += decoder_next(&decoder) == kind || cut == 0;
		free(exact);
	}
	tap_ok(ends == tries, "a payload that is cut off has an end");

	exact = malloc(length);
	if (exact == NULL)
		abort();
	random_seed(1);
	ends = tries = 0;
	for (unsigned i = 0; i < 20000; i++)
	{
		EventKind kind;

		memcpy(exact, memory, length);
		for (unsigned j = 0; j <= i % 5; j++)
			exact[1 + random_below(length - 1)] ^=
				(char) (1 << random_below(8));
		if (!decoder_begin(&decoder, exact, length))
			continue;
		tries++;
		do
			kind = decoder_next(&decoder);
		while (kind != EVENT_END && kind != EVENT_MALFORMED);
		ends += decoder_next(&decoder) == kind;
	}
	free(exact);
	tap_ok(ends == tries && tries == 20000, "and one that was tampered with");
}

#define MALFORMED(words, ...)                                        \
	do                                                               \
	{                                                                \
		static const char bytes[] = {ENCODING_VERSION, __VA_ARGS__}; \
		EventKind kind = EVENT_END;                                  \
		if (decoder_begin(&decoder, bytes, sizeof(bytes)))           \
		{                                                            \
			do                                                       \
				kind = decoder_next(&decoder);                       \
			while (kind != EVENT_END && kind != EVENT_MALFORMED);    \
		}                                                            \
		tap_ok(kind == EVENT_MALFORMED, "malformed: %s", words);     \
	} while (0)

#define SIXTEEN 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
#define ONES                                                                \
	(char) 255, (char) 255, (char) 255, (char) 255, (char) 255, (char) 255, \
		(char) 255, (char) 255, (char) 255

static void
test_malformed(void)
{
	tap_ok(encoding_version("", 0) == 0, "an empty payload has no version");
	tap_ok(encoding_version("\xFF", 1) == 255, "the version is the first byte");
	tap_ok(!decoder_begin(&decoder, "", 0), "an empty payload is not read");
	tap_ok(!decoder_begin(&decoder, "\x02", 1), "nor is a newer one");
	tap_ok(decoder_begin(&decoder, "\x01", 1) &&
			   decoder_next(&decoder) == EVENT_END,
		   "there may be no events");
	MALFORMED("operation 0", 0);
	MALFORMED("an unknown operation", 11);
	MALFORMED("a text without length", 1);
	MALFORMED("a text that is too short", 1, 2, 'a');
	MALFORMED("a length of 2^64 - 1", 1, ONES, 1, 'a');
	MALFORMED("a number of 65 bits", 1, ONES, 2, 'a');
	MALFORMED("a number without end", 1, ONES, ONES);
	MALFORMED("an experiment of no text", 2, 0, 0, 0);
	MALFORMED("a unit type of no text", 1, 1, 'a', 2, 0, 0, 2);
	MALFORMED("flags of a context", 3, 2, 0, 0);
	MALFORMED("257 units", 3, 0, (char) 0x81, 2, 0);
	MALFORMED("1025 attributes", 3, 0, 0, (char) 0x81, 8, 0);
	MALFORMED("1025 attributes with times", 10, 0, 0, (char) 0x81, 8, 0);
	MALFORMED("flags of a context with times", 10, 2, 0, 0);
	MALFORMED("an attribute of no name", 1, 1, 'a', 10, 0, 0, 1, 2, 0, 0);
	MALFORMED("an attribute set at publishing of no name", 1, 1, 'a', 10, 0, 0,
			  1, 3, 0);
	MALFORMED("an attribute without its time", 1, 1, 'a', 10, 0, 0, 1, 0);
	MALFORMED("a unit of no type", 4, 0, SIXTEEN);
	MALFORMED("an exposure without context", 1, 1, 'a', 2, 0, 0, 0, 6, 0, 0, 0,
			  0);
	MALFORMED("an exposure of no experiment", 3, 0, 0, 0, 6, 0, 0, 0, 0);
	MALFORMED("a variant of 33 bits", 3, 0, 0, 0, 1, 1, 'a', 2, 0, 0, 0, 6, 0,
			  0, (char) 0x80, (char) 0x80, (char) 0x80, (char) 0x80, 0x10, 0);
	MALFORMED("a goal without context", 1, 1, 'a', 8, 0, 0);
	MALFORMED("a goal of no name", 3, 0, 0, 0, 8, 0, 0);
}

/* The size that memory and disk are planned for */
static void
test_size(void)
{
	EventExposure exposure = {.name = TEXT("checkout_button_color"),
							  .unit_type = TEXT("user_id"),
							  .variant = 1,
							  .flags = ASSIGN_ASSIGNED | ASSIGN_ELIGIBLE,
							  .exposed_at = NOW};
	uint32_t last = 0;
	uint32_t most = 0;
	bool done = true;

	encoder_begin(&encoder, memory, ROOM);
	for (int i = 0; i < 10000; i++)
	{
		EventUnit unit;
		EventContext context = one_unit(&unit, TEXT("user_id"), i);

		exposure.id = i % 200;
		exposure.exposed_at += i % 60;
		done = encoder_add_exposure(&encoder, &context, &exposure) && done;
		if (i >= 200 && encoder.at.length - last > most)
			most = encoder.at.length - last;
		last = encoder.at.length;
	}
	tap_ok(done && encoder.at.contexts == 10000 && most <= 25,
		   "an exposure of a unit of its own takes up to %u bytes", most);
}

int
main(void)
{
	make_pool();
	test_round_trips();
	test_no_room();
	test_bounds();
	test_truncate();
	test_text_limit();
	test_delays();
	test_experiment_limit();
	test_context_limit();
	test_continuation();
	test_context_alone();
	test_damage();
	test_malformed();
	test_size();
	return tap_done();
}
