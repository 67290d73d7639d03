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
index_of(const JsonNode *message)
{
	const JsonNode *index = json_get(message, "batchIndex");

	if (index == NULL || index->kind != JSON_NUMBER || index->number < 0 ||
		index->number > PG_INT16_MAX || index->number != (int) index->number)
		return -1;
	return (int) index->number;
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

		(*messages)[i].batch_index = index_of(message);
		(*messages)[i].text = text_of(message, key);
	}
	return (int) list->count;
}

void
response_parse(Response *response, const char *body, size_t length,
			   const CollectorKey *key)
{
	ArenaSource source;
	Arena arena;
	const JsonNode *root;
	ResponseMessage *warnings;

	memset(response, 0, sizeof(*response));
	/* nearly all answers only say that all is well */
	if (strstr(body, "\"warnings\"") == NULL &&
		strstr(body, "\"errors\"") == NULL)
		return;

	store_arena_source(&source, CurrentMemoryContext);
	arena_init(&arena, &source);
	if (json_parse(body, length, ENGINE_MAX_DEPTH, &arena, &root, NULL) ==
		ENGINE_OK)
	{
		response->nwarnings =
			take_messages(json_get(root, "warnings"), key, &warnings);
		if (response->nwarnings > 0)
			response->first_warning = warnings[0].text;
		response->nerrors =
			take_messages(json_get(root, "errors"), key, &response->errors);
	}
	arena_release(&arena);
}
