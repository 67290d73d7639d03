/*
 * context.c
 *		The session's context: its life, its units and attributes.
 *
 * All that a context keeps is in one memory context, a new one until it is
 * complete: so an error on the way leaves the context before it as it was.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "context/assignments.h"
#include "context/context.h"
#include "context/events.h"
#include "data/context_slot.h"
#include "data/shared.h"
#include "engine/number.h"
#include "events/buffer.h"
#include "events/logger.h"
#include "sql/evaluation.h"
#include "sql/jsonb_value.h"
#include "sql/recording.h"
#include "sql/text.h"
#include "sql/units.h"

Context *context_mine = NULL;

static ProcessUtility_hook_type prev_process_utility = NULL;

EngineText
context_copy_text(const Context *context, EngineText text)
{
	char *copy = MemoryContextAlloc(context->memory, text.length + 1);

	memcpy(copy, text.data, text.length);
	copy[text.length] = '\0';
	return (EngineText){copy, text.length};
}

static const Jsonb *
copy_jsonb(const Context *context, const Jsonb *jsonb)
{
	Size size = VARSIZE(jsonb);
	Jsonb *copy = MemoryContextAlloc(context->memory, size);

	memcpy(copy, jsonb, size);
	return copy;
}

static bool
same_text(EngineText left, EngineText right)
{
	return left.length == right.length &&
		   memcmp(left.data, right.data, left.length) == 0;
}

void *
context_grow(const Context *context, void *list, int count, int *most,
			 Size size)
{
	if (count < *most)
		return list;
	list = list == NULL
			   ? MemoryContextAlloc(context->memory, Max(*most * 2, 4) * size)
			   : repalloc(list, Max(*most * 2, 4) * size);
	*most = Max(*most * 2, 4);
	return list;
}

/*
 * Units
 */

const ContextUnit *
context_find_unit(const Context *context, EngineText type)
{
	if (type.data == NULL)
		return NULL;
	for (int i = 0; i < context->nunits; i++)
		if (same_text(context->units[i].type, type))
			return &context->units[i];
	return NULL;
}

pg_noreturn static void
raise_unit(EngineText type, const char *what)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("Unit '%s' %s", text_for_message(type), what)));
}

/* A unit's value as it is kept: a string is trimmed. */
static const Jsonb *
unit_jsonb(EngineText type, const JsonbValue *value)
{
	JsonbValue kept = *value;

	if (value->type == jbvString)
	{
		EngineText text = text_trimmed(text_to_utf8(
			value->val.string.val, (size_t) value->val.string.len));

		if (text.length == 0)
			raise_unit(type, "UID must not be blank.");
		text = text_from_utf8(text.data, text.length);
		kept.val.string.val = unconstify(char *, text.data);
		kept.val.string.len = (int) text.length;
	}
	else if (value->type != jbvNumeric)
		raise_unit(type, "must be a string or a number.");
	return JsonbValueToJsonb(&kept);
}

/* The hash of a unit, by which it is known. */
static void
hash_unit(ContextUnit *unit, const JsonbValue *value)
{
	UnitValue unit_value;

	if (value->type == jbvString)
		units_from_text(value->val.string.val, (size_t) value->val.string.len,
						&unit_value);
	else
		units_from_number(value->val.numeric, &unit_value);
	unit_value_hash(&unit_value, &unit->hash, unit->digest);
}

/* Sets a unit of a context that nobody uses yet, or that is in use. */
static bool
set_unit(Context *context, EngineText type, const JsonbValue *value)
{
	const ContextUnit *known;
	const Jsonb *jsonb;
	ContextUnit unit;

	evaluation_check_name(type, "name of a unit type");
	jsonb = unit_jsonb(type, value);
	known = context_find_unit(context, type);
	if (known != NULL)
	{
		if (compareJsonbContainers(
				unconstify(JsonbContainer *, &known->value->root),
				unconstify(JsonbContainer *, &jsonb->root)) != 0)
			raise_unit(type, "UID already set.");
		return false;
	}
	if (context->nunits == ENCODING_MAX_UNITS)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("too many units"),
						errdetail("A context may have up to %d units.",
								  ENCODING_MAX_UNITS)));
	context_prepare_header(context, type.length + ENCODING_UNIT_BYTES);
	hash_unit(&unit, value);
	unit.type = context_copy_text(context, type);
	unit.value = copy_jsonb(context, jsonb);
	context->units = context_grow(context, context->units, context->nunits,
								  &context->max_units, sizeof(ContextUnit));
	context->units[context->nunits++] = unit;
	return true;
}

