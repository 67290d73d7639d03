/*
 * encoding.c
 *		The binary form in which events wait to be sent (DESIGN 6.1).
 *
 * Version 1, to the byte.  Numbers are varints: seven bits a byte, the lowest
 * first, the highest bit set in all bytes but the last; 64 bits at most.
 * Numbers that may be negative (signed) are zigzag-coded first: 0, -1, 1, -2
 * become 0, 1, 2, 3.  A time is the signed difference in ms, modulo 2^64, to
 * the time that stands before it in the payload, the first one to 0.  Texts
 * and experiments are numbered from 0 as they are defined.
 *
 *	payload			the byte 1, operations
 *
 *	01 text			length, bytes
 *	02 experiment	signed id, name (a text's number), unit type (a text's
 *					number + 1; 0: null)
 *	03 context		flag byte (1: historic), number of units, for each its
 *					type (a text's number) and the 16 bytes of its hash;
 *					number of attributes, and unless that is 0 the time at
 *					which they were set, and for each its name (a text's
 *					number), the length of its value, and the value's bytes
 *	04 context		of one unit, without attributes, not historic: type (a
 *					text's number in one byte), 16 bytes
 *	05 context		the same, historic
 *	06 exposure		experiment's number, flag byte (ASSIGN_...), signed
 *					variant, time
 *	07 exposure		of data with holdouts: the same, then signed holdout id
 *	08 goal			name (a text's number), time, without properties
 *	09 goal			name (a text's number), time, length of the properties,
 *					their bytes
 *	0A context		whose attributes have times of their own: as 03, but the
 *					attributes are not preceded by a time, and each has twice
 *					its name's number, plus 1 if it is set when it is
 *					published, or else followed by its time
 *	0B delay		signed: the events that follow are so many ms younger,
 *					compared with the record, than those before
 *
 * Exposures and goals belong to the context before them.  An exposure of a
 * unit of its own thus takes some 23 bytes.
 */
#include <string.h>

#include "engine/hash.h"
#include "events/encoding.h"

typedef enum Operation
{
	OP_TEXT = 1,
	OP_EXPERIMENT,
	OP_CONTEXT,
	OP_UNIT,
	OP_UNIT_HISTORIC,
	OP_EXPOSURE,
	OP_EXPOSURE_HOLDOUTS,
	OP_GOAL,
	OP_GOAL_PROPERTIES,
	OP_CONTEXT_TIMES,
	OP_DELAY
} Operation;

#define CONTEXT_HISTORIC 0x01
#define ATTRIBUTE_AT_PUBLISH 0x01

/* bytes that suffice for a number, a number of 32 bits, a number in a table */
#define VARINT_64 10
#define VARINT_32 5
#define VARINT_INDEX 2

/* operations 04 and 05 */
#define UNIT_BYTES (2 + ENCODING_UNIT_BYTES)
#define UNIT_MAX_TYPES 256

_Static_assert(2 * ENCODING_MAX_TEXTS < 1 << (7 * VARINT_INDEX) &&
				   ENCODING_MAX_EXPERIMENTS < 1 << (7 * VARINT_INDEX),
			   "indexes must fit their bytes");
_Static_assert(ENCODER_SLOTS >= 2 * ENCODING_MAX_TEXTS &&
				   (ENCODER_SLOTS & (ENCODER_SLOTS - 1)) == 0,
			   "the index over texts must stay half empty");
_Static_assert(ENCODING_MAX_UNITS + ENCODING_MAX_ATTRIBUTES + 2 <=
				   ENCODING_MAX_TEXTS,
			   "an empty payload must have room for any event's texts");

/*
 * Writing
 *
 * Room is looked for before anything is written, generously: what a bound says
 * suffices, and so nothing ever needs to be undone.
 */

static inline uint64_t
zigzag(int64_t value)
{
	return ((uint64_t) value << 1) ^ (value < 0 ? UINT64_MAX : 0);
}

static inline int64_t
unzigzag(uint64_t value)
{
	return (int64_t) (value >> 1) ^ -(int64_t) (value & 1);
}

static inline char *
put_byte(char *to, unsigned value)
{
	*to = (char) (unsigned char) value;
	return to + 1;
}

