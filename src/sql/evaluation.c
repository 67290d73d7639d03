/*
 * evaluation.c
 *		What all functions that assign have in common.
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "data/store.h"
#include "engine/number.h"
#include "interrupt.h"
#include "settings.h"
#include "sql/evaluation.h"
#include "sql/jsonb_value.h"
#include "sql/text.h"

const DataVersion *
evaluation_data_missing(void)
{
	if (settings_on_not_ready == ON_NOT_READY_CONTROL)
		return NULL;
	ereport(
		ERROR,
		(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		 errmsg("no experiment data has been loaded for database \"%s\" yet",
				get_database_name(MyDatabaseId)),
		 errhint("absmartly_wait_until_ready() waits for it, and the view "
				 "absmartly_stat tells what stands in its way. With "
				 "absmartly.on_not_ready set to control, everybody gets "
				 "variant 0 until then.")));
}

/*
 * Names
 */

void
evaluation_check_name(EngineText name, const char *what)
{
	if (name.length > ENGINE_MAX_NAME)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is too long", what),
				 errdetail("It may have up to %d bytes, this one has %zu.",
						   ENGINE_MAX_NAME, name.length)));
}

void
evaluation_check_variant(int64 variant)
{
	if (unlikely(variant < 0 || variant > ENGINE_MAX_VARIANT))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("variant must be between 0 and %d", ENGINE_MAX_VARIANT),
				 errdetail("It is %lld.", (long long) variant)));
}

EngineText
evaluation_name(const text *name, const char *what)
{
	EngineText utf8 = text_datum_to_utf8(name);

	evaluation_check_name(utf8, what);
	return utf8;
}

static void
name_cache_set(NameCache *cache, const DataVersion *version, const text *name,
			   const void *found)
{
	size_t length = VARSIZE_ANY_EXHDR(name);

	if (length > sizeof(cache->name))
		return;
	cache->serial = version->serial;
	cache->found = found;
	cache->length = length;
	memcpy(cache->name, VARDATA_ANY(name), length);
}

const SnapExperiment *
evaluation_find_experiment(NameCache *cache, const DataVersion *version,
						   const text *name)
{
	EngineText utf8 = evaluation_name(name, "name of an experiment");
	const SnapExperiment *found = snapshot_find_experiment(
		data_version_snapshot(version), utf8.data, utf8.length);

	name_cache_set(cache, version, name, found);
	return found;
}

const SnapVariable *
evaluation_find_variable(NameCache *cache, const DataVersion *version,
						 const text *key)
{
	EngineText utf8 = evaluation_name(key, "key of a variable");
	const SnapVariable *found = snapshot_find_variable(
		data_version_snapshot(version), utf8.data, utf8.length);

	name_cache_set(cache, version, key, found);
	return found;
}

/*
 * The backend's compiled patterns; made when an expression is evaluated for
 * the first time.  NULL, which lets match give null, if there is no memory.
 */
static MatchCache *
match_cache(void)
{
	static MatchCache *cache = NULL;
	static ArenaSource source;

	if (unlikely(cache == NULL))
	{
		if (source.context == NULL)
			store_arena_source(&source,
							   AllocSetContextCreate(TopMemoryContext,
													 "absmartly patterns",
													 ALLOCSET_DEFAULT_SIZES));
		cache = match_cache_create(&source);
	}
	return cache;
}

/*
 * Attributes
 */

static bool
stack_is_ok(void)
{
	return !stack_is_too_deep();
}

void
evaluation_work_begin(Work *work)
{
	work_begin(work, interrupt_is_due, NULL);
	work->stack_ok = stack_is_ok;
}

/* The application's version: a number where it is one, and above 0. */
static bool
version_value(EngineText version, Value *value, Work *work)
{
	size_t at;

	for (at = 0; at < version.length; at++)
	{
		if (version.data[at] < '0' || version.data[at] > '9')
			break;
	}
	if (version.length > 0 && at == version.length)
	{
		value->kind = VALUE_NUMBER;
		return number_parse_prefix(version.data, version.length,
								   &value->u.number, work) &&
			   value->u.number > 0;
	}
	value->kind = VALUE_STRING;
	value->u.string = version;
	return version.length > 0;
}

static void
add_system_attribute(Evaluation *evaluation, const char *name,
					 const Value *value)
{
	SystemAttribute *attribute =
		&evaluation->system[evaluation->context.nsystem++];

	attribute->name.data = name;
	attribute->name.length = strlen(name);
	attribute->value = *value;
}

/* Protocol 8, "Attributes". */
static void
add_system_attributes(Evaluation *evaluation, const DataTarget *target)
{
	EngineText version = {target->application_version,
						  strlen(target->application_version)};
	Value value = {.kind = VALUE_STRING};

	value.u.string.data = target->application;
	value.u.string.length = strlen(target->application);
	add_system_attribute(evaluation, "application", &value);
	value.u.string.data = target->environment;
	value.u.string.length = strlen(target->environment);
	add_system_attribute(evaluation, "environment", &value);
	if (version_value(version, &value, &evaluation->context.work))
		add_system_attribute(evaluation, "app_version", &value);
}

void
evaluation_check_other(Datum object, const char *what, const char *example)
{
	if (unlikely(!jsonb_datum_is_object(object)))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("%s must be a JSON object", what),
						errhint("Name each value, as in '%s'.", example)));
}

void
evaluation_check_object(Datum attributes, const char *what)
{
	evaluation_check_other(attributes, what, "{\"country\": \"PT\"}");
}

void
evaluation_begin(Evaluation *evaluation, const DataVersion *version,
				 bool system, bool has_attributes, Datum attributes)
{
	EvalContext *context = &evaluation->context;

	evaluation_work_begin(&context->work);
	context->variables.kind = VALUE_NULL;
	if (has_attributes)
		jsonb_to_value(
			jsonb_to_utf8(jsonb_argument(attributes, &evaluation->buffer)),
			&context->variables);
	context->system = evaluation->system;
	context->nsystem = 0;
	if (system && version != NULL)
		add_system_attributes(evaluation, &version->target);
	context->matches = match_cache();
}

void
evaluation_raise(EngineStatus status)
{
	if (status == ENGINE_STACK || status == ENGINE_TOO_DEEP)
		ereport(ERROR,
				(errcode(ERRCODE_STATEMENT_TOO_COMPLEX),
				 status == ENGINE_STACK
					 ? errmsg("stack depth limit exceeded")
					 : errmsg("JSON text is nested too deep"),
				 status == ENGINE_STACK
					 ? errdetail("An expression or its values are nested too "
								 "deep.")
					 : errdetail("It may have up to %d levels.",
								 ENGINE_MAX_DEPTH)));
	if (status == ENGINE_TOO_LARGE)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("JSON text is too large"),
						errdetail("It is longer, or has more values, than can "
								  "be worked on.")));
	/* work that was interrupted may end as if there were no memory */
	if (status == ENGINE_NO_MEMORY || status == ENGINE_INTERRUPTED)
		CHECK_FOR_INTERRUPTS();
	if (status == ENGINE_INTERRUPTED)
		ereport(ERROR, (errcode(ERRCODE_QUERY_CANCELED),
						errmsg("canceling statement due to user request")));
	if (status == ENGINE_NO_MEMORY)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	elog(ERROR, "unexpected status %d of the engine", (int) status);
}
