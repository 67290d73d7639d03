/*
 * response.c
 *		What the collector says about a publish request (protocol 1).
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

#include "data/store.h"
#include "engine/json.h"
#include "worker/response.h"

#define MAX_TEXT 200 /* bytes of a message that are kept */

static int
index_of(const JsonNode *message, const char *name)
{
	const JsonNode *index = json_get(message, name);

	if (index == NULL || index->kind != JSON_NUMBER || index->number < 0 ||
		index->number > PG_INT32_MAX || index->number != (int) index->number)
		return -1;
	return (int) index->number;
}

static bool
is_word(const char *word, size_t length, const char *plural)
{
	size_t whole = strlen(plural);

	return (length == whole || length == whole - 1) &&
		   memcmp(word, plural, length) == 0;
}

/*
 * What a subject like "goals[1].name" is about; the index is -1 if it has none.
 */
static ResponsePart
read_subject(const char *subject, size_t length, int *index)
{
	static const char letters[] =
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
	const char *at = pnstrdup(subject, length);
	ResponsePart part = RESPONSE_UNKNOWN;

	*index = -1;
	while (part == RESPONSE_UNKNOWN && *(at += strcspn(at, letters)) != '\0')
	{
		size_t word = strspn(at, letters);

		if (is_word(at, word, "exposures"))
			part = RESPONSE_EXPOSURES;
		else if (is_word(at, word, "goals"))
			part = RESPONSE_GOALS;
		else if (is_word(at, word, "units") || is_word(at, word, "attributes"))
			part = RESPONSE_SHARED;
		at += word;
	}
	at += strspn(at, "[./ ");
	if (part != RESPONSE_UNKNOWN && *at >= '0' && *at <= '9')
		*index = (int) Min(strtoul(at, NULL, 10), PG_INT32_MAX);
	return part;
}

static void
read_place(const JsonNode *node, ResponseMessage *message)
{
	const JsonNode *subject = json_get(node, "subject");
	int index = -1;

	message->batch_index = index_of(node, "batchIndex");
	message->event_index = index_of(node, "eventIndex");
	message->part = RESPONSE_UNKNOWN;
	if (subject != NULL && subject->kind == JSON_STRING)
		message->part =
			read_subject(json_text(subject), subject->count, &index);
	if (index >= 0)
		message->event_index = index;
}

/* "subject: message", fit to be shown to people. */
static char *
text_of(const JsonNode *message, const CollectorKey *key)
{
	static const char *const names[] = {"subject", "message"};
	StringInfoData text;
	char *clean;

	initStringInfo(&text);
	for (int i = 0; i < (int) lengthof(names); i++)
	{
		const JsonNode *part = json_get(message, names[i]);

		if (part == NULL || part->kind != JSON_STRING || part->count == 0)
			continue;
		if (text.len > 0)
			appendStringInfoString(&text, ": ");
		appendBinaryStringInfo(&text, json_text(part), (int) part->count);
	}
	if (text.len == 0)
		appendStringInfoString(&text, "no reason given");

	clean = collector_scrub(key, text.data, text.len, false);
	clean[pg_encoding_mbcliplen(PG_UTF8, clean, (int) strlen(clean),
								MAX_TEXT)] = '\0';
	for (char *c = clean; *c != '\0'; c++)
		if ((unsigned char) *c < 0x20 || *c == 0x7f)
			*c = ' ';
	return clean;
}

static int
take_messages(const JsonNode *list, const CollectorKey *key,
			  ResponseMessage **messages)
{
	if (list == NULL || list->kind != JSON_ARRAY || list->count == 0)
		return 0;
	*messages = palloc(list->count * sizeof(ResponseMessage));
	for (uint32 i = 0; i < list->count; i++)
	{
		const JsonNode *message = json_element(list, i);

		read_place(message, &(*messages)[i]);
		(*messages)[i].text = text_of(message, key);
	}
	return (int) list->count;
}

bool
response_parse(Response *response, const char *body, size_t length,
			   const CollectorKey *key)
{
	ArenaSource source;
	Arena arena;
	const JsonNode *root;
	const JsonNode *ok;
	ResponseMessage *warnings;
	bool is_response = false;

	memset(response, 0, sizeof(*response));
	store_arena_source(&source, CurrentMemoryContext);
	arena_init(&arena, &source);
	if (json_parse(body, length, ENGINE_MAX_DEPTH, &arena, &root, NULL) ==
		ENGINE_OK)
	{
		ok = json_get(root, "ok");
		is_response =
			ok != NULL && (ok->kind == JSON_TRUE || ok->kind == JSON_FALSE);
		response->nwarnings =
			take_messages(json_get(root, "warnings"), key, &warnings);
		if (response->nwarnings > 0)
			response->first_warning = warnings[0].text;
		response->nerrors =
			take_messages(json_get(root, "errors"), key, &response->errors);
	}
	arena_release(&arena);
	return is_response;
}
