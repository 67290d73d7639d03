/*
 * settings.c
 *		The extension's settings (DESIGN 4): definitions and their checks.
 */
#include "postgres.h"

#include <limits.h>
#include <math.h>

#include "access/xact.h"
#include "catalog/namespace.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/varlena.h"

#include "compat.h"
#include "data/shared.h"
#include "data/store.h"
#include "engine/json.h"
#include "interrupt.h"
#include "settings.h"

char *settings_endpoint = NULL;
char *settings_api_key_file = NULL;
char *settings_application = NULL;
char *settings_application_version = NULL;
char *settings_environment = NULL;
int settings_refresh_interval = 60;
int settings_connect_timeout = 3000;
int settings_request_timeout = 10000;
int settings_max_retries = 5;
int settings_publish_delay = 1000;
bool settings_publishing = true;
int settings_batch_size = 500;
int settings_batch_bytes = 4096;
int settings_max_connections = 4;
int settings_dedup_size = 8192;
int settings_memory_queue_size = 16384;
int settings_durability = DURABILITY_TRANSACTION;
bool settings_async_commit = true;
int settings_exposure_dedup_interval = 600000;
int settings_outbox_max_size = 1024;
int settings_max_event_size = 1024;
int settings_max_context_data = 16 * 1024;
bool settings_historic = false;
int settings_trigger_errors = TRIGGER_ERRORS_ERROR;
char *settings_ca_file = NULL;
char *settings_proxy = NULL;
char *settings_event_logger = NULL;
char *settings_databases = NULL;
int settings_on_not_ready = ON_NOT_READY_ERROR;
int settings_context_scope = CONTEXT_SCOPE_SESSION;
bool settings_include_system_attributes = false;
bool settings_have_overrides_flag = false;

/* what the setting's variable shows: never the key */
static char *api_key_shown = NULL;
static const char *api_key = "";
static char *overrides_text = NULL;

/* absmartly.overrides, parsed: the extra of the setting */
typedef struct Override
{
	const char *name; /* UTF-8 */
	size_t length;
	int32 variant;
} Override;

typedef struct OverrideList
{
	int count;
	Override entries[FLEXIBLE_ARRAY_MEMBER];
} OverrideList;

static const OverrideList *overrides = NULL;

static const struct config_enum_entry on_not_ready_options[] = {
	{"error", ON_NOT_READY_ERROR, false},
	{"control", ON_NOT_READY_CONTROL, false},
	{NULL, 0, false}};

static const struct config_enum_entry durability_options[] = {
	{"transaction", DURABILITY_TRANSACTION, false},
	{"goals", DURABILITY_GOALS, false},
	{"memory", DURABILITY_MEMORY, false},
	{NULL, 0, false}};

static const struct config_enum_entry trigger_errors_options[] = {
	{"error", TRIGGER_ERRORS_ERROR, false},
	{"warning", TRIGGER_ERRORS_WARNING, false},
	{NULL, 0, false}};

static const struct config_enum_entry context_scope_options[] = {
	{"session", CONTEXT_SCOPE_SESSION, false},
	{"transaction", CONTEXT_SCOPE_TRANSACTION, false},
	{NULL, 0, false}};

/*
 * Checks
 */

static bool
has_control_characters(const char *text)
{
	for (; *text != '\0'; text++)
		if ((unsigned char) *text < 0x20 || *text == 0x7f)
			return true;
	return false;
}

/*
 * Has the server's message on a value that is refused not quote it: it may hold
 * a secret.
 */
static void
hide_value(const char *name)
{
	GUC_check_errmsg("invalid value for parameter \"%s\"", name);
}

