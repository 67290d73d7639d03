/*
 * backtrack.c
 *		A small backtracking matcher with JavaScript's semantics.
 *
 * The tree of a pattern is compiled into steps.  A run has a place in the
 * steps, a place in the text, and slots: the ends of the groups, and what
 * loops and lookarounds remember.  Everything that a failure must undo goes
 * on a trail: places to try next, and old values of slots.  So there is no
 * recursion, and the trail's size bounds the memory.
 */
#include "backtrack.h"

#include <string.h>

/* A slot without value, a group that has not matched */
#define UNSET UINT32_MAX

/* Marks entries of the trail that restore a slot */
#define RESTORE 0x80000000U

/* The trail's first size, in entries */
#define FIRST_TRAIL 1024

/* What a step costs, apart from what it goes through */
#define STEP_COST 4

typedef enum StepKind
{
	STEP_FOUND = 0,
	STEP_UNIT, /* a: the code unit */
	STEP_CLASS, /* node: the class */
	STEP_REFERENCE, /* a: the slot of the group's start */
	STEP_START,
	STEP_END,
	STEP_EDGE, /* a: whether there must be one */
	STEP_MARK, /* a: the slot that gets the place in the text */
	STEP_JUMP, /* a: the step */
	STEP_SPLIT, /* a: the step to try first; b: the second */
	STEP_LOOP_START, /* a: the slot of the count */
	STEP_LOOP, /* node; a: the slot of the count; b: the step after */
	STEP_ROUND, /* node; a: the slot of the count */
	STEP_ROUND_END, /* node; a: the slot of the count; b: the STEP_LOOP */
	STEP_LOOK, /* a: the first of two slots */
	STEP_LOOK_END,
	STEP_LOOK_NOT, /* a: the first of two slots; b: the step after */
	STEP_LOOK_NOT_END
} StepKind;

typedef struct Step
{
	uint16_t kind; /* StepKind */
	bool backwards; /* matches what is before the place in the text */
	uint32_t a;
	uint32_t b;
	const PatternNode *node;
} Step;

struct BacktrackProgram
{
	Step *steps;
	uint32_t nsteps;
	uint32_t nslots;
};

typedef struct ProgramBuilder
{
	BacktrackProgram *program;
	uint32_t capacity;
	Arena *arena;
} ProgramBuilder;

typedef struct TrailEntry
{
	uint32_t what; /* a step to go on with, or RESTORE and a slot */
	uint32_t value; /* the place in the text, or the slot's value */
} TrailEntry;

typedef struct Run
{
	const BacktrackProgram *program;
	const uint16_t *text;
	uint32_t length;
	const ArenaSource *source;
	uint32_t *slots;
	TrailEntry *trail;
	uint32_t used;
	uint32_t capacity;
	uint32_t steps_left;
	bool exhausted; /* a bound was hit, or the work was stopped */
	Work *work;
} Run;

static void build(ProgramBuilder *builder, const PatternNode *node,
				  bool backwards);

/* Adds a step, and returns its number. */
static uint32_t
add_step(ProgramBuilder *builder, StepKind kind, bool backwards, uint32_t a,
		 uint32_t b, const PatternNode *node)
{
	BacktrackProgram *program = builder->program;
	Step *step;

	if (program->nsteps == builder->capacity)
	{
		uint32_t capacity = builder->capacity * 2;
		Step *steps = arena_alloc(builder->arena, capacity * sizeof(Step));

		if (steps == NULL)
			return 0; /* the arena remembers */
		memcpy(steps, program->steps, program->nsteps * sizeof(Step));
		program->steps = steps;
		builder->capacity = capacity;
	}
	step = &program->steps[program->nsteps];
	step->kind = (uint16_t) kind;
	step->backwards = backwards;
	step->a = a;
	step->b = b;
	step->node = node;
	return program->nsteps++;
}

static uint32_t
add_slots(ProgramBuilder *builder, uint32_t count)
{
	uint32_t first = builder->program->nslots;

	builder->program->nslots += count;
	return first;
}