void
context_set_unit(Context *context, EngineText type, const JsonbValue *value)
{
	if (set_unit(context, type, value))
		context->header_version++;
}

/* The words of JavaScript for what is no unit at the creation. */
static const char *
type_word(const JsonbValue *value)
{
	return value->type == jbvBool ? "boolean" : "object";
}

void
context_visit_members(Context *context, const Jsonb *object,
					  void (*visit)(Context *context, EngineText name,
									const JsonbValue *value))
{
	JsonbIterator *iterator =
		JsonbIteratorInit(unconstify(JsonbContainer *, &object->root));
	EngineText name = {NULL, 0};
	JsonbIteratorToken token;
	JsonbValue value;

	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = text_to_utf8(value.val.string.val,
								(size_t) value.val.string.len);
		else if (token == WJB_VALUE)
			visit(context, name, &value);
	}
}

/* A unit that is given at the creation (protocol 8, "Units"). */
static void
create_unit(Context *context, EngineText type, const JsonbValue *value)
{
	if (value->type != jbvString && value->type != jbvNumeric)
		raise_unit(type,
				   psprintf("UID is of unsupported type '%s'. UID must be one "
							"of ['string', 'number']",
							type_word(value)));
	if (value->type == jbvString && value->val.string.len == 0)
		raise_unit(type, "UID length must be >= 1");
	(void) set_unit(context, type, value);
}

/*
 * Attributes
 */

const ContextAttribute *
context_find_attribute(const Context *context, EngineText name)
{
	for (int i = context->nattributes - 1; i >= 0; i--)
		if (context->attributes[i].value != NULL &&
			same_text(context->attributes[i].name, name))
			return &context->attributes[i];
	return NULL;
}

static void
free_attribute(ContextAttribute *attribute)
{
	pfree(unconstify(char *, attribute->name.data));
	pfree(unconstify(char *, attribute->json.data));
	if (attribute->value != NULL)
		pfree(unconstify(Jsonb *, attribute->value));
}

/* Makes room for one more: the oldest that was set anew later goes. */
static void
drop_superseded(Context *context)
{
	for (int i = 0; i < context->nattributes; i++)
	{
		if (context->attributes[i].value != NULL)
			continue;
		context->header_version++;
		free_attribute(&context->attributes[i]);
		context->nattributes--;
		memmove(&context->attributes[i], &context->attributes[i + 1],
				(context->nattributes - i) * sizeof(ContextAttribute));
		return;
	}
}

static void
set_attribute(Context *context, EngineText name, const Jsonb *value)
{
	const ContextAttribute *known;
	ContextAttribute attribute;
	EngineText json;

	evaluation_check_name(name, "name of an attribute");
	json = recording_json(JsonbPGetDatum(value), "attributes");
	context_prepare_header(context, name.length + json.length);
	known = context_find_attribute(context, name);
	if (context->nattributes == CONTEXT_MAX_ATTRIBUTES && known == NULL)
	{
		drop_superseded(context);
		if (context->nattributes == CONTEXT_MAX_ATTRIBUTES)
			ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
							errmsg("too many attributes"),
							errdetail("A context may have up to %d attributes.",
									  CONTEXT_MAX_ATTRIBUTES)));
	}
	context->attributes =
		context_grow(context, context->attributes, context->nattributes,
					 &context->max_attributes, sizeof(ContextAttribute));
	attribute.name = context_copy_text(context, name);
	attribute.json = context_copy_text(context, json);
	attribute.value = copy_jsonb(context, value);
	attribute.set_at = buffer_time_ms(GetCurrentTimestamp());

	/* nothing fails from here on */
	known = context_find_attribute(context, name);
	if (known != NULL)
	{
		ContextAttribute *superseded = unconstify(ContextAttribute *, known);

		pfree(unconstify(Jsonb *, superseded->value));
		superseded->value = NULL;
		if (context->nattributes == CONTEXT_MAX_ATTRIBUTES)
			drop_superseded(context);
	}
	context->attributes[context->nattributes++] = attribute;
	context->attributes_set++;
	if (context->attributes_object != NULL)
		pfree(unconstify(Jsonb *, context->attributes_object));
	context->attributes_object = NULL;
	context->changes++;
}

