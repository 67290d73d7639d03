/*
 * engine.h
 *		What all parts of the engine share.
 *
 * The engine is plain C: it includes no PostgreSQL header, never raises (it
 * returns an EngineStatus), and takes memory only from an Arena or from the
 * host's callbacks.  All text inside is UTF-8, as pointer and length.
 */
#ifndef ABSMARTLY_ENGINE_ENGINE_H
#define ABSMARTLY_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum EngineStatus
{
	ENGINE_OK = 0,
	ENGINE_NO_MEMORY, /* the host has no memory left */
	ENGINE_MALFORMED, /* the text is not what it must be */
	ENGINE_TOO_DEEP, /* nested deeper than the given limit */
	ENGINE_TOO_LARGE, /* exceeds a size the format can hold */
	ENGINE_UNSTORABLE, /* the host cannot hold such a value */
	ENGINE_STACK, /* the host's stack is used up */
	ENGINE_INTERRUPTED /* the host wants the work to end */
} EngineStatus;

/* A piece of UTF-8 text, not terminated. */
typedef struct EngineText
{
	const char *data;
	size_t length;
} EngineText;

/* JSON text nested deeper than this is refused (DESIGN 7.2). */
#define ENGINE_MAX_DEPTH 128
/* Names (units, experiments, variables, fields) longer than this are refused.
 */
#define ENGINE_MAX_NAME 1024
/* Unit values longer than this many characters are refused. */
#define ENGINE_MAX_UID 640

/* the last variant that an exposure may have: the collector takes no other */
#define ENGINE_MAX_VARIANT 127

#define ENGINE_LIKELY(x) __builtin_expect(!!(x), 1)
#define ENGINE_UNLIKELY(x) __builtin_expect(!!(x), 0)

#endif /* ABSMARTLY_ENGINE_ENGINE_H */
