/*
 * context_functions.c
 *		The life of the session's context, in SQL: absmartly_context_create()
 *		to absmartly_context_finalize() (DESIGN 3.2, protocol 8 and 9).
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "context/context.h"
#include "context/events.h"
#include "data/context_slot.h"
#include "data/store.h"
#include "events/logger.h"
#include "settings.h"
#include "sql/evaluation.h"
#include "sql/function.h"
#include "sql/jsonb_value.h"
#include "sql/text.h"
#include "sql/wait.h"

/*
 * Options
 */

pg_noreturn static void
raise_option(const char *name, const char *detail)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("invalid value for option \"%s\"", name),
					errdetail("%s", detail)));
}

static int64
option_ms(const char *name, const JsonbValue *value, int64 least)
{
	int64 ms;

	if (value->type != jbvNumeric ||
		!jsonb_number_int64(value->val.numeric, &ms) || ms < least ||
		ms > INT_MAX / 2)
		raise_option(name, least < 0
							   ? "It must be an integer, milliseconds, or -1."
							   : "It must be an integer, milliseconds.");
	return ms;
}

static bool
option_boolean(const char *name, const JsonbValue *value)
{
	if (value->type != jbvBool)
		raise_option(name, "It must be true or false.");
	return value->val.boolean;
}

static bool
is_word(const JsonbValue *value, const char *word)
{
	return value->type == jbvString &&
		   value->val.string.len == (int) strlen(word) &&
		   memcmp(value->val.string.val, word, strlen(word)) == 0;
}

static void
set_option(ContextOptions *options, const char *name, const JsonbValue *value)
{
	/* as if it were not there */
	bool given = value->type != jbvNull;

	if (strcmp(name, "publish_delay") == 0)
	{
		options->own_delay = given;
		options->publish_delay = given ? option_ms(name, value, -1) : 0;
	}
	else if (strcmp(name, "refresh_interval") == 0)
		options->refresh_interval = given ? option_ms(name, value, 0) : 0;
	else if (strcmp(name, "historic") == 0)
	{
		if (given)
			options->historic = option_boolean(name, value);
	}
	else if (strcmp(name, "include_system_attributes") == 0)
	{
		if (given)
			options->system_attributes = option_boolean(name, value);
	}
	else if (strcmp(name, "scope") == 0)
	{
		if (!given)
			return;
		if (!is_word(value, "session") && !is_word(value, "transaction"))
			raise_option(name, "It must be \"session\" or \"transaction\".");
		options->transaction_scope = is_word(value, "transaction");
	}
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there is no option \"%s\" of a context", name),
				 errhint("Options are publish_delay, refresh_interval, "
						 "historic, include_system_attributes and scope.")));
}

static void
read_options(ContextOptions *options, const Jsonb *given)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue value;
	char *name = NULL;

	memset(options, 0, sizeof(*options));
	options->historic = settings_historic;
	options->system_attributes = settings_include_system_attributes;
	options->transaction_scope =
		settings_context_scope == CONTEXT_SCOPE_TRANSACTION;
	if (given == NULL)
		return;
	iterator = JsonbIteratorInit(unconstify(JsonbContainer *, &given->root));
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = pnstrdup(value.val.string.val, value.val.string.len);
		else if (token == WJB_VALUE)
			set_option(options, name, &value);
	}
}

/*
 * Creation and state
 */

/* An argument that is an object, or NULL; what is the word for it. */
static const Jsonb *
object_argument(FunctionCallInfo fcinfo, int argument, const char *what,
				const char *example)
{
	if (PG_ARGISNULL(argument))
		return NULL;
	evaluation_check_other(PG_GETARG_DATUM(argument), what, example);
	return PG_GETARG_JSONB_P(argument);
}

PG_FUNCTION_INFO_V1(absmartly_context_create);

/*
 * absmartly_context_create(units jsonb, attributes jsonb, data json,
 *							options jsonb) -> void
 *
 * Makes the session's context and closes the one before it.  NULL is nothing.
 * 22023 for units, attributes and options that cannot be, 54000 for too many,
 * 22032 for data that is malformed.  54000 also for data larger than
 * absmartly.max_context_data.
 */