static inline char *
put_varint(char *to, uint64_t value)
{
	while (value >= 0x80)
	{
		to = put_byte(to, (unsigned) (value & 0x7F) | 0x80);
		value >>= 7;
	}
	return put_byte(to, (unsigned) value);
}

static inline char *
put_bytes(char *to, const void *bytes, size_t length)
{
	if (length > 0)
		memcpy(to, bytes, length);
	return to + length;
}

static inline char *
put_time(Encoder *encoder, char *to, int64_t time)
{
	uint64_t difference = (uint64_t) time - (uint64_t) encoder->at.last_time;

	encoder->at.last_time = time;
	return put_varint(to, zigzag((int64_t) difference));
}

static inline char *
write_begin(const Encoder *encoder)
{
	return encoder->data + encoder->at.length;
}

static inline void
write_end(Encoder *encoder, const char *to)
{
	encoder->at.length = (uint32_t) (to - encoder->data);
}

/* Whether there is room for so many bytes and texts. */
static inline bool
has_room(const Encoder *encoder, size_t bytes, size_t texts)
{
	return bytes <= encoder->capacity - encoder->at.length &&
		   texts <= (size_t) (ENCODING_MAX_TEXTS - encoder->at.ntexts);
}

static inline size_t
text_bound(EngineText text)
{
	return 1 + VARINT_64 + text.length;
}

static inline bool
text_is(const Encoder *encoder, uint16_t index, EngineText text)
{
	const EncoderText *known = &encoder->texts[index];

	return known->length == text.length &&
		   (text.length == 0 ||
			memcmp(encoder->data + known->offset, text.data, text.length) == 0);
}

/* The slot of a text: the one that it has, or the free one that it gets. */
static uint16_t *
text_slot(Encoder *encoder, EngineText text, uint32_t hash)
{
	uint32_t i = hash & (ENCODER_SLOTS - 1);

	while (encoder->slots[i] != 0)
	{
		uint16_t index = encoder->slots[i] - 1;

		if (encoder->texts[index].hash == hash && text_is(encoder, index, text))
			break;
		i = (i + 1) & (ENCODER_SLOTS - 1);
	}
	return &encoder->slots[i];
}

/* The index of a text, -1 if it is not there; it may well be the hint. */
static inline int
text_find(Encoder *encoder, EngineText text, uint16_t hint)
{
	if (ENGINE_LIKELY(hint < encoder->at.ntexts &&
					  text_is(encoder, hint, text)))
		return hint;
	return *text_slot(encoder, text, murmur3_32(text.data, text.length, 0)) - 1;
}

/* The index of a text, which is defined if need be. */
static uint16_t
text_define(Encoder *encoder, EngineText text)
{
	uint32_t hash = murmur3_32(text.data, text.length, 0);
	uint16_t *slot = text_slot(encoder, text, hash);
	EncoderText *known;
	char *to;

	if (*slot != 0)
		return *slot - 1;
	to = write_begin(encoder);
	to = put_byte(to, OP_TEXT);
	to = put_varint(to, text.length);
	known = &encoder->texts[encoder->at.ntexts];
	known->offset = (uint32_t) (to - encoder->data);
	known->length = (uint32_t) text.length;
	known->hash = hash;
	known->experiment = 0;
	write_end(encoder, put_bytes(to, text.data, text.length));
	*slot = ++encoder->at.ntexts;
	return *slot - 1;
}

/*
 * Experiments
 */

static inline bool
experiment_is(const Encoder *encoder, uint16_t index,
			  const EventExposure *exposure)
{
	const EncoderExperiment *known = &encoder->experiments[index];

	if (index >= encoder->at.nexperiments || known->id != exposure->id ||
		!text_is(encoder, known->name, exposure->name))
		return false;
	if (exposure->unit_type.data == NULL || known->unit_type == 0)
		return exposure->unit_type.data == NULL && known->unit_type == 0;
	return text_is(encoder, known->unit_type - 1, exposure->unit_type);
}

