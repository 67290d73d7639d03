/*
 * row_json.h
 *		Columns of a row as JSON text.
 *
 * The text is what to_json() gives in UTF-8 under the server's own defaults and
 * in UTC, whatever the session's settings are: the same value has the same
 *text, whoever writes it.  It is not made longer than is allowed: few bytes of
 * numbers can stand for GBs of digits.
 *
 * Casts to json and output functions may be the user's: what is written here
 * is written before anything is looked up that these could change.
 */
#ifndef ABSMARTLY_SQL_ROW_JSON_H
#define ABSMARTLY_SQL_ROW_JSON_H

#include "postgres.h"

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/numeric.h"
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
	COLUMN_MONEY,
	COLUMN_JSON,
	COLUMN_JSONB,
	COLUMN_ARRAY,
	COLUMN_ROW, /* of a composite type, or of none */
	COLUMN_MULTIRANGE, /* of the server's */
	COLUMN_OTHER
} ColumnKind;

/* How a column is written; worked out once. */
typedef struct ColumnWriter
{
	ColumnKind kind; /* of a domain: its base type's */
	Oid type; /* the base type */
	struct ColumnWriter *element; /* COLUMN_ARRAY */
	FmgrInfo to_json; /* COLUMN_OTHER */
	uint32 settings; /* that its text depends on: COLUMN_OTHER, _MULTIRANGE */
} ColumnWriter;

/* Characters of a uuid's canonical text. */
#define UUID_TEXT_LENGTH (2 * UUID_LEN + 4)

extern ColumnKind column_kind(Oid type);

/* Memory that writer keeps is of context. */
extern void column_writer_init(ColumnWriter *writer, Oid type,
							   MemoryContext context);

/*
 * Appends a value that is not null.  False, with a part of it appended at most,
 * if the text would become longer than most bytes.
 */
extern bool column_write(ColumnWriter *writer, Datum value, StringInfo json,
						 Size most);

/* Appends a text as a JSON string. */
extern void json_append_string(StringInfo json, EngineText utf8);

/* Appends what comes from the user, within a bound as column_write(). */
extern bool json_append_text(StringInfo json, EngineText utf8, Size most);
extern bool json_append_bounded_string(StringInfo json, EngineText utf8,
									   Size most);
extern bool json_append_numeric(StringInfo json, Numeric number, Size most);

/* Writes the canonical text of a uuid, not terminated. */
extern void uuid_to_text(const pg_uuid_t *uuid, char text[UUID_TEXT_LENGTH]);

#endif /* ABSMARTLY_SQL_ROW_JSON_H */
