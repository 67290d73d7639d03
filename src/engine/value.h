/*
 * value.h
 *		Values that expressions work on, and their conversions (protocol 6).
 *
 * A Value is a small copy: scalars are held in it, strings and containers
 * refer to memory of their owner (a jsonb datum, a snapshot, an arena).
 * Containers are read through a table of accessors: json_value_ops over the
 * engine's own tree, another one over jsonb in place (src/sql/jsonb_value.c).
 */
#ifndef ABSMARTLY_ENGINE_VALUE_H
#define ABSMARTLY_ENGINE_VALUE_H

#include "engine.h"
#include "json.h"

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

/* How to read a container.  None of these may raise or keep memory. */
typedef struct ValueOps
{
	/* number of elements or members */
	uint32_t (*count)(const Value *container);
	/* element; false if there is none */
	bool (*element)(const Value *array, uint32_t index, Value *result);
	/* member by name; false if there is none */
	bool (*member)(const Value *object, const char *name, size_t length,
				   Value *result);
	/* index-th member in the container's own order; index < count */
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

/* The value of a tree, which must outlive it. */
extern void value_from_json(const JsonNode *node, Value *value);

/* Whether there is stack left for a recursion; NULL: always. */
typedef bool (*StackCheck)(void);

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
extern bool value_to_number(const Value *value, double *number);

/*
 * false: not convertible.  The text refers to the value's own string, to a
 * constant, or to buffer (of VALUE_NUMBER_TEXT bytes).
 */
extern bool value_to_string(const Value *value, char *buffer, EngineText *text);

/* ENGINE_STACK if the values are nested too deep for the stack. */
extern EngineStatus value_compare(const Value *left, const Value *right,
								  StackCheck stack_ok, ValueOrder *order);
extern EngineStatus value_deep_equal(const Value *left, const Value *right,
									 StackCheck stack_ok, bool *equal);

/* Compares UTF-8 texts in the order of their UTF-16 code units. */
extern int value_compare_text(EngineText left, EngineText right);

#endif /* ABSMARTLY_ENGINE_VALUE_H */
