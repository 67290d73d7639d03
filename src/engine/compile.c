/*
 * compile.c
 *		Context data (protocol 2) compiled into a snapshot's image.
 *
 * The image is written in segments, which are never moved; all links are
 * offsets.  When it is complete it is copied, as one block of its exact size,
 * into the caller's arena, and each segment is freed when it was copied.
 *
 * There is never a tree of the whole data.  Its text is checked, and then
 * walked: each experiment is parsed, compiled and forgotten before the next
 * one is looked at, and so are the texts within it (configs, audiences,
 * rules).  Both are forgotten a few short ones at a time.
 *
 * Names are put into the image once and known by number from then on; equal
 * names therefore have equal offsets.
 */
#include <math.h>
#include <string.h>

#include "compile.h"
#include "number.h"

#define SEGMENT_FIRST_SIZE ((size_t) 65536)
#define SEGMENT_LAST_SIZE ((size_t) 1024 * 1024)
#define NAMES_FIRST_SIZE 256

/* Trees are dropped when their texts were that long. */
#define TEXT_BATCH 65536

/* Warnings beyond this many are counted only. */
#define MAX_WARNINGS 1000

/* How much of a name is quoted in a warning. */
#define QUOTED_NAME 64

/* What a look at an entry of an index costs, in units of work.h */
#define PROBE_COST 16

/* Beyond this doubles cannot tell integers apart. */
#define MAX_INTEGER 9007199254740992.0

/* "none", where numbers of variables, slots and keys are kept */
#define NONE UINT32_MAX

/* A name in the image, and what it is known as. */
typedef struct Name
{
	SnapText text;
	SnapStored stored; /* as the host stores it */
	bool storable;
	uint32_t hash;
	uint32_t variable; /* number of the variable, or NONE */
	uint32_t unit_slot; /* number of the unit type, or NONE */
	uint32_t field_key; /* number of the custom field's name, or NONE */
} Name;

/* A part of the image. */
typedef struct Segment
{
	char *data;
	size_t start; /* its first byte's offset in the image */
	size_t size;
} Segment;

/* A list of numbers. */
typedef struct NumberList
{
	uint32_t *numbers;
	uint32_t count;
	uint32_t capacity;
} NumberList;

typedef struct SortPair
{
	int64_t key;
	uint32_t value;
} SortPair;

typedef struct Compiler
{
	const SnapshotHost *host;
	Arena *result; /* the caller's: image, warnings, message */
	Arena scratch; /* for the run */
	Arena tree; /* for an experiment or a holdout, or a few short ones */
	size_t tree_length; /* of their texts */
	Arena text; /* for a few texts within an experiment */
	size_t text_length; /* of those texts */
	EngineStatus status; /* not ENGINE_OK: the run is over */
	Work work;

	Segment *segments;
	uint32_t nsegments;
	uint32_t max_segments;
	size_t used;

	EngineText environment;
	SnapStored empty_object;

	Name *names;
	uint32_t nnames;
	uint32_t names_capacity;
	uint32_t *name_index; /* number + 1, or 0 */
	uint32_t name_mask;

	NumberList variables; /* names, in order of appearance */
	NumberList unit_types;
	NumberList field_keys;

	SnapExperiment *experiments; /* those that are not left out */
	uint32_t nexperiments;
	uint32_t max_experiments;
	uint32_t nleft_out;

	SnapHoldout *holdouts;
	uint32_t nholdouts;
	uint32_t max_holdouts;
	SortPair *holdout_ids; /* sorted */

	CompileWarning *first_warning;
	CompileWarning *last_warning;
	uint32_t nwarnings; /* those included that are only counted */
} Compiler;

/* What is wrong with an experiment, for its warning. */
typedef struct Defect
{
	const char *field;
	const char *problem;
} Defect;

/* Notes a defect; true, since the run goes on. */
static bool
found_defect(Defect *defect, const char *field, const char *problem)
{
	defect->field = field;
	defect->problem = problem;
	return true;
}

/* Ends the run; false, for callers to return. */
static bool
stop(Compiler *compiler, EngineStatus status)
{
	if (compiler->status == ENGINE_OK)
		compiler->status = status;
	return false;
}

/* Counts work that takes no memory; false: the host wants the run to end. */
static bool
goes_on(Compiler *compiler, uint64_t cost)
{
	return work_goes_on(&compiler->work, cost) ||
		   stop(compiler, ENGINE_NO_MEMORY);
}

/* Memory for the run, NULL (and the run is over) if there is none. */
static void *
scratch_alloc(Compiler *compiler, size_t count, size_t size)
{
	void *memory = arena_alloc(&compiler->scratch, count * size);

	if (memory == NULL)
		(void) stop(compiler, ENGINE_NO_MEMORY);
	return memory;
}

/*
 * Enlarges an array that grows during the run if it is full; end_run() frees
 * it.
 */
static bool
make_room(Compiler *compiler, void **array, uint32_t count, uint32_t *capacity,
		  size_t size)
{
	const ArenaSource *source = compiler->result->source;
	uint32_t larger;
	char *copy;

	if (count < *capacity)
		return true;
	if (*capacity > UINT32_MAX / 4)
		return stop(compiler, ENGINE_TOO_LARGE);
	larger = *capacity == 0 ? 64 : *capacity + *capacity / 2;
	copy = arena_interrupted(&compiler->scratch)
			   ? NULL
			   : source->alloc(source->context, larger * size);
	if (copy == NULL)
		return stop(compiler, ENGINE_NO_MEMORY);
	if (count > 0)
		memcpy(copy, *array, count * size);
	memset(copy + count * size, 0, (larger - count) * size);
	if (*array != NULL)
		source->free(source->context, *array);
	*array = copy;
	*capacity = larger;
	return true;
}

static bool
list_append(Compiler *compiler, NumberList *list, uint32_t number)
{
	void *numbers = list->numbers;

	if (!make_room(compiler, &numbers, list->count, &list->capacity,
				   sizeof(uint32_t)))
		return false;
	list->numbers = numbers;
	list->numbers[list->count++] = number;
	return true;
}

/* Sorts by key, keeping the order of equal ones; false: no memory. */
static bool
sort_pairs(SortPair *pairs, size_t count, Arena *arena)
{
	SortPair *from = pairs;
	SortPair *to;

	if (count < 2)
		return true;
	to = arena_alloc(arena, count * sizeof(SortPair));
	if (to == NULL)
		return false;
	for (size_t width = 1; width < count; width *= 2)
	{
		SortPair *swap = from;

		if (arena_interrupted(arena))
			return false;
		for (size_t start = 0; start < count; start += 2 * width)
		{
			size_t middle = start + width < count ? start + width : count;
			size_t end = middle + width < count ? middle + width : count;
			size_t left = start;
			size_t right = middle;

			for (size_t i = start; i < end; i++)
			{
				if (left < middle &&
					(right == end || from[left].key <= from[right].key))
					to[i] = from[left++];
				else
					to[i] = from[right++];
			}
		}
		from = to;
		to = swap;
	}
	if (from != pairs)
		memcpy(pairs, from, count * sizeof(SortPair));
	return true;
}

/* ----------
 * The image
 * ----------
 */

/* Adds a segment that has room for size bytes. */
static bool
add_segment(Compiler *compiler, size_t size)
{
	const ArenaSource *source = compiler->result->source;
	void *segments = compiler->segments;
	size_t larger = SEGMENT_FIRST_SIZE;
	Segment *segment;

	if (!make_room(compiler, &segments, compiler->nsegments,
				   &compiler->max_segments, sizeof(Segment)))
		return false;
	compiler->segments = segments;
	/* as long as the image is small it doubles */
	while (larger < compiler->used && larger < SEGMENT_LAST_SIZE)
		larger *= 2;
	segment = &compiler->segments[compiler->nsegments];
	segment->start = compiler->used;
	segment->size = size > larger ? size : larger;
	segment->data = arena_interrupted(&compiler->scratch)
						? NULL
						: source->alloc(source->context, segment->size);
	if (segment->data == NULL)
		return stop(compiler, ENGINE_NO_MEMORY);
	compiler->nsegments++;
	return true;
}