/* The index of an exposure's experiment, -1 if it is not there. */
static inline int
experiment_find(Encoder *encoder, const EventExposure *exposure)
{
	int name;

	if (ENGINE_LIKELY(
			experiment_is(encoder, encoder->last_experiment, exposure)))
		return encoder->last_experiment;
	name = text_find(encoder, exposure->name, 0);
	if (name < 0)
		return -1;
	if (experiment_is(encoder, encoder->texts[name].experiment, exposure))
		return encoder->texts[name].experiment;
	for (uint16_t i = 0; i < encoder->at.nexperiments; i++)
	{
		if (experiment_is(encoder, i, exposure))
			return i;
	}
	return -1;
}

static size_t
experiment_bound(const EventExposure *exposure)
{
	size_t bound = 1 + VARINT_64 + 2 * VARINT_INDEX;

	bound += text_bound(exposure->name);
	if (exposure->unit_type.data != NULL)
		bound += text_bound(exposure->unit_type);
	return bound;
}

static uint16_t
experiment_define(Encoder *encoder, const EventExposure *exposure)
{
	uint16_t index = encoder->at.nexperiments++;
	EncoderExperiment *known = &encoder->experiments[index];
	char *to;

	known->id = exposure->id;
	known->name = text_define(encoder, exposure->name);
	known->unit_type = 0;
	if (exposure->unit_type.data != NULL)
		known->unit_type = text_define(encoder, exposure->unit_type) + 1;
	encoder->texts[known->name].experiment = index;

	to = write_begin(encoder);
	to = put_byte(to, OP_EXPERIMENT);
	to = put_varint(to, zigzag(known->id));
	to = put_varint(to, known->name);
	write_end(encoder, put_varint(to, known->unit_type));
	return index;
}

/*
 * Contexts
 */

/* A number in what this encoder has written. */
static const char *
written_varint(const char *from, uint64_t *value)
{
	unsigned shift = 0;

	*value = 0;
	for (;;)
	{
		unsigned byte = (unsigned char) *from++;

		*value |= (uint64_t) (byte & 0x7F) << shift;
		if (byte < 0x80)
			return from;
		shift += 7;
	}
}

/* Whether a context is written as operation 0A. */
static inline bool
has_own_times(const EventContext *context)
{
	return context->own_times && context->nattributes > 0;
}

/*
 * The name of an attribute of a context in force, and with own times when it
 * was set.
 */
static const char *
written_attribute(const char *from, bool own_times, uint64_t *name,
				  int64_t *last_time, int64_t *set_at)
{
	uint64_t value;

	from = written_varint(from, name);
	if (!own_times)
		return from;
	*set_at = ENCODING_AT_PUBLISH;
	if ((*name & ATTRIBUTE_AT_PUBLISH) == 0)
	{
		from = written_varint(from, &value);
		*last_time =
			(int64_t) ((uint64_t) *last_time + (uint64_t) unzigzag(value));
		*set_at = *last_time;
	}
	*name >>= 1;
	return from;
}

/* Whether the context in force, written as operation 03 or 0A, is this one. */
static bool
context_is_general(const Encoder *encoder, const EventContext *context)
{
	const char *from = encoder->data + encoder->context_offset;
	bool own_times = *from++ == OP_CONTEXT_TIMES;
	bool historic = (*from++ & CONTEXT_HISTORIC) != 0;
	int64_t last_time = encoder->context_last_time;
	uint64_t value;

	if (historic != context->historic || own_times != has_own_times(context))
		return false;
	from = written_varint(from, &value);
	if (value != context->nunits)
		return false;
	for (uint32_t i = 0; i < context->nunits; i++)
	{
		from = written_varint(from, &value);
		if (!text_is(encoder, (uint16_t) value, context->units[i].type) ||
			memcmp(from, context->units[i].hash, ENCODING_UNIT_BYTES) != 0)
			return false;
		from += ENCODING_UNIT_BYTES;
	}
	from = written_varint(from, &value);
	if (value != context->nattributes)
		return false;
	if (context->nattributes == 0)
		return true;
	if (!own_times)
	{
		if (encoder->context_set_at != context->set_at)
			return false;
		from = written_varint(from, &value);
	}
	for (uint32_t i = 0; i < context->nattributes; i++)
	{
		const EventAttribute *attribute = &context->attributes[i];
		int64_t set_at = attribute->set_at;

		from = written_attribute(from, own_times, &value, &last_time, &set_at);
		if (set_at != attribute->set_at ||
			!text_is(encoder, (uint16_t) value, attribute->name))
			return false;
		from = written_varint(from, &value);
		if (value != attribute->value.length ||
			(value > 0 && memcmp(from, attribute->value.data, value) != 0))
			return false;
		from += value;
	}
	return true;
}

