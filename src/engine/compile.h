/*
 * compile.h
 *		Context data (protocol 2) compiled into a snapshot's image.
 */
#ifndef ABSMARTLY_ENGINE_COMPILE_H
#define ABSMARTLY_ENGINE_COMPILE_H

#include "arena.h"
#include "json.h"
#include "snapshot.h"

/*
 * How the host stores values.  The bytes returned are copied at once.
 * ENGINE_OK, ENGINE_NO_MEMORY, ENGINE_INTERRUPTED, or ENGINE_UNSTORABLE: the
 * host cannot hold the value (then it counts as broken).  Neither may raise.
 */
typedef struct SnapshotHost
{
	void *context;
	EngineStatus (*store_json)(void *context, const JsonNode *node,
							   const void **bytes, size_t *length);
	EngineStatus (*store_text)(void *context, EngineText text,
							   const void **bytes, size_t *length);
	void (*forget)(void *context); /* the bytes were copied; NULL: no need */
} SnapshotHost;

/* Something that was wrong but did not stop the compiler. */
typedef struct CompileWarning
{
	struct CompileWarning *next;
	const char *text; /* one sentence, no full stop */
} CompileWarning;

typedef struct CompileResult
{
	const SnapImage *snapshot; /* the image, one block in the arena */
	size_t size;
	const CompileWarning *warnings; /* in order */
	const char *message; /* why it failed; NULL if for want of memory */
} CompileResult;

/*
 * Compiles text for clients in environment (data NULL: not known, which only
 * rules for all environments fit; "" is a name like any other).  On success
 * (ENGINE_OK) result->snapshot is set; else result->message says why.  All
 * memory is the arena's.
 *
 * Beside the image, which is there twice at the end, there is memory only for
 * the tree of one experiment and that of one text in it at a time.  The work
 * ends with ENGINE_NO_MEMORY if the arena's source wants it to.
 *
 * Broken parts (DESIGN 5): an experiment whose assignment fields are broken,
 * or whose audience or rules are nested too deep or too large to be read, is
 * left out with one warning that names it and the field; a config or a
 * custom field that is broken counts as empty or null, with one warning.  Of
 * many warnings the first thousand are there, and how many there are more.
 */
extern EngineStatus snapshot_compile(EngineText text, EngineText environment,
									 const SnapshotHost *host, Arena *arena,
									 CompileResult *result);

/*
 * An audience text alone: *expression is NULL where there is no verdict for
 * anybody.  The block is in the arena.
 */
extern EngineStatus audience_compile(EngineText text, Arena *arena,
									 const ExprNode **expression, size_t *size);

#endif /* ABSMARTLY_ENGINE_COMPILE_H */
