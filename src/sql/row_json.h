/*
 * row_json.h
 *		Columns of a row as JSON text.
 *
 * The text is what to_json() would give, with two differences: it is in UTF-8,
 * and floating-point numbers are written with as many digits as they need,
 * whatever the session's settings are.
 */
#ifndef ABSMARTLY_SQL_ROW_JSON_H
#define ABSMARTLY_SQL_ROW_JSON_H

#include "postgres.h"

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/uuid.h"

#include "engine/engine.h"

typedef enum ColumnKind
{
	COLUMN_BOOL,
	COLUMN_INT2,
	COLUMN_INT4,
	COLUMN_INT8,
	COLUMN_FLOAT4,
	COLUMN_FLOAT8,
	COLUMN_NUMERIC,
	COLUMN_TEXT, /* or its kin */
	COLUMN_UUID,
	COLUMN_DATE,
	COLUMN_TIMESTAMP,
	COLUMN_TIMESTAMPTZ,
	COLUMN_JSON,
	COLUMN_JSONB,
	COLUMN_OTHER
} ColumnKind;

/* How a column is written; worked out once. */
typedef struct ColumnWriter
{
	ColumnKind kind; /* of a domain: its base type's */
	FmgrInfo to_json; /* COLUMN_OTHER */
} ColumnWriter;

/* Characters of a uuid's canonical text. */
#define UUID_TEXT_LENGTH (2 * UUID_LEN + 4)

extern ColumnKind column_kind(Oid type);

/* Memory that writer keeps is of context. */
extern void column_writer_init(ColumnWriter *writer, Oid type,
							   MemoryContext context);

/* Appends a value that is not null. */
extern void column_write(ColumnWriter *writer, Datum value, StringInfo json);

/*
 * Bytes that column_write() will append at the very least, as far as that is
 * known without looking at the value itself: it may be too large to be fetched
 * for nothing.
 */
extern Size column_least_size(const ColumnWriter *writer, Datum value);

/* Appends a text as a JSON string. */
extern void json_append_string(StringInfo json, EngineText utf8);

/* Writes the canonical text of a uuid, not terminated. */
extern void uuid_to_text(const pg_uuid_t *uuid, char text[UUID_TEXT_LENGTH]);

#endif /* ABSMARTLY_SQL_ROW_JSON_H */