/* Room for size zeroed bytes at a multiple of 8; 0 if the run is over. */
static SnapOffset
image_reserve(Compiler *compiler, size_t size)
{
	size_t offset = compiler->used;
	Segment *last;

	if (compiler->status != ENGINE_OK)
		return 0;
	if (offset > UINT32_MAX - 8 || size > UINT32_MAX - 8 - offset)
	{
		(void) stop(compiler, ENGINE_TOO_LARGE);
		return 0;
	}
	size = (size + 7) & ~(size_t) 7;
	last = compiler->nsegments == 0
			   ? NULL
			   : &compiler->segments[compiler->nsegments - 1];
	if (last == NULL || size > last->size - (offset - last->start))
	{
		if (!add_segment(compiler, size))
			return 0;
		last = &compiler->segments[compiler->nsegments - 1];
	}
	memset(last->data + (offset - last->start), 0, size);
	compiler->used = offset + size;
	return (SnapOffset) offset;
}

/* What stands at an offset. */
static void *
image_at(const Compiler *compiler, SnapOffset offset)
{
	uint32_t low = 0;
	uint32_t high = compiler->nsegments - 1;

	/* the last segment that does not start behind it; mostly the last one */
	if (compiler->segments[high].start <= offset)
		low = high;
	while (low < high)
	{
		uint32_t middle = low + (high - low + 1) / 2;

		if (compiler->segments[middle].start <= offset)
			low = middle;
		else
			high = middle - 1;
	}
	return compiler->segments[low].data +
		   (offset - compiler->segments[low].start);
}

/* The image as one block in the caller's arena; its segments are freed. */
static char *
image_copy(Compiler *compiler)
{
	const ArenaSource *source = compiler->result->source;
	char *image = arena_alloc(compiler->result, compiler->used);

	if (image == NULL)
	{
		(void) stop(compiler, ENGINE_NO_MEMORY);
		return NULL;
	}
	for (uint32_t i = 0; i < compiler->nsegments; i++)
	{
		Segment *segment = &compiler->segments[i];
		size_t end = i + 1 < compiler->nsegments
						 ? compiler->segments[i + 1].start
						 : compiler->used;

		memcpy(image + segment->start, segment->data, end - segment->start);
		source->free(source->context, segment->data);
		segment->data = NULL;
	}
	return image;
}

/* Puts bytes; 0 if the run is over, or if there is nothing to put. */
static SnapOffset
image_put(Compiler *compiler, const void *data, size_t size)
{
	SnapOffset offset;

	if (size == 0)
		return 0;
	offset = image_reserve(compiler, size);
	if (offset != 0)
		memcpy(image_at(compiler, offset), data, size);
	return offset;
}

/* Puts text with its NUL; check compiler->status. */
static SnapText
image_put_text(Compiler *compiler, EngineText text)
{
	SnapText result = {0, 0};
	SnapOffset offset = image_reserve(compiler, text.length + 1);

	if (offset != 0)
	{
		if (text.length > 0)
			memcpy(image_at(compiler, offset), text.data, text.length);
		result.offset = offset;
		result.length = (uint32_t) text.length;
	}
	return result;
}

static EngineText
image_text(const Compiler *compiler, SnapText text)
{
	EngineText result = {image_at(compiler, text.offset), text.length};

	return result;
}

static EngineText
node_text(const JsonNode *node)
{
	EngineText result = {json_text(node), node->count};

	return result;
}

/* Puts what the host made of a value, unless it could not. */
static bool
image_put_stored(Compiler *compiler, EngineStatus status, const void *bytes,
				 size_t length, SnapStored *stored, bool *storable)
{
	*storable = false;
	stored->offset = 0;
	stored->length = 0;
	if (status == ENGINE_NO_MEMORY || status == ENGINE_INTERRUPTED)
		return stop(compiler, ENGINE_NO_MEMORY);
	if (status != ENGINE_OK)
		return true;
	stored->offset = image_put(compiler, bytes, length);
	if (compiler->host->forget != NULL)
		compiler->host->forget(compiler->host->context);
	stored->length = (uint32_t) length;
	*storable = stored->offset != 0;
	return compiler->status == ENGINE_OK;
}

static bool
store_json(Compiler *compiler, const JsonNode *node, SnapStored *stored,
		   bool *storable)
{
	const void *bytes = NULL;
	size_t length = 0;
	EngineStatus status;

	status = compiler->host->store_json(compiler->host->context, node, &bytes,
										&length);
	return image_put_stored(compiler, status, bytes, length, stored, storable);
}

static bool
store_text(Compiler *compiler, EngineText text, SnapStored *stored,
		   bool *storable)
{
	const void *bytes = NULL;
	size_t length = 0;
	EngineStatus status;

	status = compiler->host->store_text(compiler->host->context, text, &bytes,
										&length);
	return image_put_stored(compiler, status, bytes, length, stored, storable);
}

/* ----------
 * Warnings
 * ----------
 */

/* A name fit for a message: cut, and without control characters. */
static const char *
quote_name(Compiler *compiler, EngineText name)
{
	size_t length = name.length;
	char *copy;

	if (length > QUOTED_NAME)
	{
		length = QUOTED_NAME;
		while (length > 0 && ((unsigned char) name.data[length] & 0xc0) == 0x80)
			length--;
	}
	copy = arena_alloc(&compiler->text, length + 6);
	if (copy == NULL)
	{
		(void) stop(compiler, ENGINE_NO_MEMORY);
		return "";
	}
	copy[0] = '"';
	for (size_t i = 0; i < length; i++)
	{
		unsigned char c = (unsigned char) name.data[i];

		copy[i + 1] = c < 0x20 || c == 0x7f ? '?' : (char) c;
	}
	strcpy(copy + length + 1, length < name.length ? "...\"" : "\"");
	return copy;
}

/* Adds a warning whose text is in the result's arena (NULL: no memory). */
static bool
add_warning(Compiler *compiler, const char *text)
{
	CompileWarning *warning;

	warning = arena_alloc(compiler->result, sizeof(CompileWarning));
	if (warning == NULL || text == NULL)
		return stop(compiler, ENGINE_NO_MEMORY);
	warning->text = text;
	if (compiler->last_warning == NULL)
		compiler->first_warning = warning;
	else
		compiler->last_warning->next = warning;
	compiler->last_warning = warning;
	return true;
}

/* Says how many warnings are missing. */
static bool
finish_warnings(Compiler *compiler)
{
	if (compiler->nwarnings <= MAX_WARNINGS)
		return true;
	return add_warning(compiler,
					   arena_printf(compiler->result,
									"%u more warnings are not shown",
									compiler->nwarnings - MAX_WARNINGS));
}

#define WARN(compiler, ...)                     \
	((compiler)->nwarnings++ >= MAX_WARNINGS || \
	 add_warning(compiler, arena_printf((compiler)->result, __VA_ARGS__)))

/* ----------
 * Names
 * ----------
 */

/* Doubles the index of names. */
static bool
grow_name_index(Compiler *compiler)
{
	uint32_t size = compiler->name_index == NULL
						? NAMES_FIRST_SIZE
						: 2 * (compiler->name_mask + 1);
	uint32_t mask = size - 1;
	uint32_t *index = scratch_alloc(compiler, size, sizeof(uint32_t));

	if (index == NULL)
		return false;
	for (uint32_t i = 0; i < compiler->nnames; i++)
	{
		uint32_t slot = compiler->names[i].hash & mask;

		while (index[slot] != 0)
		{
			if (!goes_on(compiler, PROBE_COST))
				return false;
			slot = (slot + 1) & mask;
		}
		index[slot] = i + 1;
	}
	if (compiler->status != ENGINE_OK)
		return false;
	compiler->name_index = index;
	compiler->name_mask = mask;
	return true;
}

/*
 * The number of a name, new or known.  false only if the run is over; whether
 * the host can hold the name stands in its storable.
 */
static bool
intern(Compiler *compiler, EngineText text, uint32_t *number)
{
	uint32_t hash = snapshot_hash(text.data, text.length);
	void *names = compiler->names;
	uint32_t slot;
	Name *name;

	if ((compiler->name_index == NULL ||
		 compiler->nnames > compiler->name_mask / 2) &&
		!grow_name_index(compiler))
		return false;
	for (slot = hash & compiler->name_mask; compiler->name_index[slot] != 0;
		 slot = (slot + 1) & compiler->name_mask)
	{
		if (!goes_on(compiler, PROBE_COST))
			return false;
		*number = compiler->name_index[slot] - 1;
		name = &compiler->names[*number];
		if (name->hash == hash && name->text.length == text.length &&
			memcmp(image_at(compiler, name->text.offset), text.data,
				   text.length) == 0)
			return true;
	}

	if (!make_room(compiler, &names, compiler->nnames,
				   &compiler->names_capacity, sizeof(Name)))
		return false;
	compiler->names = names;
	name = &compiler->names[compiler->nnames];
	name->hash = hash;
	name->variable = NONE;
	name->unit_slot = NONE;
	name->field_key = NONE;
	name->text = image_put_text(compiler, text);
	if (!store_text(compiler, text, &name->stored, &name->storable))
		return false;
	*number = compiler->nnames++;
	compiler->name_index[slot] = *number + 1;
	return true;
}