static bool
check_endpoint(char **value, void **extra, GucSource source)
{
	const char *endpoint = *value;
	const char *host;
	size_t length = strlen(endpoint);

	if (length == 0)
		return true;
	/* a user and a password, or a key as an argument */
	if (strpbrk(endpoint, "@?#") != NULL)
		hide_value("absmartly.endpoint");
	if (length >= SHARED_MAX_ENDPOINT)
	{
		GUC_check_errdetail("An endpoint has at most %d bytes.",
							SHARED_MAX_ENDPOINT - 1);
		return false;
	}
	if (pg_strncasecmp(endpoint, "https://", 8) == 0)
		host = endpoint + 8;
	else if (pg_strncasecmp(endpoint, "http://", 7) == 0)
		host = endpoint + 7;
	else
	{
		GUC_check_errdetail("An endpoint starts with \"https://\" or "
							"\"http://\".");
		GUC_check_errhint("It is the collector's address with its version, "
						  "such as \"https://acme.absmartly.io/v1\".");
		return false;
	}
	if (*host == '\0' || *host == '/' || *host == ':')
	{
		GUC_check_errdetail("The endpoint names no host.");
		return false;
	}
	for (const char *c = endpoint; *c != '\0'; c++)
	{
		if ((unsigned char) *c <= 0x20 || (unsigned char) *c >= 0x7f)
		{
			GUC_check_errdetail("An endpoint has no blanks, control "
								"characters or non-ASCII characters.");
			return false;
		}
		if (*c == '?' || *c == '#')
		{
			GUC_check_errdetail("An endpoint has no query and no fragment.");
			return false;
		}
	}
	if (strcspn(host, "@") < strcspn(host, "/"))
	{
		GUC_check_errdetail("An endpoint holds no user name or password.");
		GUC_check_errhint("The API key is set with "
						  "\"absmartly.api_key_file\".");
		return false;
	}
	return true;
}

/* application, environment: sent in headers, kept in shared memory */
static bool
check_name(char **value, void **extra, GucSource source)
{
	if (strlen(*value) >= SHARED_MAX_NAME)
	{
		GUC_check_errdetail("The name has at most %d bytes.",
							SHARED_MAX_NAME - 1);
		return false;
	}
	if (has_control_characters(*value))
	{
		GUC_check_errdetail("The name has no control characters.");
		return false;
	}
	return true;
}

/* Skips identifiers of a semantic version after a mark; NULL: there are none.
 */
static const char *
skip_identifiers(const char *text, char mark)
{
	static const char characters[] = "0123456789abcdefghijklmnopqrstuvwxyz"
									 "ABCDEFGHIJKLMNOPQRSTUVWXYZ-";

	if (*text != mark)
		return text;
	do
	{
		size_t length = strspn(++text, characters);

		if (length == 0)
			return NULL;
		text += length;
	} while (*text == '.');
	return text;
}

static bool
is_semantic_version(const char *text)
{
	for (int part = 0; part < 3; part++)
	{
		size_t digits = strspn(text, "0123456789");

		if (digits == 0 || (part < 2 && text[digits] != '.'))
			return false;
		text += part < 2 ? digits + 1 : digits;
	}
	text = skip_identifiers(text, '-');
	if (text != NULL)
		text = skip_identifiers(text, '+');
	return text != NULL && *text == '\0';
}

/* A number of 64 bits. */
static bool
is_integer(const char *text)
{
	size_t sign = *text == '-' ? 1 : 0;
	size_t digits = strspn(text + sign, "0123456789");

	errno = 0;
	(void) strtoll(text, NULL, 10);
	return digits > 0 && text[sign + digits] == '\0' && errno == 0;
}

/* The collector refuses all events that come with another one. */
static bool
check_application_version(char **value, void **extra, GucSource source)
{
	if (!check_name(value, extra, source))
		return false;
	if (**value == '\0' || is_integer(*value) || is_semantic_version(*value))
		return true;
	GUC_check_errdetail("A version is a number or a semantic version, such as "
						"\"12\" or \"1.4.0\".");
	return false;
}

static bool
check_path(char **value, void **extra, GucSource source)
{
	if ((*value)[0] != '\0' && !is_absolute_path(*value))
	{
		GUC_check_errdetail("The file must be given with an absolute path.");
		return false;
	}
	return true;
}

/* A key that is given here in place of its file must not be quoted. */
static bool
check_key_path(char **value, void **extra, GucSource source)
{
	hide_value("absmartly.api_key_file");
	return check_path(value, extra, source);
}

static bool
check_proxy(char **value, void **extra, GucSource source)
{
	if (strchr(*value, '@') != NULL)
		hide_value("absmartly.proxy");
	if (has_control_characters(*value) || strchr(*value, ' ') != NULL)
	{
		GUC_check_errdetail("A proxy has no blanks or control characters.");
		return false;
	}
	if (strchr(*value, '@') != NULL)
	{
		GUC_check_errdetail("A proxy holds no user name or password.");
		return false;
	}
	return true;
}

