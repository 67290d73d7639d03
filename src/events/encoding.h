/*
 * encoding.h
 *		The binary form in which events wait to be sent (DESIGN 6.1).
 *
 * A payload is a sequence of operations after a version byte: names go into a
 * dictionary when they are first used, a unit takes the 16 bytes of its hash,
 * times are differences.  One payload holds the events of many contexts, a
 * context being what becomes one publish request (protocol 9): units,
 * attributes, and the events that follow until the next context.
 *
 * Plain C, like the engine: no PostgreSQL, nothing allocated, nothing raised.
 * All text is UTF-8.  Every released version of the format stays readable.
 * encoding.c describes it to the byte.
 */
#ifndef ABSMARTLY_EVENTS_ENCODING_H
#define ABSMARTLY_EVENTS_ENCODING_H

#include "engine/engine.h"

#define ENCODING_VERSION 1

/* bounds of one payload, so that readers need no allocation */
#define ENCODING_MAX_TEXTS 2048
#define ENCODING_MAX_EXPERIMENTS 512
/* bounds of one context; the caller refuses what exceeds them */
#define ENCODING_MAX_UNITS 256
#define ENCODING_MAX_ATTRIBUTES 1024

#define ENCODING_UNIT_BYTES 16

typedef struct EventUnit
{
	EngineText type;
	uint8_t hash[ENCODING_UNIT_BYTES]; /* MD5 of the unit */
} EventUnit;

typedef struct EventAttribute
{
	EngineText name;
	EngineText value; /* JSON text */
	int64_t set_at; /* ms, or ENCODING_AT_PUBLISH; if the context has own times
					 */
} EventAttribute;

/* an attribute's set_at: it is set when it is published */
#define ENCODING_AT_PUBLISH INT64_MIN

typedef struct EventContext
{
	const EventUnit *units;
	uint32_t nunits;
	const EventAttribute *attributes;
	uint32_t nattributes;
	int64_t set_at; /* of the attributes, ms; 0 if there are none */
	bool historic;
	bool own_times; /* not this set_at counts, but that of each attribute */
	uint64_t identity; /* for the encoder: not 0: contexts with the same one
						* are the same; 0: they are compared */
} EventContext;

typedef struct EventExposure
{
	int64_t id; /* of the experiment; 0: unknown */
	EngineText name;
	EngineText unit_type; /* data NULL: null */
	int32_t variant;
	uint32_t flags; /* ASSIGN_... (engine/assign.h) */
	bool has_holdouts; /* the data has a list of holdouts */
	int64_t holdout_id;
	int64_t exposed_at; /* ms */
} EventExposure;

typedef struct EventGoal
{
	EngineText name;
	EngineText properties; /* JSON text of an object; data NULL: null */
	int64_t achieved_at; /* ms */
} EventGoal;

/*
 * Writing
 */

/* How far a payload has got; for going back to it. */
typedef struct EncoderMark
{
	uint32_t length;
	uint32_t contexts;
	uint32_t exposures;
	uint32_t goals;
	uint16_t ntexts;
	uint16_t nexperiments;
	int64_t last_time; /* that the next one is a difference to */
	int64_t delay; /* of the events that follow: encoder_set_delay() */
} EncoderMark;

#define ENCODER_SLOTS 4096 /* of the index over texts; a power of 2 */

typedef struct EncoderText
{
	uint32_t offset; /* in the payload */
	uint32_t length;
	uint32_t hash;
	uint16_t experiment; /* one that has it as its name, if any does */
} EncoderText;

typedef struct EncoderExperiment
{
	int64_t id;
	uint16_t name; /* index of the text */
	uint16_t unit_type; /* index of the text + 1; 0: null */
} EncoderExperiment;

/*
 * A payload that is being written, to memory of the caller's.  Large: keep one
 * for each process, not on the stack.
 */