/* A name as members of the snapshot refer to it. */
static SnapName
snap_name(const Compiler *compiler, uint32_t number)
{
	SnapName result = {compiler->names[number].text,
					   compiler->names[number].stored};

	return result;
}

/* ----------
 * Fields of the data
 * ----------
 */

/* A member that is there and not null, or NULL. */
static const JsonNode *
get_given(const JsonNode *object, const char *name)
{
	const JsonNode *node = json_get(object, name);

	return node == NULL || node->kind == JSON_NULL ? NULL : node;
}

/* A member that is a string, or NULL. */
static const JsonNode *
get_string(const JsonNode *object, const char *name)
{
	const JsonNode *node = json_get(object, name);

	return node == NULL || node->kind != JSON_STRING ? NULL : node;
}

/* A number without decimals within the bounds. */
static bool
read_integer(const JsonNode *node, double min, double max, int64_t *integer)
{
	if (node->kind != JSON_NUMBER || node->number < min || node->number > max ||
		node->number != floor(node->number))
		return false;
	*integer = (int64_t) node->number;
	return true;
}

/* A seed modulo 2^32; null and absent are 0. */
static bool
read_seed(const JsonNode *object, const char *field, uint32_t *seed)
{
	const JsonNode *node = get_given(object, field);
	double number;

	*seed = 0;
	if (node == NULL)
		return true;
	if (node->kind != JSON_NUMBER || node->number != floor(node->number))
		return false;
	number = fmod(node->number, 4294967296.0);
	if (number < 0)
		number += 4294967296.0;
	*seed = (uint32_t) number;
	return true;
}

/* Whether a split is what it must be: a list of numbers. */
static bool
check_split(const JsonNode *node)
{
	if (node == NULL || node->kind != JSON_ARRAY)
		return false;
	for (uint32_t i = 0; i < node->count; i++)
	{
		if (json_element(node, i)->kind != JSON_NUMBER)
			return false;
	}
	return true;
}

/* Puts the weights of a split that was checked. */
static bool
put_split(Compiler *compiler, const JsonNode *node, SnapSplit *split)
{
	double *weights;

	split->count = node->count;
	split->weights = 0;
	if (node->count == 0)
		return true;
	split->weights =
		image_reserve(compiler, (size_t) node->count * sizeof(double));
	if (split->weights == 0)
		return false;
	weights = image_at(compiler, split->weights);
	for (uint32_t i = 0; i < node->count; i++)
		weights[i] = json_element(node, i)->number;
	return true;
}

/*
 * Parses a text within the data, into the arena for texts.  *root is NULL if
 * it cannot be parsed, with the reason in *message and *status.  false: the run
 * is over.
 */
static bool
parse_with_status(Compiler *compiler, EngineText text, const JsonNode **root,
				  const char **message, EngineStatus *status)
{
	compiler->text_length += text.length;
	*status = json_parse(text.data, text.length, ENGINE_MAX_DEPTH,
						 &compiler->text, root, message);
	if (*status == ENGINE_NO_MEMORY)
		return stop(compiler, ENGINE_NO_MEMORY);
	return true;
}

static bool
parse_text(Compiler *compiler, EngineText text, const JsonNode **root,
		   const char **message)
{
	EngineStatus status;

	return parse_with_status(compiler, text, root, message, &status);
}

/*
 * The same for a text that decides who gets which variant.  Where it cannot be
 * read because it is too deep or too large, the experiment has a defect:
 * without the text, others would get it than are meant.
 */
static bool
parse_deciding_text(Compiler *compiler, EngineText text, const char *field,
					const JsonNode **root, Defect *defect)
{
	EngineStatus status;

	if (!parse_with_status(compiler, text, root, NULL, &status))
		return false;
	if (status == ENGINE_TOO_DEEP)
		return found_defect(defect, field, "is nested too deep");
	if (status == ENGINE_TOO_LARGE)
		return found_defect(defect, field, "is too large");
	return true;
}

/*
 * Called where nothing in the arena for texts is needed any more.  It is
 * emptied only now and then, since most texts are short.
 */
static void
done_with_text(Compiler *compiler)
{
	if (compiler->text_length >= TEXT_BATCH)
	{
		arena_release(&compiler->text);
		compiler->text_length = 0;
	}
}

/*
 * Parses an experiment or a holdout, into the arena for such trees, which is
 * emptied now and then.  NULL: the run is over.
 */
static const JsonNode *
parse_part(Compiler *compiler, EngineText text)
{
	const JsonNode *root;
	EngineStatus status;

	if (compiler->tree_length >= TEXT_BATCH)
	{
		arena_release(&compiler->tree);
		compiler->tree_length = 0;
	}
	compiler->tree_length += text.length;
	status = json_parse(text.data, text.length, ENGINE_MAX_DEPTH,
						&compiler->tree, &root, NULL);
	if (status != ENGINE_OK)
		(void) stop(compiler, status);
	return root;
}

/* ----------
 * Holdouts
 * ----------
 */

/* One holdout; the defect's field is set if it has one. */
static bool
compile_holdout(Compiler *compiler, const JsonNode *node, SnapHoldout *holdout,
				Defect *defect)
{
	const JsonNode *id = json_get(node, "id");
	const JsonNode *split = json_get(node, "split");

	if (id == NULL ||
		!read_integer(id, -MAX_INTEGER, MAX_INTEGER, &holdout->id))
		defect->field = "id";
	else if (!read_seed(node, "seedHi", &holdout->split.seed_hi))
		defect->field = "seedHi";
	else if (!read_seed(node, "seedLo", &holdout->split.seed_lo))
		defect->field = "seedLo";
	else if (!check_split(split))
		defect->field = "split";
	else
		return put_split(compiler, split, &holdout->split);
	return true;
}

/* One element of the list of holdouts. */
static bool
add_holdout(Compiler *compiler, EngineText text, uint32_t position)
{
	const JsonNode *node = parse_part(compiler, text);
	void *holdouts = compiler->holdouts;
	SnapHoldout *holdout;
	Defect defect = {NULL, NULL};

	if (node == NULL ||
		!make_room(compiler, &holdouts, compiler->nholdouts,
				   &compiler->max_holdouts, sizeof(SnapHoldout)))
		return false;
	compiler->holdouts = holdouts;
	holdout = &compiler->holdouts[compiler->nholdouts];
	if (!compile_holdout(compiler, node, holdout, &defect))
		return false;
	if (defect.field == NULL)
	{
		compiler->nholdouts++;
		return true;
	}
	memset(holdout, 0, sizeof(SnapHoldout));
	return WARN(compiler,
				"holdout at position %u is left out: its \"%s\" is broken",
				position, defect.field);
}

/*
 * The list of holdouts, and the index of their ids.  The text has data NULL
 * where the data has no such member.
 */
static bool
compile_holdouts(Compiler *compiler, EngineText list, bool *has_holdouts)
{
	uint32_t position = 0;
	EngineText text;
	JsonWalk walk;

	*has_holdouts = false;
	if (list.data == NULL)
		return true;
	if (json_walk_kind(list) != JSON_ARRAY)
		return WARN(compiler, "\"holdouts\" is not a list and is ignored");
	*has_holdouts = true;

	json_walk_begin(&walk, list);
	while (json_walk_next(&walk, &text))
	{
		if (!add_holdout(compiler, text, position++))
			return false;
	}
	if (compiler->nholdouts == 0)
		return true;
	compiler->holdout_ids =
		scratch_alloc(compiler, compiler->nholdouts, sizeof(SortPair));
	if (compiler->holdout_ids == NULL)
		return false;
	for (uint32_t i = 0; i < compiler->nholdouts; i++)
	{
		compiler->holdout_ids[i].key = compiler->holdouts[i].id;
		compiler->holdout_ids[i].value = i;
	}
	if (!sort_pairs(compiler->holdout_ids, compiler->nholdouts,
					&compiler->scratch))
		return stop(compiler, ENGINE_NO_MEMORY);
	return true;
}

