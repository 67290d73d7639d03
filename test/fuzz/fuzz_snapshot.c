/*
 * fuzz_snapshot.c
 *		Fuzz target: context data is parsed, compiled, and used.
 *
 * What compiles is moved to memory of its exact size and read to the last
 * byte, so that a wrong link shows.
 */
#include <stdlib.h>
#include <string.h>

#include "../engine/tree_value.h"
#include "assign.h"
#include "compile.h"
#include "fuzz.h"

#define TEXT(literal) ((EngineText){literal, sizeof(literal) - 1})

/* What was read, so that no compiler leaves the reading out. */
static volatile unsigned char sink;

static EngineStatus
store_text(void *context, EngineText text, const void **bytes, size_t *length)
{
	(void) context;
	*bytes = text.data;
	*length = text.length;
	return memchr(text.data, '\0', text.length) == NULL ? ENGINE_OK
														: ENGINE_UNSTORABLE;
}

static EngineStatus
store_json(void *context, const JsonNode *node, const void **bytes,
		   size_t *length)
{
	EngineText text;

	if (json_write(node, context, &text) != ENGINE_OK)
		return ENGINE_NO_MEMORY;
	*bytes = text.data;
	*length = text.length + 1;
	return ENGINE_OK;
}

static void
touch(const SnapImage *snapshot, SnapOffset offset, size_t length)
{
	const unsigned char *bytes = snapshot_at(snapshot, offset);

	if (offset == 0)
		return;
	if (offset % 8 != 0)
		abort();
	for (size_t i = 0; i < length; i++)
		sink ^= bytes[i];
}

static void
touch_text(const SnapImage *snapshot, SnapText text)
{
	touch(snapshot, text.offset, (size_t) text.length + 1);
}

static void
touch_experiment(const SnapImage *snapshot, const SnapExperiment *experiment)
{
	const SnapField *fields = snapshot_at(snapshot, experiment->fields);
	const SnapRule *rules = snapshot_at(snapshot, experiment->rules);
	EngineText name = snapshot_text(snapshot, experiment->name);

	if (snapshot_find_experiment(snapshot, name.data, name.length) == NULL)
		abort();
	touch_text(snapshot, experiment->name);
	touch_text(snapshot, experiment->unit_type);
	touch_text(snapshot, experiment->audience_text);
	touch_text(snapshot, experiment->rules_text);
	touch(snapshot, experiment->name_text.offset, experiment->name_text.length);
	for (uint32_t i = 0; i < experiment->nvariants; i++)
	{
		const SnapVariant *variant = snapshot_variant(snapshot, experiment, i);
		const SnapMember *members = snapshot_at(snapshot, variant->members);

		touch_text(snapshot, variant->name);
		touch_text(snapshot, variant->config);
		touch(snapshot, variant->variables.offset, variant->variables.length);
		for (uint32_t j = 0; j < variant->nmembers; j++)
			touch(snapshot, members[j].value.offset, members[j].value.length);
	}
	for (uint32_t i = 0; i < experiment->nfields; i++)
	{
		touch_text(snapshot, fields[i].name);
		touch_text(snapshot, fields[i].type);
		touch(snapshot, fields[i].value.offset, fields[i].value.length);
	}
	for (uint32_t i = 0; i < experiment->nrules; i++)
		touch_text(snapshot, rules[i].name);
}

static bool
give_unit(void *context, const SnapExperiment *experiment, UnitHash *hash)
{
	const SnapImage *snapshot = context;
	EngineText type = snapshot_text(snapshot, experiment->unit_type);

	unit_hash(type.data, type.length, hash);
	return type.length != 1;
}

static void
use_snapshot(const SnapImage *snapshot, const JsonNode *attributes,
			 Arena *arena)
{
	const SnapVariable *variables = snapshot_at(snapshot, snapshot->variables);
	EvalContext eval = {.matches = NULL};

	tree_value(attributes, arena, &eval.variables);
	for (uint32_t i = 0; i < snapshot->nexperiments; i++)
	{
		AssignRequest request = {.snapshot = snapshot};
		Assignment traced;
		Assignment result;
		AssignTrace trace;

		request.experiment = snapshot_experiment(snapshot, i);
		request.unit = give_unit;
		request.unit_context = (void *) snapshot;
		request.eval = &eval;
		touch_experiment(snapshot, request.experiment);
		if (assign(&request, &result) != ENGINE_OK)
			abort();
		request.trace = &trace;
		if (assign(&request, &traced) != ENGINE_OK ||
			traced.variant != result.variant || traced.flags != result.flags)
			abort();
	}
	for (uint32_t i = 0; i < snapshot->nvariables; i++)
	{
		EngineText key = snapshot_text(snapshot, variables[i].key);
		const uint32_t *indexes =
			snapshot_at(snapshot, variables[i].experiments);

		if (snapshot_find_variable(snapshot, key.data, key.length) !=
			&variables[i])
			abort();
		for (uint32_t j = 0; j < variables[i].nexperiments; j++)
		{
			const SnapExperiment *experiment =
				snapshot_experiment(snapshot, indexes[j]);

			for (uint32_t k = 0; k < experiment->nvariants; k++)
				(void) snapshot_variant_value(
					snapshot, snapshot_variant(snapshot, experiment, k),
					&variables[i]);
		}
	}
}

/* What is parsed must be written in a way that parses to the same text. */
static void
check_json(const uint8_t *data, size_t size, Arena *arena)
{
	EngineText first;
	EngineText second;
	const JsonNode *root;

	if (json_parse((const char *) data, size, ENGINE_MAX_DEPTH, arena, &root,
				   NULL) != ENGINE_OK)
		return;
	if (json_write(root, arena, &first) != ENGINE_OK ||
		json_parse(first.data, first.length, ENGINE_MAX_DEPTH, arena, &root,
				   NULL) != ENGINE_OK ||
		json_write(root, arena, &second) != ENGINE_OK ||
		first.length != second.length ||
		memcmp(first.data, second.data, first.length) != 0)
		abort();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	EngineText text = {(const char *) data, size};
	EngineText attributes = TEXT("{\"age\":25,\"lang\":\"en\",\"n\":null}");
	CompileResult result;
	const JsonNode *root;
	Arena arena;
	Arena memory;
	SnapshotHost host = {
		.context = &memory, .store_json = store_json, .store_text = store_text};

	arena_init(&arena, &arena_malloc_source);
	arena_init(&memory, &arena_malloc_source);
	check_json(data, size, &arena);
	if (snapshot_compile(text, TEXT("production"), &host, &arena, &result) ==
			ENGINE_OK &&
		json_parse(attributes.data, attributes.length, 8, &arena, &root,
				   NULL) == ENGINE_OK)
	{
		void *moved = malloc(result.size);

		memcpy(moved, result.snapshot, result.size);
		use_snapshot(moved, root, &arena);
		free(moved);
	}
	else if (result.message == NULL)
		abort();
	arena_release(&memory);
	arena_release(&arena);
	return 0;
}
