/*
 * store.c
 *		Values of the experiments as the server holds them.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/procsignal.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "data/store.h"

/*
 * Where a host keeps what it has made until the next call, and how it gets
 * text into the database's encoding.
 */
typedef struct StoreHost
{
	MemoryContext memory;
	Oid conversion; /* from UTF-8; invalid: none is needed */
} StoreHost;

/*
 * The conversion from UTF-8 to the database's encoding, or InvalidOid where
 * bytes are taken as they are.  Raises if there is none.
 */
static Oid
find_conversion(void)
{
	int encoding = GetDatabaseEncoding();
	Oid conversion;

	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII)
		return InvalidOid;
	if (!IsTransactionState())
		elog(ERROR, "encodings cannot be converted outside a transaction");
	conversion = FindDefaultConversionProc(PG_UTF8, encoding);
	if (!OidIsValid(conversion))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_FUNCTION),
						errmsg("there is no default conversion from UTF8 to %s",
							   pg_encoding_to_char(encoding))));
	return conversion;
}

/*
 * Converts as much of UTF-8 text as has an equivalent; *consumed says how many
 * bytes that were.  The result is NUL-terminated, in the current context.
 */
static char *
convert(Oid conversion, const char *text, size_t length, size_t *consumed)
{
	size_t room = length * MAX_CONVERSION_GROWTH + 1;
	char *result;

	if (room > MaxAllocHugeSize || length > PG_INT32_MAX)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("text of %zu bytes is too long to be converted",
							   length)));
	result = MemoryContextAllocHuge(CurrentMemoryContext, room);
	*consumed = (size_t) DatumGetInt32(
		OidFunctionCall6(conversion, Int32GetDatum(PG_UTF8),
						 Int32GetDatum(GetDatabaseEncoding()),
						 CStringGetDatum(text), CStringGetDatum(result),
						 Int32GetDatum((int) length), BoolGetDatum(true)));
	return result;
}

/*
 * Text for storage: valid, without NUL, in the database's encoding.  Raises
 * what cannot be stored.  Without a host the text stays UTF-8.
 */
static const char *
storable_text(const StoreHost *host, const char *text, size_t length,
			  size_t *result_length)
{
	size_t consumed;
	char *result;

	if (length > 0 && memchr(text, '\0', length) != NULL)
		ereport(ERROR, (errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
						errmsg("unsupported Unicode escape sequence"),
						errdetail("\\u0000 cannot be converted to text.")));
	if (length > PG_INT32_MAX)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("text of %zu bytes is too long", length)));
	(void) pg_verify_mbstr(PG_UTF8, text, (int) length, false);

	*result_length = length;
	if (host == NULL || !OidIsValid(host->conversion) || length == 0)
		return text;
	result = convert(host->conversion, text, length, &consumed);
	if (consumed != length)
		report_untranslatable_char(PG_UTF8, GetDatabaseEncoding(),
								   text + consumed, (int) (length - consumed));
	*result_length = strlen(result);
	return result;
}