/* The holdout of that id, of equal ids the last one; NONE if there is none. */
static uint32_t
find_holdout(const Compiler *compiler, int64_t id)
{
	uint32_t low = 0;
	uint32_t high = compiler->nholdouts;

	/* the number of pairs whose key is not above the id */
	while (low < high)
	{
		uint32_t middle = low + (high - low) / 2;

		if (compiler->holdout_ids[middle].key <= id)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == 0 || compiler->holdout_ids[low - 1].key != id)
		return NONE;
	return compiler->holdout_ids[low - 1].value;
}

/* An experiment's holdoutIds; ids without a definition have no effect. */
static bool
compile_holdout_ids(Compiler *compiler, const JsonNode *node, EngineText name,
					SnapExperiment *experiment)
{
	const JsonNode *ids = get_given(node, "holdoutIds");
	uint32_t *indexes;
	uint32_t count = 0;

	if (ids == NULL)
		return true;
	if (ids->kind != JSON_ARRAY)
		return WARN(compiler,
					"experiment %s: \"holdoutIds\" is not a list and is "
					"ignored",
					quote_name(compiler, name));
	if (ids->count == 0 || compiler->nholdouts == 0)
		return true;

	indexes =
		arena_alloc(&compiler->text, (size_t) ids->count * sizeof(uint32_t));
	if (indexes == NULL)
		return stop(compiler, ENGINE_NO_MEMORY);
	for (uint32_t i = 0; i < ids->count; i++)
	{
		int64_t id;

		if (!read_integer(json_element(ids, i), -MAX_INTEGER, MAX_INTEGER, &id))
			continue;
		indexes[count] = find_holdout(compiler, id);
		if (indexes[count] != NONE)
			count++;
	}
	experiment->nholdouts = count;
	experiment->holdouts =
		image_put(compiler, indexes, (size_t) count * sizeof(uint32_t));
	return compiler->status == ENGINE_OK;
}

/* ----------
 * Variants and variables
 * ----------
 */

/* The number of the variable of that name, made if it is the first time. */
static bool
variable_number(Compiler *compiler, uint32_t name, uint32_t *number)
{
	if (compiler->names[name].variable == NONE)
	{
		compiler->names[name].variable = compiler->variables.count;
		if (!list_append(compiler, &compiler->variables, name))
			return false;
	}
	*number = compiler->names[name].variable;
	return true;
}

/*
 * Stores the members of a config.  *problem says what is wrong with it, if
 * anything is; then none of its names became a variable.
 */
static bool
put_members(Compiler *compiler, const JsonNode *config, SnapVariant *variant,
			const char **problem)
{
	uint32_t count = config->count;
	SnapStored *values;
	SortPair *pairs;
	uint32_t *names;
	SnapMember *members;
	SnapOffset offset;
	bool storable;

	for (uint32_t i = 0; i < count; i++)
	{
		if (json_member_name(config, i)->count > ENGINE_MAX_NAME)
		{
			*problem = "has a name that is too long";
			return true;
		}
	}
	if (!store_json(compiler, config, &variant->variables, &storable))
		return false;
	if (!storable)
	{
		*problem = "has text or a number that cannot be stored";
		return true;
	}
	if (count == 0)
		return true;

	values = arena_alloc(&compiler->text, (size_t) count * sizeof(SnapStored));
	pairs = arena_alloc(&compiler->text, (size_t) count * sizeof(SortPair));
	names = arena_alloc(&compiler->text, (size_t) count * sizeof(uint32_t));
	if (values == NULL || pairs == NULL || names == NULL)
		return stop(compiler, ENGINE_NO_MEMORY);
	for (uint32_t i = 0; i < count; i++)
	{
		if (!intern(compiler, node_text(json_member_name(config, i)),
					&names[i]) ||
			!store_json(compiler, json_member_value(config, i), &values[i],
						&storable))
			return false;
		if (!storable || !compiler->names[names[i]].storable)
		{
			*problem = "has text or a number that cannot be stored";
			return true;
		}
	}

	for (uint32_t i = 0; i < count; i++)
	{
		uint32_t number;

		if (!variable_number(compiler, names[i], &number))
			return false;
		pairs[i].key = number;
		pairs[i].value = i;
	}
	if (!sort_pairs(pairs, count, &compiler->text))
		return stop(compiler, ENGINE_NO_MEMORY);
	offset = image_reserve(compiler, (size_t) count * sizeof(SnapMember));
	if (offset == 0)
		return false;
	members = image_at(compiler, offset);
	for (uint32_t i = 0; i < count; i++)
	{
		members[i].variable = (uint32_t) pairs[i].key;
		members[i].value = values[pairs[i].value];
	}
	variant->nmembers = count;
	variant->members = offset;
	return true;
}

/*
 * A variant's config: a string that holds a JSON object.  Null and "" stand
 * for no variables; whatever else is not such a string does too, with a
 * warning.
 */
static bool
compile_config(Compiler *compiler, const JsonNode *config, EngineText name,
			   uint32_t position, SnapVariant *variant)
{
	const JsonNode *root;
	const char *message = NULL;
	const char *problem = NULL;

	variant->variables = compiler->empty_object;
	if (config == NULL)
		return true;
	if (config->kind != JSON_STRING)
		problem = "is not a string";
	else
	{
		variant->config = image_put_text(compiler, node_text(config));
		if (compiler->status != ENGINE_OK)
			return false;
		if (config->count == 0)
			return true;
		if (!parse_text(compiler, node_text(config), &root, &message))
			return false;
		if (root == NULL)
			problem = "is not valid JSON";
		else if (root->kind != JSON_OBJECT)
			problem = "is not a JSON object";
		else if (!put_members(compiler, root, variant, &problem))
			return false;
	}
	if (problem == NULL)
		return true;

	variant->variables = compiler->empty_object;
	variant->nmembers = 0;
	variant->members = 0;
	return WARN(compiler,
				"experiment %s: variant %u has no variables, its \"config\" "
				"%s%s%s",
				quote_name(compiler, name), position, problem,
				message == NULL ? "" : ": ", message == NULL ? "" : message);
}

static bool
compile_variants(Compiler *compiler, const JsonNode *list, EngineText name,
				 SnapExperiment *experiment)
{
	SnapVariant *variants;

	experiment->nvariants = list->count;
	if (list->count == 0)
		return true;
	variants = arena_alloc(&compiler->tree,
						   (size_t) list->count * sizeof(SnapVariant));
	if (variants == NULL)
		return stop(compiler, ENGINE_NO_MEMORY);
	for (uint32_t i = 0; i < list->count; i++)
	{
		const JsonNode *node = json_element(list, i);
		const JsonNode *label = get_string(node, "name");

		if (label != NULL)
			variants[i].name = image_put_text(compiler, node_text(label));
		if (!compile_config(compiler, get_given(node, "config"), name, i,
							&variants[i]))
			return false;
		done_with_text(compiler);
	}
	experiment->variants = image_put(
		compiler, variants, (size_t) list->count * sizeof(SnapVariant));
	return compiler->status == ENGINE_OK;
}

/* ----------
 * Audience and rules
 * ----------
 */

/*
 * The filter of an audience's tree as an expression (protocol 6, "Audience
 * string"); NULL where there is no verdict for anybody.
 */
static EngineStatus
compile_filter(const JsonNode *root, Arena *arena, const ExprNode **expression,
			   size_t *size)
{
	const JsonNode *filter = root == NULL ? NULL : json_get(root, "filter");

	*expression = NULL;
	*size = 0;
	if (filter == NULL ||
		(filter->kind != JSON_ARRAY && filter->kind != JSON_OBJECT))
		return ENGINE_OK;
	return expression_compile(filter, arena, expression, size);
}

/* An audience text alone; see compile.h. */
EngineStatus
audience_compile(EngineText text, Arena *arena, const ExprNode **expression,
				 size_t *size)
{
	const JsonNode *root;
	EngineStatus status;
	Arena scratch;

	*expression = NULL;
	*size = 0;
	arena_init(&scratch, arena->source);
	status = json_parse(text.data, text.length, ENGINE_MAX_DEPTH, &scratch,
						&root, NULL);
	if (status == ENGINE_MALFORMED)
		status = ENGINE_OK; /* no verdict */
	else if (status == ENGINE_OK)
		status = compile_filter(root, arena, expression, size);
	arena_release(&scratch);
	return status;
}