void
context_set_attribute(Context *context, EngineText name, const Jsonb *value)
{
	set_attribute(context, name, value);
	context->header_version++;
}

static void
create_attribute(Context *context, EngineText name, const JsonbValue *value)
{
	set_attribute(context, name,
				  JsonbValueToJsonb(unconstify(JsonbValue *, value)));
}

const Jsonb *
context_attributes_object(Context *context)
{
	JsonbParseState *state = NULL;
	MemoryContext work;
	MemoryContext previous;
	JsonbValue *object;

	if (context->attributes_object != NULL)
		return context->attributes_object;
	work = AllocSetContextCreate(CurrentMemoryContext, "absmartly attributes",
								 ALLOCSET_DEFAULT_SIZES);
	previous = MemoryContextSwitchTo(work);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < context->nattributes; i++)
	{
		const ContextAttribute *attribute = &context->attributes[i];
		EngineText name;
		JsonbValue value;

		if (attribute->value == NULL)
			continue;
		name = text_from_utf8(attribute->name.data, attribute->name.length);
		value.type = jbvString;
		value.val.string.val = unconstify(char *, name.data);
		value.val.string.len = (int) name.length;
		pushJsonbValue(&state, WJB_KEY, &value);
		jsonb_push_value(&state, WJB_VALUE, attribute->value);
	}
	object = pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	context->attributes_object = copy_jsonb(context, JsonbValueToJsonb(object));
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(work);
	return context->attributes_object;
}

/*
 * Data
 */

void
context_set_data(Context *context, DataHold *data)
{
	assignments_detach(context);
	version_hold_keep(data);
	version_hold_release(&context->data);
	context->data = *data;
	context->snapshot = data_version_snapshot(context->data.version);
	context->data_number++;
	context->changes++;
}

/* What has been replaced does not stay in shared memory for our sake. */
static void
keep_copy(Context *context)
{
	assignments_detach(context);
	version_hold_copy(&context->data);
	context->snapshot = data_version_snapshot(context->data.version);
	context->data_number++;
}

static void
become_ready(Context *context)
{
	ContextSlot *slot = context_slot_mine();

	context->state = CONTEXT_READY;
	context->changes++;
	/* what was recorded before had to wait */
	if (slot != NULL && context->options.publish_delay >= 0)
	{
		pg_atomic_write_u64(&slot->due, 0);
		context_slots_changed(shared_my_database());
	}
	context_log_data(context, "ready");
}

static void
become_failed(Context *context, const char *error)
{
	ContextSlot *slot = context_slot_mine();

	context->ready_error = MemoryContextStrdup(context->memory, error);
	/* what it has recorded is dropped, but counts until it is published */
	context->committed = context_pending_committed(context);
	context->failed = true;
	context->state = CONTEXT_READY;
	context->changes++;
	if (slot != NULL)
	{
		pg_atomic_write_u32(&slot->discards, 1);
		pg_atomic_write_u64(&slot->due, 0);
		context_slots_changed(shared_my_database());
	}
	context_log_error(context, error);
}

/*
 * Whether the round of fetching has ended that this context waits for; error
 * is why it failed, if it did.  A round is asked for if none is running.
 */
