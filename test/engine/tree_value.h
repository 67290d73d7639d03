/*
 * tree_value.h
 *		A parsed tree as a value, for test programs.
 */
#ifndef ABSMARTLY_TEST_TREE_VALUE_H
#define ABSMARTLY_TEST_TREE_VALUE_H

#include <stdlib.h>

#include "value.h"

/* The value lives as long as the arena. */
static inline void
tree_value(const JsonNode *node, Arena *arena, Value *value)
{
	Work work = {.left = 0};
	void *block = arena_alloc(arena, json_copy_size(node, &work));

	if (block == NULL)
		abort();
	value_from_json(json_copy(node, block, &work), value);
}

#endif /* ABSMARTLY_TEST_TREE_VALUE_H */
