/*
 * settings.h
 *		The extension's settings (DESIGN 4).
 *
 * Those that act in the worker hold the worker's effective values only in the
 * worker's own process; backends must read what the worker made of them from
 * shared memory (data/shared.h).
 */
#ifndef ABSMARTLY_SETTINGS_H
#define ABSMARTLY_SETTINGS_H

#include "postgres.h"

typedef enum OnNotReady
{
	ON_NOT_READY_ERROR,
	ON_NOT_READY_CONTROL
} OnNotReady;

typedef enum Durability
{
	DURABILITY_TRANSACTION, /* all events go through the outbox */
	DURABILITY_GOALS, /* exposures go through memory */
	DURABILITY_MEMORY /* all do */
} Durability;

typedef enum TriggerErrors
{
	TRIGGER_ERRORS_ERROR,
	TRIGGER_ERRORS_WARNING
} TriggerErrors;

typedef enum ContextScope
{
	CONTEXT_SCOPE_SESSION,
	CONTEXT_SCOPE_TRANSACTION
} ContextScope;

/* acting in the worker */
extern char *settings_endpoint;
extern char *settings_api_key_file;
extern char *settings_application;
extern char *settings_application_version;
extern char *settings_environment;
extern int settings_refresh_interval; /* s */
extern int settings_connect_timeout; /* ms */
extern int settings_request_timeout; /* ms */
extern int settings_max_retries;
extern int settings_publish_delay; /* ms */
extern bool settings_publishing;
extern int settings_batch_size; /* contexts */
extern int settings_batch_bytes; /* kB */
extern int settings_max_connections;
extern char *settings_ca_file;
extern char *settings_proxy;
extern char *settings_event_logger;

/* acting in the launcher */
extern char *settings_databases;

/* at server start */
extern int settings_dedup_size; /* kB */
extern int settings_memory_queue_size; /* kB */

/* acting in backends */
extern int settings_durability;
extern bool settings_async_commit;
extern int settings_exposure_dedup_interval; /* ms */
extern int settings_outbox_max_size; /* MB */
extern int settings_max_event_size; /* kB */
extern int settings_max_context_data; /* kB */
extern bool settings_historic;
extern int settings_trigger_errors;
extern int settings_on_not_ready;
extern int settings_context_scope;
extern bool settings_include_system_attributes;

/* characters that an API key may have */
#define SETTINGS_MAX_API_KEY 1024

/* The API key of the configuration file, or "".  Never log it. */
extern const char *settings_api_key(void);

/*
 * The variant that absmartly.overrides gives an experiment, by its name in
 * UTF-8; NULL if none.  settings_have_overrides() is the cheap question to ask
 * first.
 */
extern bool settings_have_overrides_flag;
#define settings_have_overrides() (settings_have_overrides_flag)
extern const int32 *settings_override(const char *name, size_t length);

/* Whether absmartly.databases lets this database have a worker. */
extern bool settings_database_wanted(const char *name);

/*
 * Whether a setting acts in the workers alone, so that a role's value would
 * be of no effect; and whether it says what data is fetched for.
 */
extern bool settings_acts_in_worker(const char *name);
extern bool settings_is_target(const char *name);

/*
 * A setting's text in UTF-8, palloc'd or text itself: that of ALTER DATABASE is
 * in the database's encoding, that of the configuration file in any.  NULL if
 * it can't be converted, which needs a transaction.  Raises nothing: a role
 * with such a setting must be able to log in.
 */
extern const char *settings_to_utf8(const char *text);

/* Defines all settings. */
extern void settings_define(void);

#endif /* ABSMARTLY_SETTINGS_H */