/* Whether a context is one unit and no attributes. */
static inline bool
context_is_unit(const EventContext *context)
{
	return context->nunits == 1 && context->nattributes == 0;
}

/* Whether the context in force is this one. */
static inline bool
context_is(const Encoder *encoder, const EventContext *context)
{
	const char *from = encoder->data + encoder->context_offset;

	if (!encoder->has_context)
		return false;
	if (context->identity != 0)
		return context->identity == encoder->context_identity;
	if (*from == OP_CONTEXT || *from == OP_CONTEXT_TIMES)
		return context_is_general(encoder, context);
	return context_is_unit(context) &&
		   memcmp(from + 2, context->units[0].hash, ENCODING_UNIT_BYTES) == 0 &&
		   (*from == OP_UNIT_HISTORIC) == context->historic &&
		   text_is(encoder, (unsigned char) from[1], context->units[0].type);
}

static size_t
context_bound(const EventContext *context)
{
	size_t bound = 1 + 1 + VARINT_32 + VARINT_32 + VARINT_64;

	for (uint32_t i = 0; i < context->nunits; i++)
		bound += text_bound(context->units[i].type) + VARINT_INDEX +
				 ENCODING_UNIT_BYTES;
	for (uint32_t i = 0; i < context->nattributes; i++)
		bound += text_bound(context->attributes[i].name) + VARINT_INDEX +
				 VARINT_64 + VARINT_64 + context->attributes[i].value.length;
	return bound;
}

/* The name of an attribute, and when it was set. */
static char *
put_attribute_time(Encoder *encoder, char *to, uint16_t name, int64_t set_at)
{
	if (set_at == ENCODING_AT_PUBLISH)
		return put_varint(to, 2 * (uint64_t) name + ATTRIBUTE_AT_PUBLISH);
	to = put_varint(to, 2 * (uint64_t) name);
	return put_time(encoder, to, set_at);
}

static void
context_write_general(Encoder *encoder, const EventContext *context)
{
	uint16_t names[ENCODING_MAX_UNITS + ENCODING_MAX_ATTRIBUTES];
	uint16_t *attribute_names = names + context->nunits;
	bool own_times = has_own_times(context);
	char *to;

	for (uint32_t i = 0; i < context->nunits; i++)
		names[i] = text_define(encoder, context->units[i].type);
	for (uint32_t i = 0; i < context->nattributes; i++)
		attribute_names[i] = text_define(encoder, context->attributes[i].name);

	encoder->context_offset = encoder->at.length;
	encoder->context_last_time = encoder->at.last_time;
	to = write_begin(encoder);
	to = put_byte(to, own_times ? OP_CONTEXT_TIMES : OP_CONTEXT);
	to = put_byte(to, context->historic ? CONTEXT_HISTORIC : 0);
	to = put_varint(to, context->nunits);
	for (uint32_t i = 0; i < context->nunits; i++)
	{
		to = put_varint(to, names[i]);
		to = put_bytes(to, context->units[i].hash, ENCODING_UNIT_BYTES);
	}
	to = put_varint(to, context->nattributes);
	if (context->nattributes > 0 && !own_times)
	{
		encoder->context_set_at = context->set_at;
		to = put_time(encoder, to, context->set_at);
	}
	for (uint32_t i = 0; i < context->nattributes; i++)
	{
		EngineText value = context->attributes[i].value;

		if (own_times)
			to = put_attribute_time(encoder, to, attribute_names[i],
									context->attributes[i].set_at);
		else
			to = put_varint(to, attribute_names[i]);
		to = put_varint(to, value.length);
		to = put_bytes(to, value.data, value.length);
	}
	write_end(encoder, to);
}