/*
 * The key itself goes to the setting's extra, and the variable stays empty:
 * the server logs changed variables at a reload.  For the same reason a wrong
 * key gets a message without its value.
 */
static bool
check_api_key(char **value, void **extra, GucSource source)
{
	size_t length = strlen(*value);
	char *key;

	for (const char *c = *value; *c != '\0'; c++)
		if ((unsigned char) *c <= 0x20 || (unsigned char) *c >= 0x7f)
		{
			hide_value("absmartly.api_key");
			GUC_check_errdetail("An API key has no blanks, control characters "
								"or non-ASCII characters.");
			return false;
		}

	if (length > SETTINGS_MAX_API_KEY)
	{
		hide_value("absmartly.api_key");
		GUC_check_errdetail("An API key has at most %d characters.",
							SETTINGS_MAX_API_KEY);
		return false;
	}

	key = setting_alloc(length + 1);
	if (key == NULL)
		return false;
	memcpy(key, *value, length + 1);
	*extra = key;
	(*value)[0] = '\0';
	return true;
}

static void
assign_api_key(const char *value, void *extra)
{
	api_key = extra ? extra : "";
}

static const char *
show_api_key(void)
{
	return api_key[0] != '\0' ? "********" : "";
}

const char *
settings_api_key(void)
{
	return api_key;
}

static bool
check_event_logger(char **value, void **extra, GucSource source)
{
	const char *dot;

	if ((*value)[0] == '\0')
		return true;
	dot = strchr(*value, '.');
	if (dot == NULL || dot == *value || dot[1] == '\0')
	{
		GUC_check_errdetail("The function must be named with its schema, such "
							"as \"audit.absmartly_event\".");
		return false;
	}
	return true;
}

const char *
settings_to_utf8(const char *text)
{
	int length = (int) strlen(text);
	int encoding = GetDatabaseEncoding();
	size_t room = (size_t) length * MAX_CONVERSION_GROWTH + 1;
	char *result;
	Oid conversion;

	if (pg_encoding_verifymbstr(PG_UTF8, text, length) == length)
		return text;
	if (!IsTransactionState() || encoding == PG_SQL_ASCII ||
		encoding == PG_UTF8 || room > MaxAllocSize)
		return NULL;
	conversion = FindDefaultConversionProc(encoding, PG_UTF8);
	if (!OidIsValid(conversion))
		return NULL;
	result = palloc_extended(room, MCXT_ALLOC_NO_OOM);
	if (result == NULL ||
		pg_do_encoding_conversion_buf(
			conversion, encoding, PG_UTF8,
			(unsigned char *) unconstify(char *, text), length,
			(unsigned char *) result, (int) room, true) != length)
		return NULL;
	return result;
}

/* By length, and then by bytes. */
static int
compare_overrides(const void *left, const void *right)
{
	const Override *a = left;
	const Override *b = right;

	if (a->length != b->length)
		return a->length < b->length ? -1 : 1;
	return memcmp(a->name, b->name, a->length);
}

/* A name, which is UTF-8, in the database's encoding where there is one. */
static const char *
name_for_message(const char *name)
{
	return GetDatabaseEncoding() == PG_UTF8
			   ? name
			   : store_message(name, CurrentMemoryContext);
}

