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

#include "compat.h"
#include "data/store.h"

/*
 * Where a host keeps what it has made until the next call, and how it gets
 * text into the database's encoding.
 */
typedef struct StoreHost
{
	MemoryContext memory;
	size_t length; /* of what is there */
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

/*
 * jsonb
 *
 * It is written here as it lies on disk, without the server's tree of
 * JsonbValues, which takes half a kilobyte for an object of one member and
 * cannot be interrupted.
 */

typedef struct JsonbWriter
{
	const StoreHost *host; /* NULL: texts stay UTF-8 */
	char *data;
	size_t length;
	size_t room;
} JsonbWriter;

/* A member's name, for sorting. */
typedef struct JsonbName
{
	const char *text;
	size_t length;
	uint32 index; /* of the member */
} JsonbName;

/*
 * The caller of a host holds interrupts off, and what is raised there becomes a
 * status.
 */
static void
check_interrupts(const StoreHost *host)
{
	if (host == NULL)
		CHECK_FOR_INTERRUPTS();
	else if (unlikely(compat_must_end()))
		ereport(ERROR, (errcode(ERRCODE_QUERY_CANCELED),
						errmsg("interrupted while a value was stored")));
}

/* Room for size bytes; returns where they start. */
static size_t
reserve(JsonbWriter *writer, size_t size)
{
	size_t start = writer->length;

	if (size > JENTRY_OFFLENMASK || start + size > JENTRY_OFFLENMASK)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("total size of jsonb value exceeds the maximum "
							   "of %u bytes",
							   JENTRY_OFFLENMASK)));
	if (start + size > writer->room)
	{
		writer->room = Max(start + size, writer->room + writer->room / 2);
		writer->data = repalloc_huge(writer->data, writer->room);
	}
	writer->length = start + size;
	return start;
}

static void
append(JsonbWriter *writer, const void *bytes, size_t size)
{
	size_t start = reserve(writer, size);

	memcpy(writer->data + start, bytes, size);
}

/* Numbers, and what containers begin with, are aligned. */
static void
align(JsonbWriter *writer)
{
	size_t padding = INTALIGN(writer->length) - writer->length;
	size_t start = reserve(writer, padding);

	memset(writer->data + start, 0, padding);
}

/*
 * Writes the entry at place, for what was written from start on.  total is the
 * length of all that belongs to the container so far; it stands in some
 * entries instead of their own length.
 */
static void
put_entry(JsonbWriter *writer, size_t place, uint32 index, JEntry type,
		  size_t start, size_t base)
{
	JEntry entry = type | (JEntry) (writer->length - start);

	if (index % JB_OFFSET_STRIDE == 0)
		entry = type | JENTRY_HAS_OFF | (JEntry) (writer->length - base);
	memcpy(writer->data + place + index * sizeof(JEntry), &entry,
		   sizeof(JEntry));
}

static JEntry write_node(JsonbWriter *writer, const JsonNode *node);

/* Begins a container of so many entries; returns where these are. */
static size_t
begin_container(JsonbWriter *writer, uint32 header, size_t nentries)
{
	align(writer);
	append(writer, &header, sizeof(header));
	if (nentries > JENTRY_OFFLENMASK / sizeof(JEntry))
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("too many members or elements for jsonb")));
	return reserve(writer, nentries * sizeof(JEntry));
}

static void
write_array(JsonbWriter *writer, const JsonNode *node)
{
	size_t place;
	size_t base;

	if (node->count > JB_CMASK)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("too many elements for jsonb")));
	place = begin_container(writer, node->count | JB_FARRAY, node->count);
	base = writer->length;
	for (uint32 i = 0; i < node->count; i++)
	{
		size_t start = writer->length;
		JEntry type = write_node(writer, json_element(node, i));

		put_entry(writer, place, i, type, start, base);
	}
}

/* jsonb's order: by length, then by bytes; of equal names the last one first */
static int
compare_jsonb_names(const void *left, const void *right, void *host)
{
	const JsonbName *a = left;
	const JsonbName *b = right;
	int order;

	check_interrupts(host);
	if (a->length != b->length)
		return a->length < b->length ? -1 : 1;
	order = memcmp(a->text, b->text, a->length);
	if (order != 0)
		return order;
	return a->index > b->index ? -1 : a->index < b->index;
}