/* Starts a context; there is room for it. */
static inline void
context_write(Encoder *encoder, const EventContext *context)
{
	int type = -1;
	char *to;

	if (context_is_unit(context))
	{
		type =
			text_find(encoder, context->units[0].type, encoder->last_unit_type);
		if (ENGINE_UNLIKELY(type < 0))
			type = text_define(encoder, context->units[0].type);
		encoder->last_unit_type = (uint16_t) type;
	}
	if (ENGINE_LIKELY(type >= 0 && type < UNIT_MAX_TYPES))
	{
		encoder->context_offset = encoder->at.length;
		to = write_begin(encoder);
		to = put_byte(to, context->historic ? OP_UNIT_HISTORIC : OP_UNIT);
		to = put_byte(to, (unsigned) type);
		to = put_bytes(to, context->units[0].hash, ENCODING_UNIT_BYTES);
		write_end(encoder, to);
	}
	else
		context_write_general(encoder, context);
	encoder->has_context = true;
	encoder->context_identity = context->identity;
	encoder->at.contexts++;
}

/*
 * Makes room for an event: its own bytes and texts, and those of its context
 * if that is to be started.
 */
static inline bool
event_fits(const Encoder *encoder, const EventContext *context,
		   bool starts_context, size_t bytes, size_t texts)
{
	if (starts_context)
	{
		if (ENGINE_UNLIKELY(context->nunits > ENCODING_MAX_UNITS ||
							context->nattributes > ENCODING_MAX_ATTRIBUTES))
			return false;
		bytes += context_bound(context);
		texts += (size_t) context->nunits + context->nattributes;
	}
	return has_room(encoder, bytes, texts);
}

/*
 * Events
 */

#define EXPOSURE_BOUND \
	(1 + VARINT_INDEX + 1 + VARINT_32 + VARINT_64 + VARINT_64)

static inline size_t
goal_bound(const EventGoal *goal)
{
	return 1 + VARINT_INDEX + VARINT_64 + VARINT_64 +
		   (goal->properties.data == NULL ? 0 : goal->properties.length);
}

bool
encoder_add_exposure(Encoder *encoder, const EventContext *context,
					 const EventExposure *exposure)
{
	bool starts_context = !context_is(encoder, context);
	int experiment = experiment_find(encoder, exposure);
	size_t bytes = EXPOSURE_BOUND;
	size_t texts = 0;
	char *to;

	if (ENGINE_UNLIKELY(experiment < 0))
	{
		if (encoder->at.nexperiments == ENCODING_MAX_EXPERIMENTS)
			return false;
		bytes += experiment_bound(exposure);
		texts += 2;
	}
	if (!event_fits(encoder, context, starts_context, bytes, texts))
		return false;

	if (starts_context)
		context_write(encoder, context);
	if (ENGINE_UNLIKELY(experiment < 0))
		experiment = experiment_define(encoder, exposure);
	encoder->last_experiment = (uint16_t) experiment;

	to = write_begin(encoder);
	to = put_byte(to,
				  exposure->has_holdouts ? OP_EXPOSURE_HOLDOUTS : OP_EXPOSURE);
	to = put_varint(to, (uint64_t) experiment);
	to = put_byte(to, exposure->flags & 0xFF);
	to = put_varint(to, zigzag(exposure->variant));
	to = put_time(encoder, to, exposure->exposed_at);
	if (exposure->has_holdouts)
		to = put_varint(to, zigzag(exposure->holdout_id));
	write_end(encoder, to);
	encoder->at.exposures++;
	return true;
}

bool
encoder_add_goal(Encoder *encoder, const EventContext *context,
				 const EventGoal *goal)
{
	bool starts_context = !context_is(encoder, context);
	int name = text_find(encoder, goal->name, encoder->last_goal);
	size_t bytes = goal_bound(goal);
	size_t texts = 0;
	char *to;

	if (ENGINE_UNLIKELY(name < 0))
	{
		bytes += text_bound(goal->name);
		texts++;
	}
	if (!event_fits(encoder, context, starts_context, bytes, texts))
		return false;

	if (starts_context)
		context_write(encoder, context);
	if (ENGINE_UNLIKELY(name < 0))
		name = text_define(encoder, goal->name);
	encoder->last_goal = (uint16_t) name;

	to = write_begin(encoder);
	to = put_byte(to,
				  goal->properties.data == NULL ? OP_GOAL : OP_GOAL_PROPERTIES);
	to = put_varint(to, (uint64_t) name);
	to = put_time(encoder, to, goal->achieved_at);
	if (goal->properties.data != NULL)
	{
		to = put_varint(to, goal->properties.length);
		to = put_bytes(to, goal->properties.data, goal->properties.length);
	}
	write_end(encoder, to);
	encoder->at.goals++;
	return true;
}