static bool
check_overrides(char **value, void **extra, GucSource source)
{
	const char *text = settings_to_utf8(*value);
	OverrideList *list = NULL;
	const JsonNode *root;
	const char *message = NULL;
	Arena arena;
	ArenaSource chunks = arena_malloc_source;
	EngineStatus status;
	bool valid = false;

	if (text == NULL)
	{
		GUC_check_errdetail("It is not valid in UTF-8 or in the database's "
							"encoding.");
		return false;
	}
	chunks.interrupted = interrupt_is_due;
	arena_init(&arena, &chunks);
	status = json_parse(text, strlen(text), ENGINE_MAX_DEPTH, &arena, &root,
						&message);
	if (status == ENGINE_NO_MEMORY)
		GUC_check_errdetail(
			"There was no memory for it, or it was to be given up.");
	else if (status != ENGINE_OK || root->kind != JSON_OBJECT)
	{
		GUC_check_errdetail("It must be a JSON object that maps names of "
							"experiments to variants.");
		GUC_check_errhint("For example: SET absmartly.overrides = "
						  "'{\"checkout_button\": 1}'.");
	}
	else
	{
		size_t size =
			offsetof(OverrideList, entries) + root->count * sizeof(Override);
		char *names;

		for (uint32_t i = 0; i < root->count; i++)
			size += json_member_name(root, i)->count + 1;
		list = setting_alloc(size);
		valid = (list != NULL);
		if (valid)
		{
			list->count = root->count;
			names = (char *) &list->entries[root->count];
		}
		for (uint32_t i = 0; valid && i < root->count; i++)
		{
			const JsonNode *name = json_member_name(root, i);
			const JsonNode *variant = json_member_value(root, i);

			if (variant->kind != JSON_NUMBER ||
				variant->number != floor(variant->number))
			{
				GUC_check_errdetail("The variant of experiment \"%s\" is not "
									"an integer.",
									name_for_message(json_text(name)));
				valid = false;
				break;
			}
			if (variant->number < 0 || variant->number > ENGINE_MAX_VARIANT)
			{
				GUC_check_errdetail("The variant of experiment \"%s\" is not "
									"between 0 and %d.",
									name_for_message(json_text(name)),
									ENGINE_MAX_VARIANT);
				valid = false;
				break;
			}
			memcpy(names, json_text(name), name->count);
			names[name->count] = '\0';
			list->entries[i].name = names;
			list->entries[i].length = name->count;
			list->entries[i].variant = (int32) variant->number;
			names += name->count + 1;
		}
		if (valid)
			qsort(list->entries, list->count, sizeof(Override),
				  compare_overrides);
		if (!valid && list != NULL)
		{
			setting_free(list);
			list = NULL;
		}
	}
	arena_release(&arena);
	*extra = list;
	return valid;
}

static void
assign_overrides(const char *value, void *extra)
{
	overrides = extra;
	settings_have_overrides_flag = overrides != NULL && overrides->count > 0;
}

const int32 *
settings_override(const char *name, size_t length)
{
	const Override wanted = {.name = name, .length = length};
	const Override *found;

	if (overrides == NULL)
		return NULL;
	found = bsearch(&wanted, overrides->entries, overrides->count,
					sizeof(Override), compare_overrides);
	return found ? &found->variant : NULL;
}

static bool
check_databases(char **value, void **extra, GucSource source)
{
	char *copy = pstrdup(*value);
	List *names = NIL;
	bool valid = SplitIdentifierString(copy, ',', &names);

	if (!valid)
		GUC_check_errdetail("It must be a list of names, separated by commas.");
	list_free(names);
	pfree(copy);
	return valid;
}

bool
settings_database_wanted(const char *name)
{
	char *copy;
	List *names = NIL;
	ListCell *cell;
	bool wanted;

	if (settings_databases == NULL)
		return true;
	copy = pstrdup(settings_databases);
	if (!SplitIdentifierString(copy, ',', &names))
		names = NIL;
	wanted = (names == NIL);
	foreach (cell, names)
		wanted |= strcmp(lfirst(cell), name) == 0;
	list_free(names);
	pfree(copy);
	return wanted;
}

static bool
is_one_of(const char *name, const char *const *names, int count)
{
	for (int i = 0; i < count; i++)
		if (pg_strcasecmp(name, names[i]) == 0)
			return true;
	return false;
}

bool
settings_acts_in_worker(const char *name)
{
	static const char *const names[] = {
		"absmartly.endpoint",        "absmartly.api_key_file",
		"absmartly.application",     "absmartly.application_version",
		"absmartly.environment",     "absmartly.refresh_interval",
		"absmartly.connect_timeout", "absmartly.request_timeout",
		"absmartly.max_retries",     "absmartly.publish_delay",
		"absmartly.publishing",      "absmartly.batch_size",
		"absmartly.batch_bytes",     "absmartly.max_connections",
		"absmartly.ca_file",         "absmartly.proxy"};

	return is_one_of(name, names, lengthof(names));
}