static void
scalar_value(const JsonNode *node, const StoreHost *host, JsonbValue *value)
{
	size_t length;
	char *digits;

	switch ((JsonKind) node->kind)
	{
		case JSON_FALSE:
		case JSON_TRUE:
			value->type = jbvBool;
			value->val.boolean = node->kind == JSON_TRUE;
			break;
		case JSON_NUMBER:
			digits = pnstrdup(json_text(node), node->count);
			value->type = jbvNumeric;
			value->val.numeric = DatumGetNumeric(DirectFunctionCall3(
				numeric_in, CStringGetDatum(digits),
				ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
			break;
		case JSON_STRING:
			value->type = jbvString;
			value->val.string.val =
				unconstify(char *, storable_text(host, json_text(node),
												 node->count, &length));
			value->val.string.len = (int) length;
			break;
		default:
			value->type = jbvNull;
			break;
	}
}

/* Pushes one value; the depth is bounded by the parser (ENGINE_MAX_DEPTH). */
static void
push_node(JsonbParseState **state, JsonbIteratorToken token,
		  const JsonNode *node, const StoreHost *host, JsonbValue **root)
{
	uint32_t index;

	check_stack_depth();

	if (node->kind == JSON_ARRAY)
	{
		pushJsonbValue(state, WJB_BEGIN_ARRAY, NULL);
		for (index = 0; index < node->count; index++)
			push_node(state, WJB_ELEM, json_element(node, index), host, root);
		*root = pushJsonbValue(state, WJB_END_ARRAY, NULL);
	}
	else if (node->kind == JSON_OBJECT)
	{
		pushJsonbValue(state, WJB_BEGIN_OBJECT, NULL);
		for (index = 0; index < node->count; index++)
		{
			JsonbValue name;

			scalar_value(json_member_name(node, index), host, &name);
			pushJsonbValue(state, WJB_KEY, &name);
			push_node(state, WJB_VALUE, json_member_value(node, index), host,
					  root);
		}
		*root = pushJsonbValue(state, WJB_END_OBJECT, NULL);
	}
	else
	{
		JsonbValue scalar;

		scalar_value(node, host, &scalar);
		*root = pushJsonbValue(state, token, &scalar);
	}
}

static Jsonb *
node_to_jsonb(const JsonNode *node, const StoreHost *host)
{
	JsonbParseState *state = NULL;
	JsonbValue *root = NULL;
	JsonbValue scalar;

	if (node->kind == JSON_ARRAY || node->kind == JSON_OBJECT)
		push_node(&state, WJB_DONE, node, host, &root);
	else
	{
		scalar_value(node, host, &scalar);
		root = &scalar;
	}
	return JsonbValueToJsonb(root);
}

Jsonb *
store_jsonb(const JsonNode *node)
{
	return node_to_jsonb(node, NULL);
}

/* What the host has been asked for: one of both. */
typedef struct StoreRequest
{
	const JsonNode *node;
	EngineText text;
} StoreRequest;

static struct varlena *
make_datum(const StoreHost *host, const StoreRequest *request)
{
	const char *bytes;
	size_t length;

	if (request->node != NULL)
		return (struct varlena *) node_to_jsonb(request->node, host);
	bytes =
		storable_text(host, request->text.data, request->text.length, &length);
	return cstring_to_text_with_len(bytes, (int) length);
}

/*
 * Makes a datum and turns errors into a status.  Nothing that runs in here
 * holds anything but memory, so no subtransaction is needed.  The caller may
 * hold interrupts off; an error must not let them in.
 */
static EngineStatus
store(StoreHost *host, const StoreRequest *request, const void **bytes,
	  size_t *length)
{
	MemoryContext caller = CurrentMemoryContext;
	uint32 holdoff = InterruptHoldoffCount;
	volatile EngineStatus status = ENGINE_OK;

	MemoryContextReset(host->memory);
	HOLD_INTERRUPTS();
	PG_TRY();
	{
		struct varlena *datum;

		MemoryContextSwitchTo(host->memory);
		datum = make_datum(host, request);
		*bytes = datum;
		*length = VARSIZE(datum);
	}
	PG_CATCH();
	{
		status = geterrcode() == ERRCODE_OUT_OF_MEMORY ? ENGINE_NO_MEMORY
													   : ENGINE_UNSTORABLE;
		FlushErrorState();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	InterruptHoldoffCount = holdoff;
	return status;
}

static EngineStatus
store_json(void *context, const JsonNode *node, const void **bytes,
		   size_t *length)
{
	StoreRequest request = {.node = node};

	return store(context, &request, bytes, length);
}

static EngineStatus
store_text(void *context, EngineText text, const void **bytes, size_t *length)
{
	StoreRequest request = {.text = text};

	return store(context, &request, bytes, length);
}

void
store_host_init(SnapshotHost *host, MemoryContext context)
{
	StoreHost *store_host = MemoryContextAlloc(context, sizeof(StoreHost));

	store_host->memory = AllocSetContextCreate(
		context, "absmartly stored value", ALLOCSET_DEFAULT_SIZES);
	store_host->conversion = find_conversion();
	host->context = store_host;
	host->store_json = store_json;
	host->store_text = store_text;
}

static void *
context_alloc(void *context, size_t size)
{
	return MemoryContextAllocExtended(context, size,
									  MCXT_ALLOC_NO_OOM | MCXT_ALLOC_HUGE);
}

static void
context_free(void *context, void *chunk)
{
	pfree(chunk);
}

/*
 * Compiling may take seconds, and DROP DATABASE of any database waits until
 * every process has absorbed a barrier.  Nothing may be raised here, where
 * json-c has memory of its own.
 */
static bool
context_interrupted(void *context)
{
	if (ProcSignalBarrierPending)
		ProcessProcSignalBarrier();
	return ProcDiePending || QueryCancelPending;
}

void
store_arena_source(ArenaSource *source, MemoryContext context)
{
	source->alloc = context_alloc;
	source->free = context_free;
	source->context = context;
	source->interrupted = context_interrupted;
}

/*
 * Appends as much of UTF-8 text as the database's encoding has, or as is valid;
 * returns how many bytes that were.
 */
static size_t
append_convertible(StringInfo result, const char *text, size_t length)
{
	int encoding = GetDatabaseEncoding();
	Oid conversion = InvalidOid;
	size_t consumed = 0;
	char *converted;

	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII)
	{
		consumed =
			(size_t) pg_encoding_verifymbstr(PG_UTF8, text, (int) length);
		appendBinaryStringInfo(result, text, (int) consumed);
		return consumed;
	}

	/* conversions can be looked up in a transaction only */
	if (IsTransactionState())
		conversion = FindDefaultConversionProc(PG_UTF8, encoding);
	if (OidIsValid(conversion))
	{
		converted = convert(conversion, text, length, &consumed);
		appendStringInfoString(result, converted);
		pfree(converted);
		return consumed;
	}
	while (consumed < length && !IS_HIGHBIT_SET(text[consumed]))
		consumed++;
	appendBinaryStringInfo(result, text, (int) consumed);
	return consumed;
}

char *
store_message(const char *text, MemoryContext context)
{
	MemoryContext caller = MemoryContextSwitchTo(context);
	size_t length = strlen(text);
	StringInfoData result;

	initStringInfo(&result);
	while (length > 0)
	{
		size_t done = append_convertible(&result, text, length);

		text += done;
		length -= done;
		if (length == 0)
			break;
		/* a character that can't be converted */
		appendStringInfoChar(&result, '?');
		do
		{
			text++;
			length--;
		} while (length > 0 && (*text & 0xC0) == 0x80);
	}
	/* it may come from anywhere, and goes to terminals and logs */
	for (char *c = result.data; *c != '\0'; c++)
		if ((unsigned char) *c < 0x20 || *c == 0x7f)
			*c = ' ';
	MemoryContextSwitchTo(caller);
	return result.data;
}

const char *
store_database_text(const char *text, size_t length)
{
	Oid conversion = find_conversion();
	size_t consumed;
	char *result;

	if (length == 0 || !OidIsValid(conversion))
		return text;
	result = convert(conversion, text, length, &consumed);
	return consumed == length ? result : NULL;
}