bool
encoder_add_context(Encoder *encoder, const EventContext *context)
{
	if (!event_fits(encoder, context, true, 0, 0))
		return false;
	context_write(encoder, context);
	return true;
}

bool
encoder_set_delay(Encoder *encoder, int64_t delay)
{
	uint64_t difference = (uint64_t) delay - (uint64_t) encoder->at.delay;
	char *to;

	if (difference == 0)
		return true;
	if (!has_room(encoder, 1 + VARINT_64, 0))
		return false;
	to = put_byte(write_begin(encoder), OP_DELAY);
	write_end(encoder, put_varint(to, zigzag((int64_t) difference)));
	encoder->at.delay = delay;
	return true;
}

size_t
encoder_exposure_bound(const EventContext *context,
					   const EventExposure *exposure)
{
	return 1 + context_bound(context) + experiment_bound(exposure) +
		   EXPOSURE_BOUND;
}

size_t
encoder_goal_bound(const EventContext *context, const EventGoal *goal)
{
	return 1 + context_bound(context) + text_bound(goal->name) +
		   goal_bound(goal);
}

size_t
encoder_context_bound(const EventContext *context)
{
	return 1 + context_bound(context);
}

/*
 * The payload as a whole
 */

void
encoder_begin(Encoder *encoder, char *data, uint32_t capacity)
{
	encoder->data = data;
	encoder->capacity = capacity;
	encoder->at = (EncoderMark){.length = 1};
	encoder->has_context = false;
	encoder->last_unit_type = 0;
	encoder->last_goal = 0;
	encoder->last_experiment = 0;
	memset(encoder->slots, 0, sizeof(encoder->slots));
	put_byte(data, ENCODING_VERSION);
}

void
encoder_move(Encoder *encoder, char *data, uint32_t capacity)
{
	encoder->data = data;
	encoder->capacity = capacity;
}

/*
 * Texts leave the index in the opposite order of their coming: each finds its
 * slot behind the same others, and the index becomes what it was.
 */
void
encoder_truncate(Encoder *encoder, const EncoderMark *mark)
{
	while (encoder->at.ntexts > mark->ntexts)
	{
		uint16_t number = encoder->at.ntexts--;
		uint32_t i = encoder->texts[number - 1].hash & (ENCODER_SLOTS - 1);

		while (encoder->slots[i] != number)
			i = (i + 1) & (ENCODER_SLOTS - 1);
		encoder->slots[i] = 0;
	}
	encoder->at = *mark;
	encoder->has_context = false;
}

/*
 * Reading
 */

/* What is left of a payload; ok turns false at the first thing that is wrong.
 */
typedef struct Reader
{
	const char *next;
	const char *end;
	bool ok;
} Reader;

static inline unsigned
get_byte(Reader *reader)
{
	if (reader->next == reader->end)
	{
		reader->ok = false;
		return 0;
	}
	return (unsigned char) *reader->next++;
}

static inline uint64_t
get_varint(Reader *reader)
{
	uint64_t value = 0;

	for (unsigned shift = 0; shift < 64; shift += 7)
	{
		unsigned byte = get_byte(reader);

		if (shift == 63 && byte > 1)
			break;
		value |= (uint64_t) (byte & 0x7F) << shift;
		if (byte < 0x80)
			return value;
	}
	reader->ok = false;
	return 0;
}

/* A number that is less than limit, which is not 0 unless ok is false. */
static inline uint32_t
get_index(Reader *reader, uint32_t limit)
{
	uint64_t value = get_varint(reader);

	if (value < limit)
		return (uint32_t) value;
	reader->ok = false;
	return 0;
}

static inline int64_t
get_signed(Reader *reader)
{
	return unzigzag(get_varint(reader));
}

static inline const char *
get_bytes(Reader *reader, uint64_t length)
{
	const char *bytes = reader->next;

	if (length > (uint64_t) (reader->end - reader->next))
	{
		reader->ok = false;
		return NULL;
	}
	reader->next += length;
	return bytes;
}