/* The terms of a sequence; backwards, the last one comes first. */
static void
build_sequence(ProgramBuilder *builder, const PatternNode *first,
			   bool backwards)
{
	const PatternNode *term;
	const PatternNode **terms;
	size_t count = 0;

	for (term = first; term != NULL; term = term->next)
	{
		if (!backwards)
			build(builder, term, false);
		count++;
	}
	if (!backwards || count == 0)
		return;
	terms = arena_alloc(builder->arena, count * sizeof(*terms));
	if (terms == NULL)
		return; /* the arena remembers */
	for (term = first, count = 0; term != NULL; term = term->next)
		terms[count++] = term;
	while (count > 0)
		build(builder, terms[--count], true);
}

static void
build_alternatives(ProgramBuilder *builder, const PatternNode *alternative,
				   bool backwards)
{
	uint32_t jumps = UNSET; /* those to the end, linked by their targets */

	for (; alternative->next != NULL; alternative = alternative->next)
	{
		uint32_t split = add_step(builder, STEP_SPLIT, false, 0, 0, NULL);

		build(builder, alternative, backwards);
		jumps = add_step(builder, STEP_JUMP, false, jumps, 0, NULL);
		builder->program->steps[split].a = split + 1;
		builder->program->steps[split].b = builder->program->nsteps;
	}
	build(builder, alternative, backwards);
	while (jumps != UNSET && !builder->arena->failed)
	{
		uint32_t next = builder->program->steps[jumps].a;

		builder->program->steps[jumps].a = builder->program->nsteps;
		jumps = next;
	}
}

static void
build_repeat(ProgramBuilder *builder, const PatternNode *node, bool backwards)
{
	BacktrackProgram *program = builder->program;
	bool plain = node->u.repeat.first_group == node->u.repeat.end_group &&
				 node->child->min_width > 0;
	uint32_t slot;
	uint32_t loop;
	uint32_t split;

	if (plain && node->u.repeat.min <= 1 &&
		(node->u.repeat.max == PATTERN_UNBOUNDED || node->u.repeat.max == 1))
	{
		/* ? * + over something simple need no count */
		if (node->u.repeat.min == 1)
		{
			loop = program->nsteps;
			build(builder, node->child, backwards);
			if (node->u.repeat.max == 1)
				return;
			split = add_step(builder, STEP_SPLIT, false, loop, 0, NULL);
			program->steps[split].a = node->u.repeat.lazy ? split + 1 : loop;
			program->steps[split].b = node->u.repeat.lazy ? loop : split + 1;
			return;
		}
		loop = add_step(builder, STEP_SPLIT, false, 0, 0, NULL);
		build(builder, node->child, backwards);
		if (node->u.repeat.max != 1)
			(void) add_step(builder, STEP_JUMP, false, loop, 0, NULL);
		program->steps[loop].a =
			node->u.repeat.lazy ? program->nsteps : loop + 1;
		program->steps[loop].b =
			node->u.repeat.lazy ? loop + 1 : program->nsteps;
		return;
	}

	slot = add_slots(builder, 2);
	(void) add_step(builder, STEP_LOOP_START, false, slot, 0, NULL);
	loop = add_step(builder, STEP_LOOP, false, slot, 0, node);
	(void) add_step(builder, STEP_ROUND, false, slot, 0, node);
	build(builder, node->child, backwards);
	(void) add_step(builder, STEP_ROUND_END, false, slot, loop, node);
	program->steps[loop].b = program->nsteps;
}

static void
build_look(ProgramBuilder *builder, const PatternNode *node)
{
	bool negative = node->u.look.negative;
	uint32_t slot = add_slots(builder, 2);
	uint32_t look = add_step(builder, negative ? STEP_LOOK_NOT : STEP_LOOK,
							 false, slot, 0, NULL);

	build(builder, node->child, node->u.look.behind);
	(void) add_step(builder, negative ? STEP_LOOK_NOT_END : STEP_LOOK_END,
					false, slot, 0, NULL);
	builder->program->steps[look].b = builder->program->nsteps;
}

