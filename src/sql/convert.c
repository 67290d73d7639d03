/*
 * convert.c
 *		JSON values as values of SQL types.
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "data/version.h"
#include "sql/convert.h"
#include "sql/jsonb_value.h"
#include "subtransaction.h"

static TargetKind
target_kind(Oid base_type)
{
	switch (base_type)
	{
		case JSONBOID:
			return TARGET_JSONB;
		case JSONOID:
			return TARGET_JSON;
		case BOOLOID:
			return TARGET_BOOLEAN;
		case INT2OID:
			return TARGET_INT2;
		case INT4OID:
			return TARGET_INT4;
		case INT8OID:
			return TARGET_INT8;
		case FLOAT4OID:
			return TARGET_FLOAT4;
		case FLOAT8OID:
			return TARGET_FLOAT8;
		case NUMERICOID:
			return TARGET_NUMERIC;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
			return TARGET_TEXT;
		default:
			return TARGET_OTHER;
	}
}

void
target_init(Target *target, Oid type, MemoryContext context)
{
	Oid base_type = getBaseType(type);
	Oid input;

	target->kind = target_kind(base_type);
	target->by_input = target->kind == TARGET_OTHER || base_type != type;
	if (target->by_input)
	{
		getTypeInputInfo(type, &input, &target->io_parameter);
		fmgr_info_cxt(input, &target->input, context);
	}
	target->type = type;
}

/*
 * The input function, with an error for what does not fit turned into false.
 * No server spares us catching errors: the functions of extensions and the
 * checks of domains can raise them in all.
 */

/*
 * Whether an error says that a text is no value of a type: it is malformed,
 * breaks a constraint, names something that does not exist, or is too large; or
 * the type takes no text at all, like anonymous rows.
 */
static bool
error_is_about_value(int code)
{
	switch (ERRCODE_TO_CATEGORY(code))
	{
		case ERRCODE_DATA_EXCEPTION:
		case ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION:
		case ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION:
		case ERRCODE_FEATURE_NOT_SUPPORTED:
			return true;
		default:
			return code == ERRCODE_PROGRAM_LIMIT_EXCEEDED;
	}
}

/*
 * Whether the type's input function is one of the server's that look at
 * nothing but their argument: no element types, no catalogs beyond a cache.
 */
static bool
has_plain_input(const Target *target)
{
	HeapTuple tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(target->type));
	Form_pg_type form;
	bool result;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for type %u", target->type);
	form = (Form_pg_type) GETSTRUCT(tuple);
	/* the numeric category is that of the regclass kind, too */
	result = target->input.fn_oid < FirstGenbkiObjectId &&
			 (form->typtype == TYPTYPE_BASE || form->typtype == TYPTYPE_ENUM) &&
			 !OidIsValid(form->typelem) &&
			 form->typcategory != TYPCATEGORY_NUMERIC;
	ReleaseSysCache(tuple);
	return result;
}

/* For functions that have nothing to clean up when they fail. */
static bool
call_plain_input(Target *target, char *text, Datum *result)
{
	MemoryContext caller = CurrentMemoryContext;
	uint32 calls = version_calls;
	volatile bool fits = true;

	PG_TRY();
	{
		fits = compat_input(&target->input, text, target->io_parameter, result);
	}
	PG_CATCH();
	{
		if (!error_is_about_value(geterrcode()))
			PG_RE_THROW();
		MemoryContextSwitchTo(caller);
		FlushErrorState();
		version_calls = calls;
		fits = false;
	}
	PG_END_TRY();
	return fits;
}

/* For all others: what they leave behind is rolled back. */
static bool
call_input_in_subtransaction(Target *target, char *text, Datum *result)
{
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool fits = true;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(caller);
	PG_TRY();
	{
		fits = compat_input(&target->input, text, target->io_parameter, result);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(caller);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		ErrorData *error = subtransaction_undo(caller, owner);

		if (!error_is_about_value(error->sqlerrcode))
			ReThrowError(error);
		FreeErrorData(error);
		fits = false;
	}
	PG_END_TRY();
	return fits;
}