static void
write_object(JsonbWriter *writer, const JsonNode *node)
{
	JsonbName *names;
	uint32 count = 0;
	size_t place;
	size_t base;

	if (node->count > JB_CMASK)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("too many members for jsonb")));
	names = MemoryContextAllocHuge(CurrentMemoryContext,
								   Max(node->count, 1) * sizeof(JsonbName));
	for (uint32 i = 0; i < node->count; i++)
	{
		const JsonNode *name = json_member_name(node, i);

		check_interrupts(writer->host);
		names[i].text = storable_text(writer->host, json_text(name),
									  name->count, &names[i].length);
		names[i].index = i;
	}
	qsort_arg(names, node->count, sizeof(JsonbName), compare_jsonb_names,
			  unconstify(StoreHost *, writer->host));
	/* two names may be one in the database's encoding */
	for (uint32 i = 0; i < node->count; i++)
	{
		if (count == 0 || names[count - 1].length != names[i].length ||
			memcmp(names[count - 1].text, names[i].text, names[i].length) != 0)
			names[count++] = names[i];
	}

	place = begin_container(writer, count | JB_FOBJECT, 2 * (size_t) count);
	base = writer->length;
	for (uint32 i = 0; i < count; i++)
	{
		size_t start = writer->length;

		append(writer, names[i].text, names[i].length);
		put_entry(writer, place, i, JENTRY_ISSTRING, start, base);
	}
	for (uint32 i = 0; i < count; i++)
	{
		size_t start = writer->length;
		JEntry type =
			write_node(writer, json_member_value(node, names[i].index));

		put_entry(writer, place, count + i, type, start, base);
	}
	pfree(names);
}

static void
write_number(JsonbWriter *writer, const JsonNode *node)
{
	char *digits = pnstrdup(json_text(node), node->count);
	Numeric number = DatumGetNumeric(
		DirectFunctionCall3(numeric_in, CStringGetDatum(digits),
							ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));

	align(writer);
	append(writer, number, VARSIZE_ANY(number));
	pfree(number);
	pfree(digits);
}

/*
 * Writes one value; returns the type for its entry.  Recursive, but the depth
 * is bounded by the parser (ENGINE_MAX_DEPTH).
 */
static JEntry
write_node(JsonbWriter *writer, const JsonNode *node)
{
	size_t length;
	const char *text;

	check_stack_depth();
	check_interrupts(writer->host);

	switch ((JsonKind) node->kind)
	{
		case JSON_NULL:
			break;
		case JSON_FALSE:
			return JENTRY_ISBOOL_FALSE;
		case JSON_TRUE:
			return JENTRY_ISBOOL_TRUE;
		case JSON_NUMBER:
			write_number(writer, node);
			return JENTRY_ISNUMERIC;
		case JSON_STRING:
			text = storable_text(writer->host, json_text(node), node->count,
								 &length);
			append(writer, text, length);
			if (text != json_text(node))
				pfree(unconstify(char *, text));
			return JENTRY_ISSTRING;
		case JSON_ARRAY:
			write_array(writer, node);
			return JENTRY_ISCONTAINER;
		case JSON_OBJECT:
			write_object(writer, node);
			return JENTRY_ISCONTAINER;
	}
	return JENTRY_ISNULL;
}

static Jsonb *
node_to_jsonb(const JsonNode *node, const StoreHost *host)
{
	JsonbWriter writer = {.host = host, .room = 256};
	JEntry type;

	writer.data = palloc(writer.room);
	(void) reserve(&writer, VARHDRSZ);
	if (node->kind == JSON_ARRAY || node->kind == JSON_OBJECT)
		(void) write_node(&writer, node);
	else
	{
		/* a scalar stands alone in an array that is none */
		size_t place = begin_container(&writer, 1 | JB_FARRAY | JB_FSCALAR, 1);
		size_t base = writer.length;

		type = write_node(&writer, node);
		put_entry(&writer, place, 0, type, base, base);
	}
	SET_VARSIZE(writer.data, writer.length);
	return (Jsonb *) writer.data;
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
		*length = host->length = VARSIZE(datum);
	}
	PG_CATCH();
	{
		status = geterrcode() == ERRCODE_OUT_OF_MEMORY    ? ENGINE_NO_MEMORY
				 : geterrcode() == ERRCODE_QUERY_CANCELED ? ENGINE_INTERRUPTED
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

/* What is small makes place for what comes next. */
static void
store_forget(void *context)
{
	StoreHost *host = context;

	if (host->length > ALLOCSET_DEFAULT_INITSIZE)
		MemoryContextReset(host->memory);
}

void
store_host_init(SnapshotHost *host, MemoryContext context)
{
	StoreHost *store_host = MemoryContextAlloc(context, sizeof(StoreHost));

	store_host->memory = AllocSetContextCreate(
		context, "absmartly stored value", ALLOCSET_DEFAULT_SIZES);
	store_host->length = 0;
	store_host->conversion = find_conversion();
	host->context = store_host;
	host->store_json = store_json;
	host->store_text = store_text;
	host->forget = store_forget;
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
 * every process has absorbed a barrier.  Nothing may be raised here: the
 * engine and PCRE2 have memory that an error would leave behind.
 */
static bool
context_interrupted(void *context)
{
	if (ProcSignalBarrierPending)
		ProcessProcSignalBarrier();
	return compat_must_end();
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