/* The recursion is as deep as the tree, which the parser bounds. */
static void
build(ProgramBuilder *builder, const PatternNode *node, bool backwards)
{
	uint32_t slot;

	switch (node->kind)
	{
		case PATTERN_EMPTY:
			break;
		case PATTERN_UNIT:
			(void) add_step(builder, STEP_UNIT, backwards, node->u.unit, 0,
							NULL);
			break;
		case PATTERN_CLASS:
			(void) add_step(builder, STEP_CLASS, backwards, 0, 0, node);
			break;
		case PATTERN_START:
			(void) add_step(builder, STEP_START, false, 0, 0, NULL);
			break;
		case PATTERN_END:
			(void) add_step(builder, STEP_END, false, 0, 0, NULL);
			break;
		case PATTERN_EDGE:
		case PATTERN_NO_EDGE:
			(void) add_step(builder, STEP_EDGE, false,
							node->kind == PATTERN_EDGE, 0, NULL);
			break;
		case PATTERN_REFERENCE:
			(void) add_step(builder, STEP_REFERENCE, backwards,
							2 * node->u.group, 0, NULL);
			break;
		case PATTERN_GROUP:
			slot = 2 * node->u.group;
			(void) add_step(builder, STEP_MARK, false,
							backwards ? slot + 1 : slot, 0, NULL);
			build(builder, node->child, backwards);
			(void) add_step(builder, STEP_MARK, false,
							backwards ? slot : slot + 1, 0, NULL);
			break;
		case PATTERN_REPEAT:
			build_repeat(builder, node, backwards);
			break;
		case PATTERN_LOOK:
			build_look(builder, node);
			break;
		case PATTERN_SEQUENCE:
			build_sequence(builder, node->child, backwards);
			break;
		case PATTERN_ALTERNATIVES:
			build_alternatives(builder, node->child, backwards);
			break;
	}
}

const BacktrackProgram *
backtrack_compile(const PatternTree *tree, Arena *arena)
{
	ProgramBuilder builder;

	builder.arena = arena;
	builder.capacity = 64;
	builder.program = arena_alloc(arena, sizeof(BacktrackProgram));
	if (builder.program == NULL)
		return NULL;
	builder.program->steps =
		arena_alloc(arena, builder.capacity * sizeof(Step));
	if (builder.program->steps == NULL)
		return NULL;
	(void) add_slots(&builder, 2 * (tree->groups + 1));
	build(&builder, tree->root, false);
	(void) add_step(&builder, STEP_FOUND, false, 0, 0, NULL);
	return arena->failed ? NULL : builder.program;
}

/* Counts what is done; a run that shall not go on ends like at a bound. */
static inline void
spend(Run *run, uint32_t cost)
{
	if (!work_goes_on(run->work, cost))
		run->exhausted = true;
}

/* Puts an entry on the trail. */
static void
push(Run *run, uint32_t what, uint32_t value)
{
	if (run->used == run->capacity)
	{
		uint32_t capacity =
			run->capacity == 0 ? FIRST_TRAIL : run->capacity * 2;
		TrailEntry *trail = NULL;

		if (capacity <= BACKTRACK_MAX_TRAIL)
			trail = run->source->alloc(run->source->context,
									   capacity * sizeof(TrailEntry));
		if (trail == NULL)
		{
			run->exhausted = true;
			return;
		}
		if (run->trail != NULL)
		{
			memcpy(trail, run->trail, run->used * sizeof(TrailEntry));
			run->source->free(run->source->context, run->trail);
		}
		run->trail = trail;
		run->capacity = capacity;
	}
	run->trail[run->used].what = what;
	run->trail[run->used].value = value;
	run->used++;
}

static void
set_slot(Run *run, uint32_t slot, uint32_t value)
{
	if (run->slots[slot] == value)
		return;
	push(run, RESTORE | slot, run->slots[slot]);
	run->slots[slot] = value;
}