SQL_FUNCTION(absmartly_context_create)
{
	const Jsonb *units =
		object_argument(fcinfo, 0, "units", "{\"user_id\": 42}");
	const Jsonb *attributes =
		object_argument(fcinfo, 1, "attributes", "{\"country\": \"PT\"}");
	EngineText data = {NULL, 0};
	ContextOptions options;

	context_require_unrestricted(fcinfo->flinfo->fn_oid);
	if (!PG_ARGISNULL(2))
		data = text_data_argument(PG_GETARG_DATUM(2),
								  (size_t) settings_max_context_data * 1024,
								  "The limit is "
								  "\"absmartly.max_context_data\".");
	read_options(&options, object_argument(fcinfo, 3, "options",
										   "{\"publish_delay\": -1}"));
	context_create(units, attributes, data, &options);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(absmartly_context_id);

/* absmartly_context_id() -> text */
SQL_FUNCTION(absmartly_context_id)
{
	char id[CONTEXT_ID_SIZE];

	context_slot_id(context_current()->key, id);
	PG_RETURN_DATUM(CStringGetTextDatum(id));
}

/* One that was finalized before it was ready never will be. */
static bool
is_ready(const Context *context)
{
	return context->snapshot != NULL || context->failed;
}

PG_FUNCTION_INFO_V1(absmartly_context_is_ready);

/* absmartly_context_is_ready() -> boolean; a failed one is ready, too */
SQL_FUNCTION(absmartly_context_is_ready)
{
	PG_RETURN_BOOL(is_ready(context_current()));
}

PG_FUNCTION_INFO_V1(absmartly_context_is_failed);

/* absmartly_context_is_failed() -> boolean */
SQL_FUNCTION(absmartly_context_is_failed)
{
	PG_RETURN_BOOL(context_current()->failed);
}

PG_FUNCTION_INFO_V1(absmartly_context_is_finalizing);

/* absmartly_context_is_finalizing() -> boolean */
SQL_FUNCTION(absmartly_context_is_finalizing)
{
	PG_RETURN_BOOL(context_current()->state == CONTEXT_FINALIZING);
}

PG_FUNCTION_INFO_V1(absmartly_context_is_finalized);

/* absmartly_context_is_finalized() -> boolean */
SQL_FUNCTION(absmartly_context_is_finalized)
{
	PG_RETURN_BOOL(context_current()->state == CONTEXT_FINALIZED);
}

PG_FUNCTION_INFO_V1(absmartly_context_ready_error);

/* absmartly_context_ready_error() -> text, NULL unless the context failed */
SQL_FUNCTION(absmartly_context_ready_error)
{
	const Context *context = context_current();

	if (context->ready_error == NULL)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(CStringGetTextDatum(context->ready_error));
}

PG_FUNCTION_INFO_V1(absmartly_context_wait_until_ready);

/*
 * absmartly_context_wait_until_ready(timeout interval) -> boolean
 *		Whether it is ready, or failed, before or when the time is over.
 */
SQL_FUNCTION(absmartly_context_wait_until_ready)
{
	TimestampTz until = wait_deadline(fcinfo, 0);

	/* an event logger would wait for nothing */
	while (context_current()->state == CONTEXT_NOT_READY &&
		   !logger_is_running())
	{
		wait_require_worker("absmartly_context_wait_until_ready()");
		if (!wait_for_change(wait_state(), until))
			break;
	}
	ConditionVariableCancelSleep();
	PG_RETURN_BOOL(is_ready(context_current()));
}

/*
 * Delivery
 */

PG_FUNCTION_INFO_V1(absmartly_context_pending);

/*
 * absmartly_context_pending() -> bigint
 *		Events that are recorded and not delivered.
 */
SQL_FUNCTION(absmartly_context_pending)
{
	PG_RETURN_INT64(context_pending(context_current()));
}

/* Raises why what is committed could not be delivered. */
static void
raise_unpublished(const WaitOutcome *outcome)
{
	if (outcome->finished)
		ereport(ERROR,
				(errcode(outcome->code),
				 errmsg("Publish failed: %s", outcome->error),
				 errdetail("Events are kept; those that the collector refuses "
						   "for good are in the view "
						   "\"absmartly_dead_letters\".")));
	ereport(
		ERROR,
		(errcode(ERRCODE_CONNECTION_FAILURE),
		 errmsg("Publish failed: time-out"),
		 !outcome->has_worker
			 ? errdetail("No worker of absmartly runs for this database.  "
						 "No event is lost.")
		 : outcome->error[0] != '\0'
			 ? errdetail("Last error: %s.  No event is lost.", outcome->error)
			 : errdetail("No event is lost."),
		 errhint("The view \"absmartly_stat\" shows what the worker "
				 "does.")));
}

/*
 * Delivers what is committed, and waits for it.  What this transaction has
 * recorded is sent when it commits.
 */
static void
deliver(Context *context, TimestampTz until, const char *function)
{
	ContextSlot *slot = context_slot_mine();
	WaitOutcome outcome;

	if (context->failed)
	{
		context->committed = 0;
		context_discard_uncommitted(context);
		return;
	}
	if (context->uncommitted > 0)
		context->hand_over = true;
	if (context_pending_committed(context) == 0)
		return;
	wait_require_worker(function);
	context_leave_header(context);
	pg_atomic_write_u64(&slot->released, context->last_sequence);

	PG_TRY();
	{
		wait_for_publishing(until, slot, &outcome);
		if (!outcome.finished || outcome.failed)
			raise_unpublished(&outcome);
	}
	PG_CATCH();
	{
		/* what is held is held again */
		pg_atomic_write_u64(&slot->released, 0);
		context_slots_changed(shared_my_database());
		PG_RE_THROW();
	}
	PG_END_TRY();
}

PG_FUNCTION_INFO_V1(absmartly_context_publish);

/*
 * absmartly_context_publish(timeout interval) -> void
 *		Waits until what is committed is delivered.  08006 if it fails, 55000
 *		if nothing may be sent, or the context is not ready or finalized.
 */
SQL_FUNCTION(absmartly_context_publish)
{
	TimestampTz until = wait_deadline(fcinfo, 0);
	Context *context = context_current();

	context_require_ready(context);
	deliver(context, until, "absmartly_context_publish()");
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(absmartly_context_finalize);

/*
 * absmartly_context_finalize(timeout interval) -> void
 *		Publishes and seals.  If publishing fails, the context is open again.
 */
SQL_FUNCTION(absmartly_context_finalize)
{
	TimestampTz until = wait_deadline(fcinfo, 0);
	Context *context = context_current();
	ContextState state = context->state;
	ContextSlot *slot = context_slot_mine();

	context_require_unrestricted(fcinfo->flinfo->fn_oid);
	if (state == CONTEXT_FINALIZING || state == CONTEXT_FINALIZED)
		PG_RETURN_VOID();
	context->state = CONTEXT_FINALIZING;
	PG_TRY();
	{
		deliver(context, until, "absmartly_context_finalize()");
	}
	PG_CATCH();
	{
		context->state = state;
		PG_RE_THROW();
	}
	PG_END_TRY();
	context->state = CONTEXT_FINALIZED;
	if (slot != NULL)
		pg_atomic_write_u64(&slot->due, 0);
	context_log_plain(context, "finalize");
	PG_RETURN_VOID();
}

/*
 * Data
 */

PG_FUNCTION_INFO_V1(absmartly_context_refresh);

/*
 * absmartly_context_refresh(timeout interval) -> void
 *		Takes over what a fetch brings that starts now or later.  08006 if it
 *		fails, 55000 if the context is not ready or finalized.
 */
SQL_FUNCTION(absmartly_context_refresh)
{
	TimestampTz until = wait_deadline(fcinfo, 0);
	Context *context = context_current();
	ContextSlot *slot = context_slot_mine();
	uint64 data_round;
	DataHold data;

	context_require_unrestricted(fcinfo->flinfo->fn_oid);
	context_require_ready(context);
	if (context->failed)
		PG_RETURN_VOID();
	wait_require_worker("absmartly_context_refresh()");
	PG_TRY();
	{
		(void) wait_for_fetch(until, slot);
	}
	PG_FINALLY();
	{
		slot->refresh_ticket = 0;
	}
	PG_END_TRY();
	if (!version_hold(&data, &data_round))
		ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
						errmsg("could not fetch the experiments: they are for "
							   "settings that have changed since"),
						errhint("Try again.")));
	context_set_data(context, &data);
	context_log_data(context, "refresh");
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(absmartly_context_data);

/*
 * absmartly_context_data() -> json
 *		What the context was made with; NULL before it is ready, {} if it has
 *		failed.
 */
SQL_FUNCTION(absmartly_context_data)
{
	const Context *context = context_current();
	EngineText raw;
	const char *text;

	if (context->failed)
		PG_RETURN_DATUM(CStringGetTextDatum("{}"));
	if (context->snapshot == NULL)
		PG_RETURN_NULL();
	raw = snapshot_text(context->snapshot, context->snapshot->raw);
	text = store_database_text(raw.data, raw.length);
	if (text == NULL)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(CStringGetTextDatum(text));
}

PG_FUNCTION_INFO_V1(absmartly_context_experiments);

/*
 * absmartly_context_experiments() -> jsonb
 *		The names of the experiments, an array in the data's order.
 */
SQL_FUNCTION(absmartly_context_experiments)
{
	const SnapImage *snapshot = context_current()->snapshot;
	JsonbParseState *state = NULL;
	JsonbValue *root;

	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (uint32 i = 0; snapshot != NULL && i < snapshot->nexperiments; i++)
	{
		const SnapExperiment *experiment = snapshot_experiment(snapshot, i);
		const text *name = (const text *) DatumGetPointer(
			evaluation_stored(snapshot, experiment->name_text));
		JsonbValue value = {.type = jbvString};

		CHECK_FOR_INTERRUPTS();
		value.val.string.val = VARDATA_ANY(name);
		value.val.string.len = (int) VARSIZE_ANY_EXHDR(name);
		pushJsonbValue(&state, WJB_ELEM, &value);
	}
	root = pushJsonbValue(&state, WJB_END_ARRAY, NULL);
	PG_RETURN_JSONB_P(JsonbValueToJsonb(root));
}
