/*
 * value.h
 *		Values that expressions work on, and their conversions (protocol 6).
 *
 * A Value is a small copy: scalars are held in it, strings and containers
 * refer to memory of their owner (a jsonb datum, a snapshot, an arena).
 * Containers are read through a table of accessors: json_value_ops over the
 * engine's own tree, another one over jsonb in place (src/sql/jsonb_value.c).
 *
 * The members of an object are in order: by the length of their names, names
 * of one length by their bytes.  So jsonb has them, and json_copy().
 */
#ifndef ABSMARTLY_ENGINE_VALUE_H
#define ABSMARTLY_ENGINE_VALUE_H

#include "engine.h"
#include "json.h"
#include "work.h"

typedef enum ValueKind
{
	VALUE_NULL = 0,
	VALUE_BOOLEAN,
	VALUE_NUMBER,
	VALUE_STRING,
	VALUE_ARRAY,
	VALUE_OBJECT
} ValueKind;

typedef struct Value Value;

/*
 * How to read a container.  None of these may raise or keep memory, or take
 * longer than some steps for each doubling of the container's size.
 */
typedef struct ValueOps
{
	/* number of elements or members */
	uint32_t (*count)(const Value *container);
	/* element; false if there is none */
	bool (*element)(const Value *array, uint32_t index, Value *result);
	/* member by name; false if there is none */
	bool (*member)(const Value *object, const char *name, size_t length,
				   Value *result);
	/* index-th member in the order of names; index < count */
	void (*member_at)(const Value *object, uint32_t index, EngineText *name,
					  Value *result);
} ValueOps;

struct Value
{
	ValueKind kind;
	union
	{
		bool boolean;
		double number;
		EngineText string;
		struct
		{
			const ValueOps *ops;
			const void *node;
			uint64_t extra; /* free for the accessors */
		} container;
	} u;
};

extern const ValueOps json_value_ops;

/* The value of a tree made by json_copy(), which must outlive it. */
extern void value_from_json(const JsonNode *node, Value *value);

/* The result of a comparison (protocol 6, "compare"). */
typedef enum ValueOrder
{
	VALUE_LESS = -1,
	VALUE_EQUAL = 0,
	VALUE_GREATER = 1,
	VALUE_INCOMPARABLE = 2
} ValueOrder;

/* Room for a number's text: value_to_string() of any double fits. */
#define VALUE_NUMBER_TEXT 64

extern bool value_to_boolean(const Value *value);

/* false: not convertible */
extern bool value_to_number(const Value *value, double *number, Work *work);

/*
 * false: not convertible.  The text refers to the value's own string, to a
 * constant, or to buffer (of VALUE_NUMBER_TEXT bytes).
 */
extern bool value_to_string(const Value *value, char *buffer, EngineText *text);

/*
 * ENGINE_STACK if the values are nested too deep for the stack,
 * ENGINE_INTERRUPTED if the work was stopped.
 */
extern EngineStatus value_compare(const Value *left, const Value *right,
								  Work *work, ValueOrder *order);
extern EngineStatus value_deep_equal(const Value *left, const Value *right,
									 Work *work, bool *equal);

/*
 * A value that many others are compared with: what it converts to is found out
 * once.
 */
typedef struct ComparedValue
{
	const Value *value;
	bool has_number; /* number and is_number are known */
	bool is_number;
	bool has_text; /* text and is_text are known */
	bool is_text;
	double number;
	EngineText text;
	char buffer[VALUE_NUMBER_TEXT];
} ComparedValue;

extern void compared_value_init(ComparedValue *compared, const Value *value);

/* value_compare() with it on the right. */
extern EngineStatus value_compare_with(const Value *left, ComparedValue *right,
									   Work *work, ValueOrder *order);

/* Compares UTF-8 texts in the order of their UTF-16 code units. */
extern int value_compare_text(EngineText left, EngineText right, Work *work);

/* Whether two texts are the same. */
static inline bool
texts_equal(EngineText left, EngineText right, Work *work)
{
	return left.length == right.length &&
		   (left.length == 0 || left.data[0] == right.data[0]) &&
		   value_compare_text(left, right, work) == 0;
}

/* Whether needle is a part of haystack. */
extern bool text_contains(EngineText haystack, EngineText needle, Work *work);

#endif /* ABSMARTLY_ENGINE_VALUE_H */
