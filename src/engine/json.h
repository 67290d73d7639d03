/*
 * json.h
 *		JSON text read into a tree of the engine's own.
 *
 * The tree's links are relative to the node that holds them, so that a tree
 * can be copied into a snapshot and read there at any address.
 */
#ifndef ABSMARTLY_ENGINE_JSON_H
#define ABSMARTLY_ENGINE_JSON_H

#include "arena.h"
#include "engine.h"
#include "work.h"

typedef enum JsonKind
{
	JSON_NULL = 0,
	JSON_FALSE,
	JSON_TRUE,
	JSON_NUMBER,
	JSON_STRING,
	JSON_ARRAY,
	JSON_OBJECT
} JsonKind;

typedef struct JsonNode
{
	uint32_t kind; /* JsonKind */
	uint32_t count; /* bytes of a string or of a number's text;
					 * elements of an array; members of an object */
	int64_t offset; /* from this node: bytes of the string, text of
					 * the number, JsonNode[count] of an array,
					 * JsonNode[2 * count] of an object (name and
					 * value in turn, in the text's order) */
	double number; /* JSON_NUMBER; saturated to a finite double */
} JsonNode;

static inline const char *
json_text(const JsonNode *node)
{
	return (const char *) node + node->offset;
}

static inline const JsonNode *
json_element(const JsonNode *array, uint32_t index)
{
	return (const JsonNode *) ((const char *) array + array->offset) + index;
}

static inline const JsonNode *
json_member_name(const JsonNode *object, uint32_t index)
{
	return json_element(object, 2 * index);
}

static inline const JsonNode *
json_member_value(const JsonNode *object, uint32_t index)
{
	return json_element(object, 2 * index + 1);
}

/*
 * Parses text strictly (RFC 8259: no comments, no NaN, no byte order mark, no
 * trailing text, control characters in strings refused, numbers exactly by
 * the grammar).  Of equal names in an object the last value counts, at the
 * first one's place, as in JavaScript.  The tree lives in the arena.
 *
 * What it takes beside the tree is some bytes for each container.
 *
 * On ENGINE_MALFORMED, ENGINE_TOO_DEEP or ENGINE_TOO_LARGE *message (if message
 * is not NULL) says what is wrong, in the arena.
 */
extern EngineStatus json_parse(const char *text, size_t length, int max_depth,
							   Arena *arena, const JsonNode **root,
							   const char **message);

/*
 * Checks text as json_parse() does, but makes no tree of it, so that it may be
 * as large as it likes.
 */
extern EngineStatus json_check(const char *text, size_t length, int max_depth,
							   Arena *arena, const char **message);

/*
 * The values of an array one by one, or the names and values of an object in
 * turn, as the text that they are in a text that was checked.  Nothing is
 * taken out of an object: of repeated names each one comes.
 */
typedef struct JsonWalk
{
	const char *next;
} JsonWalk;

extern void json_walk_begin(JsonWalk *walk, EngineText container);
extern bool json_walk_next(JsonWalk *walk, EngineText *value);

/* JSON_OBJECT, JSON_ARRAY, or JSON_NULL for what is neither. */
extern JsonKind json_walk_kind(EngineText text);

/* The last member of that name, or NULL (also if node is not an object). */
extern const JsonNode *json_get(const JsonNode *object, const char *name);
extern const JsonNode *json_get_n(const JsonNode *object, const char *name,
								  size_t length);

/* Writes the tree as JSON text into the arena (numbers as they were written).
 */
extern EngineStatus json_write(const JsonNode *node, Arena *arena,
							   EngineText *text);

/*
 * Copies the tree into one block: json_copy_size() bytes, aligned to 8, that
 * can be moved as a whole.  In the copy the members of objects are in order
 * (json_compare_names), so that they are found by bisection.  What is there
 * when the work was stopped is no tree.
 */
extern size_t json_copy_size(const JsonNode *node, Work *work);
extern const JsonNode *json_copy(const JsonNode *node, void *block, Work *work);

/* The order of names, that of jsonb: by length, then by bytes. */
extern int json_compare_names(EngineText left, EngineText right);

#endif /* ABSMARTLY_ENGINE_JSON_H */