/* Whether a field holds, by JavaScript's rules; one that is absent does not. */
static bool
is_truthy(const JsonNode *node)
{
	if (node == NULL)
		return false;
	switch (node->kind)
	{
		case JSON_NULL:
		case JSON_FALSE:
			return false;
		case JSON_NUMBER:
			return node->number != 0;
		case JSON_STRING:
			return node->count > 0;
		default:
			return true;
	}
}

static bool
compile_audience(Compiler *compiler, const JsonNode *node,
				 SnapExperiment *experiment, Defect *defect)
{
	const JsonNode *audience = get_string(node, "audience");
	const ExprNode *expression;
	const JsonNode *root;
	EngineStatus status;
	size_t size;

	if (is_truthy(json_get(node, "audienceStrict")))
		experiment->flags |= SNAP_AUDIENCE_STRICT;
	if (audience == NULL)
		return true;
	experiment->audience_text = image_put_text(compiler, node_text(audience));
	if (audience->count == 0)
		return true;
	if (!parse_deciding_text(compiler, node_text(audience), "audience", &root,
							 defect))
		return false;
	if (defect->field != NULL)
		return true;
	status = compile_filter(root, &compiler->text, &expression, &size);
	if (status != ENGINE_OK)
		return stop(compiler, ENGINE_NO_MEMORY);
	if (expression != NULL)
		experiment->audience = image_put(compiler, expression, size);
	return compiler->status == ENGINE_OK;
}

/*
 * Whether a rule is for clients of this environment.  Where the environment is
 * not known, only rules for all environments are.
 */
static bool
rule_environment_fits(const JsonNode *rule, EngineText environment)
{
	const JsonNode *list = get_given(rule, "environments");

	if (list == NULL)
		return true;
	if (list->kind != JSON_ARRAY)
		return false;
	if (list->count == 0)
		return true;
	for (uint32_t i = 0; i < list->count && environment.data != NULL; i++)
	{
		const JsonNode *node = json_element(list, i);

		if (node->kind == JSON_STRING && node->count == environment.length &&
			memcmp(json_text(node), environment.data, environment.length) == 0)
			return true;
	}
	return false;
}

/*
 * Whether a rule can apply to anybody, by all that does not depend on
 * attributes (protocol 3, "Rules").
 */
static bool
rule_can_apply(const JsonNode *rule, EngineText environment)
{
	const JsonNode *type = get_string(rule, "type");
	const JsonNode *variant = json_get(rule, "variant");
	const JsonNode *conditions = get_given(rule, "conditions");

	if (type == NULL || type->count != strlen("assign") ||
		memcmp(json_text(type), "assign", type->count) != 0)
		return false;
	if (variant == NULL || variant->kind != JSON_NUMBER ||
		variant->number != floor(variant->number))
		return false;
	if (conditions != NULL && conditions->kind != JSON_OBJECT)
		return false;
	return rule_environment_fits(rule, environment);
}

static bool
compile_rule(Compiler *compiler, const JsonNode *node, uint32_t position,
			 SnapRule *rule)
{
	const JsonNode *name = get_string(node, "name");
	const JsonNode *conditions = get_given(node, "conditions");
	int64_t variant;

	rule->position = (int32_t) position;
	if (!read_integer(json_get(node, "variant"), INT32_MIN, INT32_MAX,
					  &variant))
		variant = INT32_MAX;
	rule->variant = (int32_t) variant;
	if (name != NULL)
		rule->name = image_put_text(compiler, node_text(name));
	if (conditions != NULL)
	{
		const ExprNode *expression;
		EngineStatus status;
		size_t size;

		status =
			expression_compile(conditions, &compiler->text, &expression, &size);
		if (status != ENGINE_OK)
			return stop(compiler, ENGINE_NO_MEMORY);
		rule->conditions = image_put(compiler, expression, size);
	}
	return compiler->status == ENGINE_OK;
}

/* assignmentRules: a string of JSON; anything else means no rules. */
static bool
compile_rules(Compiler *compiler, const JsonNode *node,
			  SnapExperiment *experiment, Defect *defect)
{
	const JsonNode *text = get_string(node, "assignmentRules");
	const JsonNode *root;
	const JsonNode *list;
	SnapRule *rules;
	uint32_t count = 0;

	if (text == NULL)
		return true;
	experiment->rules_text = image_put_text(compiler, node_text(text));
	if (text->count == 0)
		return true;
	if (!parse_deciding_text(compiler, node_text(text), "assignmentRules",
							 &root, defect))
		return false;
	if (defect->field != NULL)
		return true;
	list = root == NULL ? NULL : json_get(root, "rules");
	if (list == NULL || list->kind != JSON_ARRAY || list->count == 0)
		return true;

	rules =
		arena_alloc(&compiler->text, (size_t) list->count * sizeof(SnapRule));
	if (rules == NULL)
		return stop(compiler, ENGINE_NO_MEMORY);
	for (uint32_t i = 0; i < list->count; i++)
	{
		const JsonNode *rule = json_element(list, i);

		if (!rule_can_apply(rule, compiler->environment))
			continue;
		if (!compile_rule(compiler, rule, i, &rules[count]))
			return false;
		count++;
	}
	experiment->nrules = count;
	experiment->rules =
		image_put(compiler, rules, (size_t) count * sizeof(SnapRule));
	return compiler->status == ENGINE_OK;
}

/* ----------
 * Custom fields
 * ----------
 */

static bool
text_is(EngineText text, const char *word)
{
	return text.length == strlen(word) &&
		   memcmp(text.data, word, text.length) == 0;
}

/* A number made here, as a tree of one node. */
typedef struct NumberNode
{
	JsonNode node;
	char text[64];
} NumberNode;

/* JSON has no NaN and no infinity: what is not finite is SNAP_FIELD_NAN. */
static SnapFieldState
number_field(double number, NumberNode *result)
{
	if (!isfinite(number))
		return SNAP_FIELD_NAN;
	result->node.kind = JSON_NUMBER;
	result->node.number = number == 0 ? 0 : number;
	result->node.count =
		(uint32_t) number_to_shortest(result->node.number, result->text);
	result->node.offset = offsetof(NumberNode, text);
	return SNAP_FIELD_VALUE;
}

/* What a field's value is worth as a number: JavaScript's Number(). */
static SnapFieldState
convert_number_field(Compiler *compiler, const JsonNode *value,
					 NumberNode *result, const char **problem)
{
	double number = 0;

	switch ((JsonKind) value->kind)
	{
		case JSON_NULL:
		case JSON_FALSE:
			break;
		case JSON_TRUE:
			number = 1;
			break;
		case JSON_NUMBER:
			number = value->number;
			break;
		case JSON_STRING:
			if (!number_parse_whole(json_text(value), value->count, &number,
									&compiler->work))
				return SNAP_FIELD_NAN;
			break;
		case JSON_ARRAY:
		case JSON_OBJECT:
			*problem = "has a value that is no number";
			return SNAP_FIELD_NULL;
	}
	return number_field(number, result);
}

/* What a field's value is worth as JSON. */
static bool
convert_json_field(Compiler *compiler, const JsonNode *value,
				   const JsonNode **result, SnapFieldState *state,
				   const char **problem)
{
	const char *message;

	/* "" stays what it is; so do numbers and booleans, as JSON of themselves */
	if (value->kind == JSON_ARRAY || value->kind == JSON_OBJECT)
		*problem = "has a value that is no JSON text";
	else if (value->kind == JSON_STRING && value->count > 0)
	{
		if (!parse_text(compiler, node_text(value), result, &message))
			return false;
		if (*result == NULL)
			*problem = "is not valid JSON";
	}
	if (*problem != NULL || (*result)->kind == JSON_NULL)
		*state = SNAP_FIELD_NULL;
	return true;
}

/*
 * Converts and stores a field's value by its declared type (protocol 5).
 * *problem says what is wrong with it, if anything is.
 */
