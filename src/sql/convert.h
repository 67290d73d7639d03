/*
 * convert.h
 *		JSON values as values of SQL types (DESIGN 3.1, variables).
 *
 *	jsonb, json			any value as it is, JSON null included
 *	boolean				a JSON boolean
 *	numbers				a JSON number; integral for integers, in range
 *	text and its kin	a string's contents; the JSON text of anything else
 *	any other type		a string that the type's input function takes
 *	domains				as their base type, if the constraints hold
 *
 * JSON null is SQL NULL, except for jsonb and json.
 *
 * Input functions and the checks of domains may be the user's code.  What they
 * get is a copy, and nothing else is read after they have run.  An error of
 * theirs that is about the value says that it does not fit; others, like those
 * of RAISE without a code, are the user's.
 */
#ifndef ABSMARTLY_SQL_CONVERT_H
#define ABSMARTLY_SQL_CONVERT_H

#include "postgres.h"

#include "fmgr.h"
#include "utils/jsonb.h"

typedef enum TargetKind
{
	TARGET_JSONB,
	TARGET_JSON,
	TARGET_BOOLEAN,
	TARGET_INT2,
	TARGET_INT4,
	TARGET_INT8,
	TARGET_FLOAT4,
	TARGET_FLOAT8,
	TARGET_NUMERIC,
	TARGET_TEXT,
	TARGET_OTHER
} TargetKind;

/* How values get to be of a type; worked out once for a call site. */
typedef struct Target
{
	Oid type; /* InvalidOid: not worked out yet */
	TargetKind kind; /* of a domain: its base type's */
	bool by_input; /* goes through the input function */
	Oid io_parameter;
	FmgrInfo input;
} Target;

/* Memory that target keeps is of context. */
extern void target_init(Target *target, Oid type, MemoryContext context);

/*
 * Converts value, of the database's encoding, to a new datum in the current
 * context.  Returns false if it does not fit.
 */
extern bool target_convert(Target *target, const Jsonb *value, Datum *result,
						   bool *is_null);

#endif /* ABSMARTLY_SQL_CONVERT_H */