typedef struct Encoder
{
	char *data;
	uint32_t capacity;
	EncoderMark at; /* what there is */
	/* the context in force, where its operation was written */
	bool has_context; /* whether what follows is valid */
	uint32_t context_offset;
	int64_t context_set_at;
	int64_t context_last_time; /* before its operation */
	uint64_t context_identity;
	/* what was used last, and is probably used next; maybe gone by now */
	uint16_t last_unit_type; /* text */
	uint16_t last_goal; /* text */
	uint16_t last_experiment;
	EncoderText texts[ENCODING_MAX_TEXTS];
	EncoderExperiment experiments[ENCODING_MAX_EXPERIMENTS];
	uint16_t slots[ENCODER_SLOTS]; /* text + 1; 0: free */
} Encoder;

/* Starts a payload in data, whose capacity is at least 64. */
extern void encoder_begin(Encoder *encoder, char *data, uint32_t capacity);

/* Makes data, which holds a copy of what was written, the payload's memory. */
extern void encoder_move(Encoder *encoder, char *data, uint32_t capacity);

/*
 * Adds an event of a context; false if the payload may have no room for it (a
 * few names too early at most), which leaves it as it was.  Events of the
 * context of the event before continue that one (same units in the same order,
 * same attributes and times, same historic; or same identity).
 */
extern bool encoder_add_exposure(Encoder *encoder, const EventContext *context,
								 const EventExposure *exposure);
extern bool encoder_add_goal(Encoder *encoder, const EventContext *context,
							 const EventGoal *goal);

/*
 * Adds a context without an event, also if it is the one in force: says what
 * units and attributes have become.
 */
extern bool encoder_add_context(Encoder *encoder, const EventContext *context);

/*
 * Says by how many ms the events that follow are younger than the record that
 * the payload is of, when it has those of several transactions.  False if there
 * may be no room for that.
 */
extern bool encoder_set_delay(Encoder *encoder, int64_t delay);

/* Goes back to an earlier state (at); the next event starts a context. */
extern void encoder_truncate(Encoder *encoder, const EncoderMark *mark);

/* Bytes that suffice for an event, or a context, in an empty payload. */
extern size_t encoder_exposure_bound(const EventContext *context,
									 const EventExposure *exposure);
extern size_t encoder_goal_bound(const EventContext *context,
								 const EventGoal *goal);
extern size_t encoder_context_bound(const EventContext *context);

/*
 * Reading
 */

typedef enum EventKind
{
	EVENT_END, /* the payload is over */
	EVENT_CONTEXT, /* decoder->context is another one */
	EVENT_EXPOSURE, /* decoder->exposure */
	EVENT_GOAL, /* decoder->goal */
	EVENT_MALFORMED /* the rest can't be read */
} EventKind;

typedef struct DecoderExperiment
{
	int64_t id;
	EngineText name;
	EngineText unit_type;
} DecoderExperiment;

/* Refers to the payload.  Large: not for the stack. */
typedef struct Decoder
{
	const char *next;
	const char *end;
	int64_t last_time;
	int64_t delay; /* by which the event is younger than its record, ms */
	bool has_context;
	uint32_t ntexts;
	uint32_t nexperiments;
	EventContext context;
	EventExposure exposure;
	EventGoal goal;
	EngineText texts[ENCODING_MAX_TEXTS];
	DecoderExperiment experiments[ENCODING_MAX_EXPERIMENTS];
	EventUnit units[ENCODING_MAX_UNITS];
	EventAttribute attributes[ENCODING_MAX_ATTRIBUTES];
} Decoder;

/* The version of a payload; 0 for an empty one. */
extern int encoding_version(const char *data, size_t length);

/*
 * Starts reading; false if the version is none that this library knows.  Any
 * bytes may be given: decoder_next() reads nothing beyond them and ends.
 */
extern bool decoder_begin(Decoder *decoder, const char *data, size_t length);
extern EventKind decoder_next(Decoder *decoder);

#endif /* ABSMARTLY_EVENTS_ENCODING_H */