static bool
put_field_value(Compiler *compiler, EngineText type, const JsonNode *value,
				SnapField *field, const char **problem)
{
	SnapFieldState state = SNAP_FIELD_VALUE;
	const JsonNode *result = value;
	NumberNode made = {.node = {.kind = JSON_NULL}};
	bool storable;

	if (text_is(type, "string") || text_is(type, "text"))
	{
		if (value->kind == JSON_NULL)
			state = SNAP_FIELD_NULL;
	}
	else if (text_is(type, "number"))
	{
		state = convert_number_field(compiler, value, &made, problem);
		result = &made.node;
	}
	else if (text_is(type, "boolean"))
	{
		made.node.kind =
			value->kind == JSON_STRING && text_is(node_text(value), "true")
				? JSON_TRUE
				: JSON_FALSE;
		result = &made.node;
	}
	else if (text_is(type, "json"))
	{
		if (!convert_json_field(compiler, value, &result, &state, problem))
			return false;
	}
	else
	{
		*problem = "has an unknown type";
		state = SNAP_FIELD_NULL;
	}

	if (state == SNAP_FIELD_VALUE)
	{
		if (!store_json(compiler, result, &field->value, &storable))
			return false;
		if (!storable)
		{
			*problem = "has a value that cannot be stored";
			state = SNAP_FIELD_NULL;
		}
	}
	field->state = state;
	return true;
}

/* One field; *problem and *dropped say what became of a broken one. */
static bool
compile_field(Compiler *compiler, const JsonNode *node, SnapField *field,
			  const char **problem, bool *dropped)
{
	static const JsonNode null = {.kind = JSON_NULL};
	const JsonNode *name = get_string(node, "name");
	const JsonNode *type = get_string(node, "type");
	const JsonNode *value = json_get(node, "value");
	uint32_t number;

	*dropped = true;
	if (name == NULL)
	{
		*problem = "has no name";
		return true;
	}
	if (name->count > ENGINE_MAX_NAME)
	{
		*problem = "has a name that is too long";
		return true;
	}
	if (!intern(compiler, node_text(name), &number))
		return false;
	if (!compiler->names[number].storable)
	{
		*problem = "has a name that cannot be stored";
		return true;
	}
	*dropped = false;
	field->name = compiler->names[number].text;
	if (compiler->names[number].field_key == NONE)
	{
		compiler->names[number].field_key = compiler->field_keys.count;
		if (!list_append(compiler, &compiler->field_keys, number))
			return false;
	}

	field->state = SNAP_FIELD_NULL;
	if (type == NULL || type->count > ENGINE_MAX_NAME)
	{
		*problem = "has an unknown type";
		return true;
	}
	if (!intern(compiler, node_text(type), &number))
		return false;
	if (!compiler->names[number].storable)
	{
		*problem = "has an unknown type";
		return true;
	}
	field->type = compiler->names[number].text;
	field->type_text = compiler->names[number].stored;
	return put_field_value(compiler, node_text(type),
						   value == NULL ? &null : value, field, problem);
}

static bool
compile_fields(Compiler *compiler, const JsonNode *node, EngineText name,
			   SnapExperiment *experiment)
{
	const JsonNode *list = get_given(node, "customFieldValues");
	SnapField *fields;
	uint32_t count = 0;

	if (list == NULL)
		return true;
	if (list->kind != JSON_ARRAY)
		return WARN(compiler,
					"experiment %s: \"customFieldValues\" is not a list and "
					"is ignored",
					quote_name(compiler, name));
	if (list->count == 0)
		return true;

	fields =
		arena_alloc(&compiler->tree, (size_t) list->count * sizeof(SnapField));
	if (fields == NULL)
		return stop(compiler, ENGINE_NO_MEMORY);
	for (uint32_t i = 0; i < list->count; i++)
	{
		const char *problem = NULL;
		bool dropped;

		if (!compile_field(compiler, json_element(list, i), &fields[count],
						   &problem, &dropped))
			return false;
		if (problem != NULL)
		{
			const char *field_name = "";

			if (!dropped)
				field_name = quote_name(
					compiler, image_text(compiler, fields[count].name));
			if (!WARN(compiler, "experiment %s: custom field %u%s%s %s%s",
					  quote_name(compiler, name), i, dropped ? "" : " ",
					  field_name, problem, dropped ? " and is left out" : ""))
				return false;
		}
		if (!dropped)
			count++;
		done_with_text(compiler);
	}
	experiment->nfields = count;
	experiment->fields =
		image_put(compiler, fields, (size_t) count * sizeof(SnapField));
	return compiler->status == ENGINE_OK;
}

/* ----------
 * Experiments
 * ----------
 */

/* Whether the list of variants is what it must be: a list of objects. */
static bool
check_variants(const JsonNode *node)
{
	if (node == NULL || node->kind != JSON_ARRAY)
		return false;
	for (uint32_t i = 0; i < node->count; i++)
	{
		if (json_element(node, i)->kind != JSON_OBJECT)
			return false;
	}
	return true;
}

/* The name and the unit type, by which everything finds the experiment. */
static bool
compile_keys(Compiler *compiler, const JsonNode *node,
			 SnapExperiment *experiment, uint32_t *unit_name, Defect *defect)
{
	const JsonNode *name = get_string(node, "name");
	const JsonNode *unit_type = get_given(node, "unitType");
	uint32_t number;

	*unit_name = NONE;
	if (name == NULL)
		return found_defect(defect, "name", "is not a string");
	if (name->count > ENGINE_MAX_NAME)
		return found_defect(defect, "name", "is too long");
	if (unit_type != NULL && unit_type->kind != JSON_STRING)
		return found_defect(defect, "unitType", "is not a string");
	if (unit_type != NULL && unit_type->count > ENGINE_MAX_NAME)
		return found_defect(defect, "unitType", "is too long");

	if (!intern(compiler, node_text(name), &number))
		return false;
	if (!compiler->names[number].storable)
		return found_defect(defect, "name", "cannot be stored");
	experiment->name = compiler->names[number].text;
	experiment->name_text = compiler->names[number].stored;

	if (unit_type == NULL)
		return true;
	if (!intern(compiler, node_text(unit_type), &number))
		return false;
	if (!compiler->names[number].storable)
		return found_defect(defect, "unitType", "cannot be stored");
	experiment->unit_type = compiler->names[number].text;
	experiment->unit_type_text = compiler->names[number].stored;
	experiment->flags |= SNAP_HAS_UNIT_TYPE;
	*unit_name = number;
	return true;
}

/* The numbers that decide assignments. */
static void
compile_numbers(const JsonNode *node, SnapExperiment *experiment,
				Defect *defect)
{
	static const char *const not_integer = "is not an integer in its range";
	static const char *const not_seed = "is not an integer";
	const JsonNode *id = json_get(node, "id");
	const JsonNode *iteration = get_given(node, "iteration");
	const JsonNode *full_on = get_given(node, "fullOnVariant");
	int64_t full_on_variant = 0;

	if (id == NULL || !read_integer(id, 0, INT32_MAX, &experiment->id))
		(void) found_defect(defect, "id", not_integer);
	else if (iteration != NULL &&
			 !read_integer(iteration, -MAX_INTEGER, MAX_INTEGER,
						   &experiment->iteration))
		(void) found_defect(defect, "iteration", not_integer);
	else if (full_on != NULL &&
			 !read_integer(full_on, INT32_MIN, INT32_MAX, &full_on_variant))
		(void) found_defect(defect, "fullOnVariant", not_integer);
	else if (!read_seed(node, "seedHi", &experiment->split.seed_hi))
		(void) found_defect(defect, "seedHi", not_seed);
	else if (!read_seed(node, "seedLo", &experiment->split.seed_lo))
		(void) found_defect(defect, "seedLo", not_seed);
	else if (!read_seed(node, "trafficSeedHi", &experiment->traffic.seed_hi))
		(void) found_defect(defect, "trafficSeedHi", not_seed);
	else if (!read_seed(node, "trafficSeedLo", &experiment->traffic.seed_lo))
		(void) found_defect(defect, "trafficSeedLo", not_seed);
	experiment->full_on_variant = (int32_t) full_on_variant;
}