/*
 * Where there are no subtransactions
 *
 * Before version 17 parallel mode has none.  There an error is caught if it was
 * raised by the input function itself or by a check that was not met: these
 * leave nothing but what a resource owner knows (a row type's descriptor for
 * example), and they get one of their own.  What an error leaves behind that
 * was raised inside of a function in SQL or in a procedural language (states of
 * the executor, of SPI, of the language) only a subtransaction could take back:
 * that error goes on to the user.
 */
typedef struct InputGuard
{
	ErrorContextCallback callback;
	bool nested; /* the last message was from inside of a function */
	Snapshot snapshot; /* the active one */
	int spi_result; /* of the caller */
} InputGuard;

/* A value that SPI never gives: SPI_connect() overwrites it. */
#define GUARD_MARK 0x5EA1

/* Functions in SQL and in languages have put a callback of theirs before. */
static void
guard_callback(void *argument)
{
	InputGuard *guard = argument;

	guard->nested = error_context_stack != &guard->callback;
}

static Snapshot
active_snapshot(void)
{
	return ActiveSnapshotSet() ? GetActiveSnapshot() : NULL;
}

static void
guard_begin(InputGuard *guard)
{
	guard->nested = false;
	guard->snapshot = active_snapshot();
	guard->spi_result = SPI_result;
	SPI_result = GUARD_MARK;
	guard->callback.callback = guard_callback;
	guard->callback.arg = guard;
	guard->callback.previous = error_context_stack;
	error_context_stack = &guard->callback;
}

/* Whether nothing is left behind that the guard knows how to tell. */
static bool
guard_end(InputGuard *guard)
{
	bool clean = !guard->nested && SPI_result == GUARD_MARK &&
				 active_snapshot() == guard->snapshot;

	SPI_result = guard->spi_result;
	return clean;
}

static void
release_resources(ResourceOwner owner, bool done)
{
	ResourceOwnerRelease(owner, RESOURCE_RELEASE_BEFORE_LOCKS, done, false);
	ResourceOwnerRelease(owner, RESOURCE_RELEASE_LOCKS, done, false);
	ResourceOwnerRelease(owner, RESOURCE_RELEASE_AFTER_LOCKS, done, false);
	ResourceOwnerDelete(owner);
}

static bool
call_input_in_parallel(Target *target, char *text, Datum *result)
{
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ResourceOwner own = ResourceOwnerCreate(owner, "absmartly value");
	InputGuard guard = {0};
	uint32 calls = version_calls;
	volatile bool fits = true;

	PG_TRY();
	{
		guard_begin(&guard);
		CurrentResourceOwner = own;
		fits = compat_input(&target->input, text, target->io_parameter, result);
		CurrentResourceOwner = owner;
		error_context_stack = guard.callback.previous;
		(void) guard_end(&guard);
		release_resources(own, true);
	}
	PG_CATCH();
	{
		CurrentResourceOwner = owner;
		/* else all of it is for the end of the transaction */
		if (!guard_end(&guard) || !error_is_about_value(geterrcode()))
			PG_RE_THROW();
		MemoryContextSwitchTo(caller);
		FlushErrorState();
		version_calls = calls;
		release_resources(own, false);
		fits = false;
	}
	PG_END_TRY();
	return fits;
}

static bool
call_input(Target *target, char *text, Datum *result)
{
	if (has_plain_input(target))
		return call_plain_input(target, text, result);
	if (!IsInParallelMode() || COMPAT_PARALLEL_SUBTRANSACTIONS)
		return call_input_in_subtransaction(target, text, result);
	return call_input_in_parallel(target, text, result);
}

/*
 * Whether a value has a text that one can make: a few kB of numbers may stand
 * for GBs of digits.
 */
#define MAX_TEXT (64 * 1024 * 1024)
#define FEW_NUMBERS 4096 /* bytes that can't hold too many digits */

static bool
has_text(const Jsonb *jsonb)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue value;
	Size length = 0;

	if (likely(VARSIZE(jsonb) <= FEW_NUMBERS))
		return true;
	iterator = JsonbIteratorInit(unconstify(JsonbContainer *, &jsonb->root));
	while (length <= MAX_TEXT &&
		   (token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		CHECK_FOR_INTERRUPTS();
		if ((token == WJB_VALUE || token == WJB_ELEM) &&
			value.type == jbvNumeric)
			length += jsonb_number_least_length(value.val.numeric);
	}
	return length <= MAX_TEXT;
}