/* Takes the newest entry off the trail; true if it is a place to go on at. */
static bool
pop(Run *run, uint32_t *step, uint32_t *at)
{
	const TrailEntry *entry = &run->trail[--run->used];

	if ((entry->what & RESTORE) != 0)
	{
		run->slots[entry->what & ~RESTORE] = entry->value;
		return false;
	}
	*step = entry->what;
	*at = entry->value;
	return true;
}

/* Forgets the places to go on at above height, but not the old values. */
static void
forget_choices(Run *run, uint32_t height)
{
	uint32_t from;
	uint32_t to = height;

	spend(run, run->used - height);
	for (from = height; from < run->used; from++)
	{
		if ((run->trail[from].what & RESTORE) != 0)
			run->trail[to++] = run->trail[from];
	}
	run->used = to;
}

static bool
in_class(Run *run, const PatternNode *class, uint16_t unit)
{
	const PatternRange *range;
	bool found = false;
	uint32_t looked_at = 0;

	for (range = class->u.set.ranges; range != NULL && !found;
		 range = range->next)
	{
		found = unit >= range->low && unit <= range->high;
		looked_at++;
	}
	spend(run, looked_at);
	return found != class->u.set.negated;
}

static bool
is_word(const Run *run, uint32_t at)
{
	uint16_t unit = run->text[at];

	return (unit >= 'a' && unit <= 'z') || (unit >= 'A' && unit <= 'Z') ||
		   (unit >= '0' && unit <= '9') || unit == '_';
}

/* Moves *at over one unit; false at the end of the text. */
static bool
take_unit(const Run *run, bool backwards, uint32_t *at, uint16_t *unit)
{
	if (*at == (backwards ? 0 : run->length))
		return false;
	*unit = backwards ? run->text[--*at] : run->text[(*at)++];
	return true;
}

/* Moves *at over what a group has matched; over nothing if it has not. */
static bool
take_reference(Run *run, const Step *step, uint32_t *at)
{
	uint32_t start = run->slots[step->a];
	uint32_t end = run->slots[step->a + 1];
	uint32_t length;

	if (start == UNSET || end == UNSET)
		return true;
	length = end - start;
	spend(run, length);
	if (step->backwards)
	{
		if (*at < length)
			return false;
		*at -= length;
		return memcmp(run->text + *at, run->text + start,
					  length * sizeof(uint16_t)) == 0;
	}
	if (run->length - *at < length || memcmp(run->text + *at, run->text + start,
											 length * sizeof(uint16_t)) != 0)
		return false;
	*at += length;
	return true;
}

/*
 * Decides on another round of a loop: returns the step to go on with, and
 * puts the other possibility on the trail where there is one.
 */
static uint32_t
choose_round(Run *run, const Step *step, uint32_t number, uint32_t at)
{
	const PatternNode *node = step->node;
	uint32_t count = run->slots[step->a];
	uint32_t round = number + 1;

	if (count < node->u.repeat.min)
		return round;
	if (node->u.repeat.max != PATTERN_UNBOUNDED && count >= node->u.repeat.max)
		return step->b;
	if (node->u.repeat.lazy)
	{
		push(run, round, at);
		return step->b;
	}
	push(run, step->b, at);
	return round;
}

/* A round starts with the groups inside reset. */
static void
start_round(Run *run, const Step *step, uint32_t at)
{
	uint32_t group;

	set_slot(run, step->a + 1, at);
	spend(run,
		  step->node->u.repeat.end_group - step->node->u.repeat.first_group);
	for (group = step->node->u.repeat.first_group;
		 group < step->node->u.repeat.end_group; group++)
	{
		set_slot(run, 2 * group, UNSET);
		set_slot(run, 2 * group + 1, UNSET);
	}
}

/*
 * A round beyond the least number that has matched nothing is a failure: so
 * JavaScript ends what would be endless.
 */
static bool
end_round(Run *run, const Step *step, uint32_t at)
{
	uint32_t count = run->slots[step->a];

	if (count >= step->node->u.repeat.min && run->slots[step->a + 1] == at)
		return false;
	set_slot(run, step->a, count + 1);
	return true;
}