bool
settings_is_target(const char *name)
{
	static const char *const names[] = {
		"absmartly.endpoint", "absmartly.application", "absmartly.environment"};

	return is_one_of(name, names, lengthof(names));
}

/*
 * Definitions
 */

static void
define_string(const char *name, const char *description, char **variable,
			  const char *default_value, GucContext context, int flags,
			  GucStringCheckHook check, GucStringAssignHook assign,
			  GucShowHook show)
{
	DefineCustomStringVariable(name, description, NULL, variable, default_value,
							   context, flags, check, assign, show);
}

static void
define_int(const char *name, const char *description, int *variable,
		   int default_value, int min, int max, GucContext context, int flags)
{
	DefineCustomIntVariable(name, description, NULL, variable, default_value,
							min, max, context, flags, NULL, NULL, NULL);
}

static void
define_bool(const char *name, const char *description, bool *variable,
			bool default_value, GucContext context)
{
	DefineCustomBoolVariable(name, description, NULL, variable, default_value,
							 context, 0, NULL, NULL, NULL);
}

static void
define_enum(const char *name, const char *description, int *variable,
			int default_value, const struct config_enum_entry *options)
{
	DefineCustomEnumVariable(name, description, NULL, variable, default_value,
							 options, PGC_USERSET, 0, NULL, NULL, NULL);
}

