/*
 * snapshot.c
 *		Look-ups in a snapshot's image.
 *
 * The indexes are open-addressed tables of "position + 1", written by
 * compile.c with at least as many empty slots as full ones, so every search
 * ends.
 */
#include <string.h>

#include "hash.h"
#include "snapshot.h"

/* The hash that the image's indexes use. */
uint32_t
snapshot_hash(const char *text, size_t length)
{
	return murmur3_32(text, length, 0);
}

static inline bool
same_text(const SnapImage *snapshot, SnapText text, const char *other,
		  size_t length)
{
	return text.length == length &&
		   memcmp(snapshot_at(snapshot, text.offset), other, length) == 0;
}

const SnapExperiment *
snapshot_find_experiment(const SnapImage *snapshot, const char *name,
						 size_t length)
{
	const uint32_t *index = snapshot_at(snapshot, snapshot->name_index);
	uint32_t slot = snapshot_hash(name, length);

	for (;; slot++)
	{
		const SnapExperiment *experiment;

		slot &= snapshot->name_mask;
		if (index[slot] == 0)
			return NULL;
		experiment = snapshot_experiment(snapshot, index[slot] - 1);
		if (same_text(snapshot, experiment->name, name, length))
			return experiment;
	}
}

const SnapVariable *
snapshot_find_variable(const SnapImage *snapshot, const char *key,
					   size_t length)
{
	const SnapVariable *variables = snapshot_at(snapshot, snapshot->variables);
	const uint32_t *index = snapshot_at(snapshot, snapshot->variable_index);
	uint32_t slot = snapshot_hash(key, length);

	for (;; slot++)
	{
		const SnapVariable *variable;

		slot &= snapshot->variable_mask;
		if (index[slot] == 0)
			return NULL;
		variable = &variables[index[slot] - 1];
		if (same_text(snapshot, variable->key, key, length))
			return variable;
	}
}

/* A binary search: a variant's members are in the order of their variables. */
const SnapStored *
snapshot_variant_value(const SnapImage *snapshot, const SnapVariant *variant,
					   const SnapVariable *variable)
{
	const SnapMember *members = snapshot_at(snapshot, variant->members);
	const SnapVariable *variables = snapshot_at(snapshot, snapshot->variables);
	uint32_t wanted = (uint32_t) (variable - variables);
	uint32_t low = 0;
	uint32_t high = variant->nmembers;

	while (low < high)
	{
		uint32_t middle = low + (high - low) / 2;

		if (members[middle].variable < wanted)
			low = middle + 1;
		else
			high = middle;
	}
	if (low < variant->nmembers && members[low].variable == wanted)
		return &members[low].value;
	return NULL;
}

const SnapField *
snapshot_find_field(const SnapImage *snapshot, const SnapExperiment *experiment,
					const char *name, size_t length)
{
	const SnapField *fields = snapshot_at(snapshot, experiment->fields);

	for (uint32_t i = 0; i < experiment->nfields; i++)
	{
		if (same_text(snapshot, fields[i].name, name, length))
			return &fields[i];
	}
	return NULL;
}