static bool
round_has_ended(Context *context, char error[SHARED_MAX_ERROR])
{
	DatabaseState *state = shared_my_database();
	bool ended;
	bool ask = false;

	if (state == NULL || state->worker_pid == 0)
		shared_request_probe(MyDatabaseId);
	if (state == NULL)
		return false;
	LWLockAcquire(&state->lock, LW_EXCLUSIVE);
	if (context->round == 0)
	{
		context->round = state->fetch_rounds + 1;
		if (!state->fetch_running)
		{
			state->refresh_requested++;
			ask = true;
		}
	}
	ended = state->fetch_rounds >= context->round;
	if (ended)
		strlcpy(error, state->refresh_error, SHARED_MAX_ERROR);
	LWLockRelease(&state->lock);
	if (ask)
		shared_wake_worker(state);
	return ended;
}

/*
 * The data that a context waits for has come, or will not come: decides which.
 * What has come with a later round than the context's own does not count: that
 * one has failed.  Where it went well and there is no data nevertheless, this
 * is for other settings by now, and a round for these decides.
 */
static void
look_for_data(Context *context)
{
	char error[SHARED_MAX_ERROR] = "";
	uint64 data_round;
	DataHold data;
	bool ended;
	bool failed = false;

	/* what is there already is nobody's to wait for */
	if (context->round == 0 && version_hold(&data, &data_round))
	{
		context_set_data(context, &data);
		become_ready(context);
		return;
	}
	ended = shared_available() && round_has_ended(context, error);
	if (version_hold(&data, &data_round))
	{
		if (context->round == 0 || data_round <= context->round)
		{
			context_set_data(context, &data);
			become_ready(context);
			return;
		}
		version_hold_release(&data);
		failed = true;
	}
	else if (ended && error[0] != '\0')
		failed = true;
	else if (ended)
		context->round = 0;
	if (failed)
		become_failed(context, error[0] != '\0'
								   ? error
								   : "the experiments could not be fetched");
}

/* With a refresh interval, newer data is taken over when it is time. */
static void
refresh_if_due(Context *context)
{
	TimestampTz now = GetCurrentTimestamp();
	uint64 data_round;
	DataHold data;

	if (now < context->next_refresh)
		return;
	context->next_refresh =
		TimestampTzPlusMilliseconds(now, context->options.refresh_interval);
	if (!version_hold(&data, &data_round))
		return;
	if (data.version->serial == context->data.version->serial)
	{
		version_hold_release(&data);
		return;
	}
	context_set_data(context, &data);
	context_log_data(context, "refresh");
}

/*
 * Life
 */

/* The session ends, perhaps by an error under a lock that this needs. */
static void
leave_at_exit(int code, Datum argument)
{
	LWLockReleaseAll();
	context_slot_leave();
}

void
context_drop(void)
{
	Context *context = context_mine;

	if (context == NULL)
		return;
	context_mine = NULL;
	context_events_reset();
	context_slot_leave();
	version_hold_release(&context->data);
	MemoryContextDelete(context->memory);
}

/*
 * The memory of a context comes from where an error frees it, until the
 * context is complete.
 */
static Context *
new_context(const ContextOptions *options)
{
	MemoryContext memory = AllocSetContextCreate(
		CurrentMemoryContext, "absmartly context", ALLOCSET_SMALL_SIZES);
	Context *context = MemoryContextAllocZero(memory, sizeof(Context));

	context->memory = memory;
	context->options = *options;
	context->state = CONTEXT_NOT_READY;
	context->changes = 1;
	context->data_number = 1;
	context->header_version = 1;
	context->key = context_slot_new_key();
	assignments_init(context);
	return context;
}

/* A context in a parallel worker would be gone with it, without a word. */
static void
require_own_process(void)
{
	if (IsParallelWorker())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("cannot use the session's context in a parallel "
						"worker"),
				 errhint("A function that calls absmartly_context_...() must "
						 "not be PARALLEL SAFE.")));
}