/* All of an experiment; the defect's field is set if it has one. */
static bool
compile_experiment(Compiler *compiler, const JsonNode *node,
				   SnapExperiment *experiment, Defect *defect)
{
	const JsonNode *split = json_get(node, "split");
	const JsonNode *traffic = json_get(node, "trafficSplit");
	const JsonNode *variants = json_get(node, "variants");
	uint32_t unit_name;
	EngineText name;

	if (!compile_keys(compiler, node, experiment, &unit_name, defect))
		return false;
	if (defect->field == NULL)
		compile_numbers(node, experiment, defect);
	if (defect->field != NULL)
		return true;
	if (!check_split(split))
		return found_defect(defect, "split", "is not a list of numbers");
	if (!check_split(traffic))
		return found_defect(defect, "trafficSplit", "is not a list of numbers");
	if (!check_variants(variants))
		return found_defect(defect, "variants", "is not a list of objects");

	if (!compile_audience(compiler, node, experiment, defect) ||
		!compile_rules(compiler, node, experiment, defect))
		return false;
	if (defect->field != NULL)
		return true;

	/* from here on it counts */
	name = node_text(json_get(node, "name"));
	if (unit_name != NONE)
	{
		if (compiler->names[unit_name].unit_slot == NONE)
		{
			compiler->names[unit_name].unit_slot = compiler->unit_types.count;
			if (!list_append(compiler, &compiler->unit_types, unit_name))
				return false;
		}
		experiment->unit_slot = compiler->names[unit_name].unit_slot;
	}
	if (!put_split(compiler, split, &experiment->split) ||
		!put_split(compiler, traffic, &experiment->traffic))
		return false;

	/*
	 * Index 1 of two is chosen for every probability, 0 and 1 included, if
	 * the first weight is not above 0.
	 */
	if (traffic->count == 2 && json_element(traffic, 0)->number <= 0)
		experiment->flags |= SNAP_ALL_TRAFFIC;

	return compile_variants(compiler, variants, name, experiment) &&
		   compile_holdout_ids(compiler, node, name, experiment) &&
		   compile_fields(compiler, node, name, experiment);
}

/* One element of the list of experiments. */
static bool
add_experiment(Compiler *compiler, EngineText text, uint32_t position)
{
	const JsonNode *node = parse_part(compiler, text);
	void *experiments = compiler->experiments;
	SnapExperiment *experiment;
	Defect defect = {NULL, NULL};
	const JsonNode *name;

	if (node == NULL ||
		!make_room(compiler, &experiments, compiler->nexperiments,
				   &compiler->max_experiments, sizeof(SnapExperiment)))
		return false;
	compiler->experiments = experiments;
	experiment = &compiler->experiments[compiler->nexperiments];
	if (!compile_experiment(compiler, node, experiment, &defect))
		return false;
	done_with_text(compiler);
	if (defect.field == NULL)
	{
		compiler->nexperiments++;
		return true;
	}

	memset(experiment, 0, sizeof(SnapExperiment));
	compiler->nleft_out++;
	name = get_string(node, "name");
	return name != NULL
			   ? WARN(compiler, "experiment %s is left out: its \"%s\" %s",
					  quote_name(compiler, node_text(name)), defect.field,
					  defect.problem)
			   : WARN(compiler,
					  "experiment at position %u is left out: its \"%s\" %s",
					  position, defect.field, defect.problem);
}

/* The list of experiments; data NULL: there is none. */
static bool
compile_experiments(Compiler *compiler, EngineText list)
{
	uint32_t position = 0;
	EngineText text;
	JsonWalk walk;

	if (list.data == NULL)
		return true;
	json_walk_begin(&walk, list);
	while (json_walk_next(&walk, &text))
	{
		if (!goes_on(compiler, PROBE_COST) ||
			!add_experiment(compiler, text, position++))
			return false;
	}
	return true;
}

/* ----------
 * Indexes
 * ----------
 */

/* The mask of an index with room for twice that many entries. */
static uint32_t
index_mask(uint32_t count)
{
	uint32_t size = 2;

	while (size / 2 < count && size < UINT32_C(1) << 31)
		size *= 2;
	return size - 1;
}

/*
 * The index of experiments by name, in which the later of two equal names
 * takes the place of the earlier.  winners[i] becomes the experiment that
 * goes by the name of experiment i.
 */
static SnapOffset
put_name_index(Compiler *compiler, uint32_t mask, uint32_t *winners)
{
	size_t size = ((size_t) mask + 1) * sizeof(uint32_t);
	SnapOffset offset = image_reserve(compiler, size);
	SnapExperiment *experiments = compiler->experiments;
	uint32_t *index;

	if (offset == 0)
		return 0;
	index = image_at(compiler, offset);
	for (uint32_t i = 0; i < compiler->nexperiments; i++)
	{
		EngineText name = image_text(compiler, experiments[i].name);
		uint32_t slot = snapshot_hash(name.data, name.length) & mask;

		while (index[slot] != 0 && experiments[index[slot] - 1].name.offset !=
									   experiments[i].name.offset)
		{
			if (!goes_on(compiler, PROBE_COST))
				return 0;
			slot = (slot + 1) & mask;
		}
		if (index[slot] != 0)
			experiments[index[slot] - 1].flags |= SNAP_SHADOWED;
		index[slot] = i + 1;
		winners[i] = slot;
	}
	for (uint32_t i = 0; i < compiler->nexperiments; i++)
		winners[i] = index[winners[i]] - 1;
	return offset;
}

static SnapOffset
put_variable_index(Compiler *compiler, uint32_t mask)
{
	size_t size = ((size_t) mask + 1) * sizeof(uint32_t);
	SnapOffset offset = image_reserve(compiler, size);
	uint32_t *index;

	if (offset == 0)
		return 0;
	index = image_at(compiler, offset);
	for (uint32_t i = 0; i < compiler->variables.count; i++)
	{
		uint32_t name = compiler->variables.numbers[i];
		uint32_t slot = compiler->names[name].hash & mask;

		while (index[slot] != 0)
		{
			if (!goes_on(compiler, PROBE_COST))
				return 0;
			slot = (slot + 1) & mask;
		}
		index[slot] = i + 1;
	}
	return offset;
}

/*
 * Calls for each variable of an experiment, once, in no particular order:
 * counts it, or appends the experiment to its list.
 */
static void
visit_variables(const Compiler *compiler, uint32_t experiment, uint32_t winner,
				uint32_t *last_seen, uint32_t *counts, uint32_t *const *lists)
{
	const SnapExperiment *entry = &compiler->experiments[experiment];
	const SnapVariant *variants = image_at(compiler, entry->variants);

	for (uint32_t i = 0; i < entry->nvariants; i++)
	{
		const SnapMember *members = image_at(compiler, variants[i].members);

		for (uint32_t j = 0; j < variants[i].nmembers; j++)
		{
			uint32_t variable = members[j].variable;

			if (last_seen[variable] == experiment + 1)
				continue;
			last_seen[variable] = experiment + 1;
			if (lists != NULL)
				lists[variable][counts[variable]] = winner;
			counts[variable]++;
		}
	}
}

/*
 * The variables with their experiments, lowest id first (protocol 4).  Of
 * equal ids the later experiment comes first, as the SDK's sorted insertion
 * has it.  An experiment whose name belongs to a later one is represented by
 * that one, since the SDK goes from the list to the assignment by name.
 */
static SnapOffset
put_variables(Compiler *compiler, const uint32_t *winners)
{
	uint32_t nvariables = compiler->variables.count;
	uint32_t nexperiments = compiler->nexperiments;
	SnapVariable *variables;
	SortPair *order;
	uint32_t *last_seen;
	uint32_t *counts;
	uint32_t **lists;
	uint32_t *listed;

	if (nvariables == 0)
		return 0;
	variables = scratch_alloc(compiler, nvariables, sizeof(SnapVariable));
	order = scratch_alloc(compiler, nexperiments, sizeof(SortPair));
	last_seen = scratch_alloc(compiler, nvariables, sizeof(uint32_t));
	counts = scratch_alloc(compiler, nvariables, sizeof(uint32_t));
	lists = scratch_alloc(compiler, nvariables, sizeof(uint32_t *));
	listed = scratch_alloc(compiler, nexperiments, sizeof(uint32_t));
	if (variables == NULL || order == NULL || last_seen == NULL ||
		counts == NULL || lists == NULL || listed == NULL)
		return 0;

	for (uint32_t i = 0; i < nexperiments; i++)
	{
		order[i].value = nexperiments - 1 - i;
		order[i].key = compiler->experiments[order[i].value].id;
	}
	if (!sort_pairs(order, nexperiments, &compiler->scratch))
	{
		(void) stop(compiler, ENGINE_NO_MEMORY);
		return 0;
	}

	for (uint32_t i = 0; i < nexperiments; i++)
		visit_variables(compiler, i, winners[i], last_seen, counts, NULL);
	for (uint32_t i = 0; i < nvariables; i++)
	{
		lists[i] = scratch_alloc(compiler, counts[i], sizeof(uint32_t));
		if (lists[i] == NULL)
			return 0;
	}
	memset(last_seen, 0, nvariables * sizeof(uint32_t));
	memset(counts, 0, nvariables * sizeof(uint32_t));
	for (uint32_t i = 0; i < nexperiments; i++)
		visit_variables(compiler, order[i].value, winners[order[i].value],
						last_seen, counts, lists);

	for (uint32_t i = 0; i < nvariables; i++)
	{
		const Name *name;
		uint32_t kept = 0;

		for (uint32_t j = 0; j < counts[i]; j++)
		{
			if (listed[lists[i][j]] == i + 1)
				continue;
			listed[lists[i][j]] = i + 1;
			lists[i][kept++] = lists[i][j];
		}
		name = &compiler->names[compiler->variables.numbers[i]];
		variables[i].key = name->text;
		variables[i].key_text = name->stored;
		variables[i].nexperiments = kept;
		variables[i].experiments =
			image_put(compiler, lists[i], (size_t) kept * sizeof(uint32_t));
	}
	return image_put(compiler, variables,
					 (size_t) nvariables * sizeof(SnapVariable));
}

