/*
 * store.h
 *		Values of the experiments as the server holds them.
 *
 * The compiler hands its values over here and gets jsonb and text datums in
 * the database's encoding, so that a reader only copies bytes.
 */
#ifndef ABSMARTLY_DATA_STORE_H
#define ABSMARTLY_DATA_STORE_H

#include "postgres.h"

#include "engine/compile.h"
#include "utils/jsonb.h"

/*
 * Makes host store values for the compiler.  What it returns stays valid until
 * its next call; memory is taken from context.  Its functions never raise: what
 * jsonb or the database's encoding cannot hold is ENGINE_UNSTORABLE.
 *
 * A database whose encoding is not UTF-8 looks conversions up, so it must be
 * called in a transaction.
 */
extern void store_host_init(SnapshotHost *host, MemoryContext context);

/*
 * Memory of a context for an arena of the engine.  It serves interrupts of the
 * whole server (barriers) on the way; one that is for this process ends the
 * engine's work, and the caller must CHECK_FOR_INTERRUPTS() then.
 */
extern void store_arena_source(ArenaSource *source, MemoryContext context);

/*
 * A tree as jsonb, in the current memory context.  Its texts stay UTF-8.
 * Raises what jsonb cannot hold: 22P05 for a NUL in a text, 22003 or 54000 for
 * what is too large.
 */
extern Jsonb *store_jsonb(const JsonNode *node);

/*
 * UTF-8 text of the engine for a message, in the database's encoding and in
 * context.  What has no equivalent becomes a question mark; never raises for
 * the text's sake.
 */
extern char *store_message(const char *text, MemoryContext context);

/*
 * UTF-8 text in the database's encoding, NUL-terminated, in the current memory
 * context (it may be text itself, which is NUL-terminated, too).  NULL if the
 * encoding lacks one of its characters.  Needs an open transaction unless the
 * encoding is UTF-8.
 */
extern const char *store_database_text(const char *text, size_t length);

#endif /* ABSMARTLY_DATA_STORE_H */