void
context_create(const Jsonb *units, const Jsonb *attributes, EngineText data,
			   const ContextOptions *options)
{
	static bool exit_registered = false;
	Context *context;
	DataHold hold = {0};

	require_own_process();
	context = new_context(options);
	if (units != NULL)
		context_visit_members(context, units, create_unit);
	if (attributes != NULL)
		context_visit_members(context, attributes, create_attribute);
	if (!exit_registered)
	{
		before_shmem_exit(leave_at_exit, (Datum) 0);
		exit_registered = true;
	}
	if (data.data != NULL)
		version_hold_text(&hold, data.data, data.length);

	context_drop();
	MemoryContextSetParent(context->memory, TopMemoryContext);
	context_mine = context;
	/* nothing is sent before it is ready: a context that fails sends nothing */
	context_slot_enter(context->key,
					   options->publish_delay < 0 || hold.version == NULL);
	if (options->refresh_interval > 0)
		context->next_refresh = TimestampTzPlusMilliseconds(
			GetCurrentTimestamp(), options->refresh_interval);
	if (hold.version != NULL)
	{
		context_set_data(context, &hold);
		become_ready(context);
	}
	else
		look_for_data(context);
}

pg_noreturn static void
raise_no_context(void)
{
	require_own_process();
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("this session has no ABsmartly context"),
			 errhint("Create one with absmartly_context_create(). With scope "
					 "transaction it lasts until the end of the "
					 "transaction.")));
}

Context *
context_current(void)
{
	Context *context = context_mine;

	if (unlikely(context == NULL))
		raise_no_context();
	/* whoever has called the logger reads the data */
	if (unlikely(logger_is_running()))
		return context;
	if (context->state == CONTEXT_NOT_READY)
		look_for_data(context);
	else if (unlikely(version_hold_is_stale(&context->data)))
		keep_copy(context);
	else if (likely(context->options.refresh_interval == 0))
		return context;

	/* the event logger may have run */
	context = context_mine;
	if (context != NULL && context->options.refresh_interval > 0 &&
		context->state == CONTEXT_READY && !context->failed)
		refresh_if_due(context);
	if (unlikely(context_mine == NULL))
		raise_no_context();
	return context_mine;
}

void
context_require_unrestricted(Oid function)
{
	if (InSecurityRestrictedOperation())
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("cannot execute %s() within security-restricted "
							   "operation",
							   get_func_name(function))));
}

pg_noreturn static void
raise_state(const char *message, const char *hint)
{
	ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					errmsg_internal("%s", message), errhint("%s", hint)));
}

void
context_require_open(const Context *context)
{
	if (context->state == CONTEXT_FINALIZING)
		raise_state("ABSmartly Context is finalizing.",
					"Create another one with absmartly_context_create().");
	if (context->state == CONTEXT_FINALIZED)
		raise_state("ABSmartly Context is finalized.",
					"Create another one with absmartly_context_create().");
}

void
context_require_ready(const Context *context)
{
	context_require_open(context);
	if (context->state == CONTEXT_NOT_READY)
		raise_state("ABSmartly Context is not yet ready.",
					"absmartly_context_wait_until_ready() waits for it.");
}

/* DISCARD ALL is for who takes over a connection. */
static void
context_process_utility(PlannedStmt *statement, const char *source,
						bool read_only_tree, ProcessUtilityContext context,
						ParamListInfo parameters, QueryEnvironment *environment,
						DestReceiver *receiver, QueryCompletion *completion)
{
	Node *node = statement->utilityStmt;
	bool discards =
		IsA(node, DiscardStmt) && ((DiscardStmt *) node)->target == DISCARD_ALL;

	if (prev_process_utility)
		prev_process_utility(statement, source, read_only_tree, context,
							 parameters, environment, receiver, completion);
	else
		standard_ProcessUtility(statement, source, read_only_tree, context,
								parameters, environment, receiver, completion);
	if (discards)
		context_drop();
}

void
context_install(void)
{
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = context_process_utility;
	version_query_done = logger_flush;
}