static inline EngineText
get_text(Reader *reader)
{
	uint64_t length = get_varint(reader);
	EngineText text = {get_bytes(reader, length), 0};

	if (text.data != NULL)
		text.length = (size_t) length;
	return text;
}

/* A text that was defined, by its number. */
static inline EngineText
get_name(Reader *reader, const Decoder *decoder)
{
	uint32_t index = get_index(reader, decoder->ntexts);

	return reader->ok ? decoder->texts[index] : (EngineText){NULL, 0};
}

static inline int64_t
get_time(Reader *reader, int64_t last_time)
{
	return (int64_t) ((uint64_t) last_time + (uint64_t) get_signed(reader));
}

static void
read_text(Decoder *decoder, Reader *reader)
{
	EngineText text = get_text(reader);

	if (decoder->ntexts == ENCODING_MAX_TEXTS)
		reader->ok = false;
	if (reader->ok)
		decoder->texts[decoder->ntexts++] = text;
}

static void
read_experiment(Decoder *decoder, Reader *reader)
{
	DecoderExperiment experiment = {.id = get_signed(reader)};
	uint32_t unit_type;

	experiment.name = get_name(reader, decoder);
	unit_type = get_index(reader, decoder->ntexts + 1);
	if (unit_type > 0)
		experiment.unit_type = decoder->texts[unit_type - 1];
	if (decoder->nexperiments == ENCODING_MAX_EXPERIMENTS)
		reader->ok = false;
	if (reader->ok)
		decoder->experiments[decoder->nexperiments++] = experiment;
}

/* One unit, its type already read. */
static void
read_unit(Decoder *decoder, Reader *reader, EngineText type, uint32_t number)
{
	const char *hash = get_bytes(reader, ENCODING_UNIT_BYTES);

	if (reader->ok)
	{
		decoder->units[number].type = type;
		memcpy(decoder->units[number].hash, hash, ENCODING_UNIT_BYTES);
	}
}

/* The name of an attribute, and with own times when it was set. */
static void
read_attribute_name(Decoder *decoder, Reader *reader, bool own_times,
					EventAttribute *attribute, int64_t *last_time)
{
	uint32_t value;

	attribute->set_at = 0;
	if (!own_times)
	{
		attribute->name = get_name(reader, decoder);
		return;
	}
	value = get_index(reader, 2 * decoder->ntexts);
	if (!reader->ok)
		return;
	attribute->name = decoder->texts[value >> 1];
	attribute->set_at = ENCODING_AT_PUBLISH;
	if ((value & ATTRIBUTE_AT_PUBLISH) == 0)
		attribute->set_at = *last_time = get_time(reader, *last_time);
}

static void
read_context(Decoder *decoder, Reader *reader, bool own_times)
{
	EventContext context = {.units = decoder->units,
							.attributes = decoder->attributes,
							.own_times = own_times};
	unsigned flags = get_byte(reader);
	int64_t last_time = decoder->last_time;

	if ((flags & ~(unsigned) CONTEXT_HISTORIC) != 0)
		reader->ok = false;
	context.historic = (flags & CONTEXT_HISTORIC) != 0;
	context.nunits = get_index(reader, ENCODING_MAX_UNITS + 1);
	for (uint32_t i = 0; i < context.nunits && reader->ok; i++)
	{
		EngineText type = get_name(reader, decoder);

		read_unit(decoder, reader, type, i);
	}
	context.nattributes = get_index(reader, ENCODING_MAX_ATTRIBUTES + 1);
	if (context.nattributes > 0 && !own_times)
		context.set_at = last_time = get_time(reader, last_time);
	for (uint32_t i = 0; i < context.nattributes && reader->ok; i++)
	{
		read_attribute_name(decoder, reader, own_times, &decoder->attributes[i],
							&last_time);
		decoder->attributes[i].value = get_text(reader);
	}
	if (reader->ok)
	{
		decoder->context = context;
		decoder->last_time = last_time;
		decoder->has_context = true;
	}
}

static void
read_context_of_unit(Decoder *decoder, Reader *reader, bool historic)
{
	uint32_t type = get_byte(reader);

	if (type >= decoder->ntexts)
		reader->ok = false;
	if (!reader->ok)
		return;
	read_unit(decoder, reader, decoder->texts[type], 0);
	if (reader->ok)
	{
		decoder->context = (EventContext){.units = decoder->units,
										  .nunits = 1,
										  .attributes = decoder->attributes,
										  .historic = historic};
		decoder->has_context = true;
	}
}