/* Whether the pattern matches at that place of the text. */
static bool
match_at(Run *run, uint32_t at)
{
	uint32_t number = 0;

	while (!run->exhausted)
	{
		const Step *step = &run->program->steps[number];
		bool matched = true;
		uint16_t unit;

		if (run->steps_left == 0)
		{
			run->exhausted = true;
			break;
		}
		spend(run, STEP_COST);
		run->steps_left--;
		number++;
		switch ((StepKind) step->kind)
		{
			case STEP_FOUND:
				return true;
			case STEP_UNIT:
				matched = take_unit(run, step->backwards, &at, &unit) &&
						  unit == step->a;
				break;
			case STEP_CLASS:
				matched = take_unit(run, step->backwards, &at, &unit) &&
						  in_class(run, step->node, unit);
				break;
			case STEP_REFERENCE:
				matched = take_reference(run, step, &at);
				break;
			case STEP_START:
				matched = at == 0;
				break;
			case STEP_END:
				matched = at == run->length;
				break;
			case STEP_EDGE:
				matched =
					((at > 0 && is_word(run, at - 1)) !=
					 (at < run->length && is_word(run, at))) == (step->a != 0);
				break;
			case STEP_MARK:
				set_slot(run, step->a, at);
				break;
			case STEP_JUMP:
				number = step->a;
				break;
			case STEP_SPLIT:
				push(run, step->b, at);
				number = step->a;
				break;
			case STEP_LOOP_START:
				set_slot(run, step->a, 0);
				break;
			case STEP_LOOP:
				number = choose_round(run, step, number - 1, at);
				break;
			case STEP_ROUND:
				start_round(run, step, at);
				break;
			case STEP_ROUND_END:
				matched = end_round(run, step, at);
				number = step->b;
				break;
			case STEP_LOOK:
				set_slot(run, step->a, run->used);
				set_slot(run, step->a + 1, at);
				break;
			case STEP_LOOK_END:
				at = run->slots[step->a + 1];
				forget_choices(run, run->slots[step->a]);
				break;
			case STEP_LOOK_NOT:
				set_slot(run, step->a, run->used);
				push(run, step->b, at);
				break;
			case STEP_LOOK_NOT_END:
			{
				/* what must not match has: undo all of it, and fail */
				uint32_t height = run->slots[step->a];
				uint32_t ignored;

				spend(run, run->used - height);
				while (run->used > height)
					(void) pop(run, &ignored, &ignored);
				matched = false;
				break;
			}
		}

		while (!matched)
		{
			if (run->used == 0)
				return false;
			matched = pop(run, &number, &at);
		}
	}
	return false;
}

MatchResult
backtrack_search(const BacktrackProgram *program, const uint16_t *text,
				 size_t length, const ArenaSource *source, Work *work)
{
	MatchResult result = MATCH_NO;
	Run run;
	uint32_t start;
	uint32_t slot;

	if (length >= RESTORE)
		return MATCH_UNDEFINED;
	memset(&run, 0, sizeof(run));
	run.program = program;
	run.text = text;
	run.length = (uint32_t) length;
	run.source = source;
	run.work = work;
	run.steps_left = BACKTRACK_MAX_STEPS;
	run.slots =
		source->alloc(source->context, program->nslots * sizeof(uint32_t));
	if (run.slots == NULL)
		return MATCH_UNDEFINED;

	/* a failure has undone everything, so slots are unset again */
	spend(&run, program->nslots);
	for (slot = 0; slot < program->nslots; slot++)
		run.slots[slot] = UNSET;
	for (start = 0; start <= run.length && result == MATCH_NO; start++)
	{
		if (match_at(&run, start))
			result = MATCH_YES;
		if (run.exhausted)
			result = MATCH_UNDEFINED;
	}
	if (run.trail != NULL)
		source->free(source->context, run.trail);
	source->free(source->context, run.slots);
	return result;
}
