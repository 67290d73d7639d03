/*
 * text.h
 *		Text at the boundary between SQL and the engine.
 *
 * SQL has text in the database's encoding, the engine has UTF-8.  Where these
 * are the same, and for plain ASCII, nothing is copied.
 */
#ifndef ABSMARTLY_SQL_TEXT_H
#define ABSMARTLY_SQL_TEXT_H

#include "postgres.h"

#include "fmgr.h"
#include "mb/pg_wchar.h"

#include "compat.h"
#include "engine/engine.h"

/* Whether the database's encoding is UTF-8. */
static inline bool
text_database_is_utf8(void)
{
	return GetDatabaseEncoding() == PG_UTF8;
}

extern bool text_is_ascii(const char *data, size_t length);

/*
 * Text of the database as UTF-8; refers to data, or to memory of the current
 * context.  Raises 22021 if an SQL_ASCII database holds something else, and
 * 22P05 for a character that UTF-8 does not have.
 */
extern EngineText text_to_utf8(const char *data, size_t length);

/*
 * UTF-8 text in the database's encoding.  Raises 22P05 for a character that
 * this encoding does not have.
 */
extern EngineText text_from_utf8(const char *data, size_t length);

/* The contents of a text datum with a header of any kind, as UTF-8. */
extern EngineText text_datum_to_utf8(const text *datum);

/*
 * Types whose values stand for their text: those of the server's category of
 * strings, like citext and name, enumerations, and domains over these.  A
 * value's text is what a cast makes of it, which may be the user's code; NULL
 * if that gives none.  Memory that cast keeps is of context.
 */
typedef struct TextCast
{
	bool plain; /* they are texts */
	bool output; /* by the output function, for want of a cast */
	Oid collation;
	FmgrInfo function;
} TextCast;

extern bool text_type_is_string(Oid type);
extern void text_cast_init(TextCast *cast, Oid type, MemoryContext context);
extern const text *text_cast(TextCast *cast, Datum value);

/* UTF-8 text without the blanks around it. */
extern EngineText text_trimmed(EngineText utf8);

/* Whether UTF-8 text has more than so many characters. */
extern bool text_is_longer(EngineText utf8, size_t characters);

/* UTF-8 text for a message: never raises, palloc'd. */
extern char *text_for_message(EngineText utf8);

/*
 * An argument that is data of experiments, in UTF-8.  Raises 54000 above so
 * many bytes, before anything is copied or decompressed; hint may be NULL.
 */
extern EngineText text_data_argument(Datum datum, size_t most,
									 const char *hint);

#endif /* ABSMARTLY_SQL_TEXT_H */