void
settings_define(void)
{
	define_string("absmartly.endpoint",
				  "Address of the ABsmartly collector, with its version.",
				  &settings_endpoint, "", PGC_SUSET, 0, check_endpoint, NULL,
				  NULL);
	define_string("absmartly.api_key_file",
				  "File that holds the API key for the collector.",
				  &settings_api_key_file, "", PGC_SUSET, GUC_SUPERUSER_ONLY,
				  check_key_path, NULL, NULL);
	define_string(
		"absmartly.api_key", "API key for the collector, if not in a file.",
		&api_key_shown, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY | GUC_NO_SHOW_ALL,
		check_api_key, assign_api_key, show_api_key);
	define_string("absmartly.application",
				  "Name of the application, as it is known to ABsmartly.",
				  &settings_application, "", PGC_SUSET, 0, check_name, NULL,
				  NULL);
	define_string("absmartly.application_version",
				  "Version of the application: a number or a semantic version.",
				  &settings_application_version, "0", PGC_SUSET, 0,
				  check_application_version, NULL, NULL);
	define_string("absmartly.environment",
				  "Environment of the application, such as production.",
				  &settings_environment, "", PGC_SUSET, 0, check_name, NULL,
				  NULL);
	define_int("absmartly.refresh_interval",
			   "Time between two fetches of the experiments; 0: only on "
			   "request.",
			   &settings_refresh_interval, 60, 0, INT_MAX / 1000, PGC_SUSET,
			   GUC_UNIT_S);
	define_int("absmartly.connect_timeout",
			   "Longest time that connecting to the collector may take.",
			   &settings_connect_timeout, 3000, 1, INT_MAX, PGC_SUSET,
			   GUC_UNIT_MS);
	define_int("absmartly.request_timeout",
			   "Longest time that a request to the collector may take.",
			   &settings_request_timeout, 10000, 1, INT_MAX, PGC_SUSET,
			   GUC_UNIT_MS);
	define_int("absmartly.max_retries",
			   "Number of retries before a request to the collector counts as "
			   "failed.",
			   &settings_max_retries, 5, 0, 100, PGC_SUSET, 0);
	define_string("absmartly.ca_file",
				  "File of certificates to trust, instead of the system's.",
				  &settings_ca_file, "", PGC_SUSET, 0, check_path, NULL, NULL);
	define_string("absmartly.proxy", "Proxy for requests to the collector.",
				  &settings_proxy, "", PGC_SUSET, GUC_SUPERUSER_ONLY,
				  check_proxy, NULL, NULL);
	define_string("absmartly.event_logger",
				  "Function that is called with the events of the SDK.",
				  &settings_event_logger, "", PGC_SUSET, 0, check_event_logger,
				  NULL, NULL);
	define_string("absmartly.databases",
				  "Databases that have a worker; empty: all with the "
				  "extension.",
				  &settings_databases, "", PGC_SIGHUP, GUC_LIST_INPUT,
				  check_databases, NULL, NULL);
	define_enum("absmartly.on_not_ready",
				"What an assignment does before any data was loaded.",
				&settings_on_not_ready, ON_NOT_READY_ERROR,
				on_not_ready_options);
	define_enum("absmartly.context_scope",
				"How long a session context lasts that does not say: as long "
				"as the session, or the transaction.",
				&settings_context_scope, CONTEXT_SCOPE_SESSION,
				context_scope_options);
	define_string("absmartly.overrides",
				  "Variants to give instead of the assigned ones, as a JSON "
				  "object.",
				  &overrides_text, "{}", PGC_USERSET, 0, check_overrides,
				  assign_overrides, NULL);
	define_bool("absmartly.include_system_attributes",
				"Lets audiences see application, environment and app_version, "
				"and sends them with events.",
				&settings_include_system_attributes, false, PGC_USERSET);
	define_int("absmartly.publish_delay",
			   "Longest time that an event waits for others to be sent with.",
			   &settings_publish_delay, 1000, 0, INT_MAX / 2, PGC_SUSET,
			   GUC_UNIT_MS);
	define_bool("absmartly.publishing",
				"Sends events to the collector; off: they are kept.",
				&settings_publishing, true, PGC_SUSET);
	define_int("absmartly.batch_size",
			   "Number of contexts in a request to the collector.",
			   &settings_batch_size, 500, 1, 500, PGC_SUSET, 0);
	define_int("absmartly.batch_bytes",
			   "Size of a request to the collector that no other context is "
			   "added to.",
			   &settings_batch_bytes, 4096, 1, 65536, PGC_SUSET, GUC_UNIT_KB);
	define_int("absmartly.max_connections",
			   "Number of requests to the collector at the same time.",
			   &settings_max_connections, 4, 1, 64, PGC_SUSET, 0);
	define_enum("absmartly.durability",
				"Which events go through the outbox: all of the transaction, "
				"goals, or none (memory).",
				&settings_durability, DURABILITY_TRANSACTION,
				durability_options);
	define_bool("absmartly.async_commit",
				"Lets transactions that write nothing but exposures commit "
				"asynchronously.",
				&settings_async_commit, true, PGC_SUSET);
	define_int("absmartly.exposure_dedup_interval",
			   "Time in which an identical exposure is queued once; 0: each "
			   "one is queued.",
			   &settings_exposure_dedup_interval, 600000, 0, INT_MAX / 2,
			   PGC_USERSET, GUC_UNIT_MS);
	define_int("absmartly.outbox_max_size",
			   "Size of a lane of the outbox beyond which exposures for it are "
			   "dropped.",
			   &settings_outbox_max_size, 1024, 1, INT_MAX / 1024, PGC_SUSET,
			   GUC_UNIT_MB);
	define_int("absmartly.max_context_data",
			   "Largest size of the data that a context is made with.",
			   &settings_max_context_data, 16 * 1024, 1, DATA_MAX_TEXT / 1024,
			   PGC_SUSET, GUC_UNIT_KB);
	define_int("absmartly.max_event_size", "Largest size of an event.",
			   &settings_max_event_size, 1024, 1, 16384, PGC_SUSET,
			   GUC_UNIT_KB);
	define_bool("absmartly.historic",
				"Marks events as historic where a call does not say.",
				&settings_historic, false, PGC_USERSET);
	define_enum("absmartly.trigger_errors",
				"What absmartly_track_trigger() does with an error: raise it, "
				"or warn and let the row pass.",
				&settings_trigger_errors, TRIGGER_ERRORS_ERROR,
				trigger_errors_options);

	/* what shared memory is reserved for can't change later */
	if (process_shared_preload_libraries_in_progress)
	{
		define_int("absmartly.dedup_size",
				   "Size of the table of recent exposures.",
				   &settings_dedup_size, 8192, 64, 4194304, PGC_POSTMASTER,
				   GUC_UNIT_KB);
		define_int("absmartly.memory_queue_size",
				   "Size of the queue for events that are not written to the "
				   "outbox.",
				   &settings_memory_queue_size, 16384, 64, 4194304,
				   PGC_POSTMASTER, GUC_UNIT_KB);
	}

	MarkGUCPrefixReserved("absmartly");
}