/*
 * The text that the input function gets; NULL if values of this kind do not
 * fit the type.
 */
static char *
input_text(TargetKind kind, const Value *value, const Jsonb *jsonb)
{
	bool fits;

	switch (kind)
	{
		case TARGET_JSONB:
		case TARGET_JSON:
			fits = true;
			break;
		case TARGET_BOOLEAN:
			fits = value->kind == VALUE_BOOLEAN;
			break;
		case TARGET_TEXT:
			fits = true;
			break;
		case TARGET_OTHER:
			fits = value->kind == VALUE_STRING;
			break;
		default:
			fits = value->kind == VALUE_NUMBER;
			break;
	}
	if (!fits)
		return NULL;
	if (value->kind == VALUE_STRING && kind != TARGET_JSONB &&
		kind != TARGET_JSON)
		return pnstrdup(value->u.string.data, value->u.string.length);
	if (!has_text(jsonb))
		return NULL;
	return JsonbToCString(NULL, unconstify(JsonbContainer *, &jsonb->root),
						  VARSIZE(jsonb));
}

/* The number that a scalar jsonb is. */
static Numeric
scalar_number(const Jsonb *jsonb)
{
	const char *data = (const char *) &jsonb->root.children[1];

	return (Numeric) unconstify(char *, data);
}

static bool
convert_integer(TargetKind kind, Numeric number, Datum *result)
{
	int64 integer;

	if (!jsonb_number_int64(number, &integer))
		return false;
	switch (kind)
	{
		case TARGET_INT2:
			*result = Int16GetDatum((int16) integer);
			return integer == (int16) integer;
		case TARGET_INT4:
			*result = Int32GetDatum((int32) integer);
			return integer == (int32) integer;
		default:
			*result = Int64GetDatum(integer);
			return true;
	}
}

static bool
convert_number(TargetKind kind, Numeric number, Datum *result)
{
	double approximate;
	float4 narrow;

	switch (kind)
	{
		case TARGET_NUMERIC:
			*result = datumCopy(NumericGetDatum(number), false, -1);
			return true;
		case TARGET_FLOAT4:
			narrow = (float4) jsonb_number_double(number);
			*result = Float4GetDatum(narrow);
			/* what only float4 is too small for does not fit */
			return !isinf(narrow) &&
				   (narrow != 0 || jsonb_number_is_zero(number));
		case TARGET_FLOAT8:
			approximate = jsonb_number_double(number);
			*result = Float8GetDatum(approximate);
			/* what is too small for a double is 0, as to all who read JSON */
			return !isinf(approximate);
		default:
			return convert_integer(kind, number, result);
	}
}

bool
target_convert(Target *target, const Jsonb *jsonb, Datum *result, bool *is_null)
{
	bool json = target->kind == TARGET_JSONB || target->kind == TARGET_JSON;
	Value value;
	char *text;

	*is_null = false;
	jsonb_to_value(jsonb, &value);

	if (value.kind == VALUE_NULL && !json)
	{
		*is_null = true;
		*result = (Datum) 0;
		/* a domain may refuse it */
		return !target->by_input || call_input(target, NULL, result);
	}
	if (target->by_input)
	{
		text = input_text(target->kind, &value, jsonb);
		return text != NULL && call_input(target, text, result);
	}

	switch (target->kind)
	{
		case TARGET_JSONB:
			*result = datumCopy(PointerGetDatum(jsonb), false, -1);
			return true;
		case TARGET_JSON:
		case TARGET_TEXT:
			if (!json && value.kind == VALUE_STRING)
			{
				*result = PointerGetDatum(cstring_to_text_with_len(
					value.u.string.data, (int) value.u.string.length));
				return true;
			}
			text = input_text(target->kind, &value, jsonb);
			if (text == NULL)
				return false;
			*result = CStringGetTextDatum(text);
			return true;
		case TARGET_BOOLEAN:
			if (value.kind != VALUE_BOOLEAN)
				return false;
			*result = BoolGetDatum(value.u.boolean);
			return true;
		default:
			return value.kind == VALUE_NUMBER &&
				   convert_number(target->kind, scalar_number(jsonb), result);
	}
}