static void
read_exposure(Decoder *decoder, Reader *reader, bool has_holdouts)
{
	uint32_t index = get_index(reader, decoder->nexperiments);
	EventExposure exposure = {.flags = get_byte(reader),
							  .has_holdouts = has_holdouts};
	int64_t variant = get_signed(reader);

	exposure.variant = (int32_t) variant;
	exposure.exposed_at = get_time(reader, decoder->last_time);
	if (has_holdouts)
		exposure.holdout_id = get_signed(reader);
	if (variant != exposure.variant || !decoder->has_context)
		reader->ok = false;
	if (reader->ok)
	{
		exposure.id = decoder->experiments[index].id;
		exposure.name = decoder->experiments[index].name;
		exposure.unit_type = decoder->experiments[index].unit_type;
		decoder->exposure = exposure;
		decoder->last_time = exposure.exposed_at;
	}
}

static void
read_goal(Decoder *decoder, Reader *reader, bool has_properties)
{
	EventGoal goal = {.name = get_name(reader, decoder)};

	goal.achieved_at = get_time(reader, decoder->last_time);
	if (has_properties)
		goal.properties = get_text(reader);
	if (!decoder->has_context)
		reader->ok = false;
	if (reader->ok)
	{
		decoder->goal = goal;
		decoder->last_time = goal.achieved_at;
	}
}

static void
read_delay(Decoder *decoder, Reader *reader)
{
	int64_t delay = get_time(reader, decoder->delay);

	if (reader->ok)
		decoder->delay = delay;
}

int
encoding_version(const char *data, size_t length)
{
	return length == 0 ? 0 : (unsigned char) data[0];
}

bool
decoder_begin(Decoder *decoder, const char *data, size_t length)
{
	if (encoding_version(data, length) != ENCODING_VERSION)
		return false;
	decoder->next = data + 1;
	decoder->end = data + length;
	decoder->last_time = 0;
	decoder->delay = 0;
	decoder->has_context = false;
	decoder->ntexts = 0;
	decoder->nexperiments = 0;
	return true;
}

/*
 * What can't be read changes nothing but the context's units and attributes,
 * and is not passed over: it is found again if asked again.
 */
EventKind
decoder_next(Decoder *decoder)
{
	while (decoder->next < decoder->end)
	{
		Reader reader = {decoder->next + 1, decoder->end, true};
		EventKind kind = EVENT_END;

		switch ((unsigned char) *decoder->next)
		{
			case OP_TEXT:
				read_text(decoder, &reader);
				break;
			case OP_EXPERIMENT:
				read_experiment(decoder, &reader);
				break;
			case OP_CONTEXT:
				read_context(decoder, &reader, false);
				kind = EVENT_CONTEXT;
				break;
			case OP_CONTEXT_TIMES:
				read_context(decoder, &reader, true);
				kind = EVENT_CONTEXT;
				break;
			case OP_UNIT:
				read_context_of_unit(decoder, &reader, false);
				kind = EVENT_CONTEXT;
				break;
			case OP_UNIT_HISTORIC:
				read_context_of_unit(decoder, &reader, true);
				kind = EVENT_CONTEXT;
				break;
			case OP_EXPOSURE:
				read_exposure(decoder, &reader, false);
				kind = EVENT_EXPOSURE;
				break;
			case OP_EXPOSURE_HOLDOUTS:
				read_exposure(decoder, &reader, true);
				kind = EVENT_EXPOSURE;
				break;
			case OP_GOAL:
				read_goal(decoder, &reader, false);
				kind = EVENT_GOAL;
				break;
			case OP_GOAL_PROPERTIES:
				read_goal(decoder, &reader, true);
				kind = EVENT_GOAL;
				break;
			case OP_DELAY:
				read_delay(decoder, &reader);
				break;
			default:
				reader.ok = false;
				break;
		}
		if (!reader.ok)
			return EVENT_MALFORMED;
		decoder->next = reader.next;
		if (kind != EVENT_END)
			return kind;
	}
	return EVENT_END;
}