/* A list of names that stand alone. */
static SnapOffset
put_names(Compiler *compiler, const NumberList *list)
{
	SnapOffset offset;
	SnapName *names;

	if (list->count == 0)
		return 0;
	offset = image_reserve(compiler, (size_t) list->count * sizeof(SnapName));
	if (offset == 0)
		return 0;
	names = image_at(compiler, offset);
	for (uint32_t i = 0; i < list->count; i++)
		names[i] = snap_name(compiler, list->numbers[i]);
	return offset;
}

/* Everything that is written when all experiments are known. */
static bool
put_snapshot(Compiler *compiler, SnapImage *header)
{
	uint32_t *winners;

	winners = scratch_alloc(compiler, compiler->nexperiments, sizeof(uint32_t));
	if (winners == NULL)
		return false;

	header->nexperiments = compiler->nexperiments;
	header->nleft_out = compiler->nleft_out;
	header->name_mask = index_mask(compiler->nexperiments);
	header->name_index = put_name_index(compiler, header->name_mask, winners);
	if (compiler->status != ENGINE_OK)
		return false;
	header->experiments =
		image_put(compiler, compiler->experiments,
				  (size_t) compiler->nexperiments * sizeof(SnapExperiment));
	header->nvariables = compiler->variables.count;
	header->variables = put_variables(compiler, winners);
	header->variable_mask = index_mask(compiler->variables.count);
	header->variable_index =
		put_variable_index(compiler, header->variable_mask);
	header->nholdouts = compiler->nholdouts;
	header->holdouts =
		image_put(compiler, compiler->holdouts,
				  (size_t) compiler->nholdouts * sizeof(SnapHoldout));
	header->nunit_types = compiler->unit_types.count;
	header->unit_types = put_names(compiler, &compiler->unit_types);
	header->nfield_keys = compiler->field_keys.count;
	header->field_keys = put_names(compiler, &compiler->field_keys);
	return compiler->status == ENGINE_OK;
}

/* Whether a member's name, as it stands in the text, is that word. */
static bool
name_is(Compiler *compiler, EngineText name, const char *word)
{
	size_t length = strlen(word);
	const JsonNode *node;

	if (memchr(name.data, '\\', name.length) == NULL)
		return name.length == length + 2 &&
			   memcmp(name.data + 1, word, length) == 0;
	/* an escape may stand for anything; none stands for more than six bytes */
	if (name.length > 6 * length + 2)
		return false;
	node = parse_part(compiler, name);
	return node != NULL && text_is(node_text(node), word);
}

/*
 * Finds the members of the data that count, of equal names the last one.  What
 * is null is as if it were not there.
 */
static bool
find_members(Compiler *compiler, EngineText data, EngineText *experiments,
			 EngineText *holdouts)
{
	EngineText name;
	EngineText value;
	JsonWalk walk;

	json_walk_begin(&walk, data);
	while (json_walk_next(&walk, &name) && json_walk_next(&walk, &value))
	{
		bool given = *value.data != 'n';

		if (!goes_on(compiler, PROBE_COST))
			return false;
		if (name_is(compiler, name, "experiments"))
			*experiments = given ? value : (EngineText){NULL, 0};
		else if (name_is(compiler, name, "holdouts"))
			*holdouts = given ? value : (EngineText){NULL, 0};
	}
	return compiler->status == ENGINE_OK;
}

/*
 * Compiles the whole data.  *message is set where the data as a whole is not
 * what it must be.
 */
static bool
compile_data(Compiler *compiler, EngineText text, SnapImage *header,
			 const char **message)
{
	static const JsonNode empty_object = {.kind = JSON_OBJECT};
	EngineText experiments = {NULL, 0};
	EngineText holdouts = {NULL, 0};
	const char *problem;
	EngineStatus status;
	bool storable;

	status = json_check(text.data, text.length, ENGINE_MAX_DEPTH,
						&compiler->scratch, &problem);
	if (status != ENGINE_OK)
	{
		if (problem != NULL)
			*message = arena_printf(
				compiler->result, "context data cannot be parsed: %s", problem);
		return stop(compiler, status);
	}
	if (json_walk_kind(text) != JSON_OBJECT)
	{
		*message = "context data is not a JSON object";
		return stop(compiler, ENGINE_MALFORMED);
	}
	if (!find_members(compiler, text, &experiments, &holdouts))
		return false;
	if (experiments.data != NULL && json_walk_kind(experiments) != JSON_ARRAY)
	{
		*message = "\"experiments\" in the context data is not a list";
		return stop(compiler, ENGINE_MALFORMED);
	}

	(void) image_reserve(compiler, sizeof(SnapImage));
	header->raw = image_put_text(compiler, text);
	if (compiler->environment.data != NULL)
		header->environment = image_put_text(compiler, compiler->environment);
	if (compiler->status != ENGINE_OK ||
		!store_json(compiler, &empty_object, &compiler->empty_object,
					&storable))
		return false;

	if (!compile_holdouts(compiler, holdouts, &header->has_holdouts) ||
		!compile_experiments(compiler, experiments))
		return false;
	arena_release(&compiler->text);
	arena_release(&compiler->tree);
	return finish_warnings(compiler) && put_snapshot(compiler, header);
}

/* Frees all that is not the result's, but for the image. */
static void
end_run(Compiler *compiler)
{
	const ArenaSource *source = compiler->result->source;
	void *arrays[] = {compiler->experiments,
					  compiler->holdouts,
					  compiler->names,
					  compiler->variables.numbers,
					  compiler->unit_types.numbers,
					  compiler->field_keys.numbers};

	for (size_t i = 0; i < sizeof(arrays) / sizeof(arrays[0]); i++)
	{
		if (arrays[i] != NULL)
			source->free(source->context, arrays[i]);
	}
	arena_release(&compiler->text);
	arena_release(&compiler->tree);
	arena_release(&compiler->scratch);
}

static void
free_image(Compiler *compiler)
{
	const ArenaSource *source = compiler->result->source;

	for (uint32_t i = 0; i < compiler->nsegments; i++)
	{
		if (compiler->segments[i].data != NULL)
			source->free(source->context, compiler->segments[i].data);
	}
	if (compiler->segments != NULL)
		source->free(source->context, compiler->segments);
}

/* Compiles text for clients in environment; see compile.h. */
EngineStatus
snapshot_compile(EngineText text, EngineText environment,
				 const SnapshotHost *host, Arena *arena, CompileResult *result)
{
	SnapImage header = {.magic = SNAPSHOT_MAGIC};
	Compiler compiler = {
		.host = host,
		.result = arena,
		.environment = environment,
	};
	const char *message = NULL;
	bool complete;
	char *image;

	memset(result, 0, sizeof(*result));
	arena_init(&compiler.scratch, arena->source);
	arena_init(&compiler.tree, arena->source);
	arena_init(&compiler.text, arena->source);
	work_begin(&compiler.work, arena->source->interrupted,
			   arena->source->context);

	complete = compile_data(&compiler, text, &header, &message);
	end_run(&compiler);
	if (complete)
	{
		image = image_copy(&compiler);
		if (image != NULL)
		{
			header.size = (uint32_t) compiler.used;
			memcpy(image, &header, sizeof(header));
			result->snapshot = (const SnapImage *) image;
			result->size = compiler.used;
		}
	}
	if (compiler.status == ENGINE_TOO_LARGE && message == NULL)
		message = "context data is too large";
	if (compiler.status != ENGINE_NO_MEMORY)
		result->message = message;
	result->warnings = compiler.first_warning;

	free_image(&compiler);
	return compiler.status;
}
