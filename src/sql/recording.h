/*
 * recording.h
 *		What functions that record events have in common: units, attributes,
 *		properties and times as events have them (DESIGN 3.1).
 *
 * What is given refers to the arguments, or to memory of the current context.
 */
#ifndef ABSMARTLY_SQL_RECORDING_H
#define ABSMARTLY_SQL_RECORDING_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "lib/stringinfo.h"

#include "compat.h"
#include "events/encoding.h"

/*
 * The attributes as they are sent: with absmartly.include_system_attributes
 * those of the system, then those of the jsonb object, or none if it is
 * (Datum) 0, in the order of their names (by bytes); values as JSON text, all
 * in UTF-8.  Raises 22023 if it is no object or a name is too long, 54000 for
 * too many, and for what is larger than an event may be; with fits that one
 * only says so there.  NULL if there are none.
 */
extern const EventAttribute *recording_attributes(Datum attributes,
												  uint32 *count, bool *fits);

/*
 * The attributes of the system, at most so many; gives their number.  Values
 * are in memory of the current context.
 */
#define RECORDING_SYSTEM_ATTRIBUTES 5
extern uint32 recording_system_attributes(EventAttribute *attributes);

/*
 * A jsonb value as JSON text in UTF-8.  No text is made that is larger than an
 * event may be: a jsonb of some kB can hold numbers with GBs of digits.
 * recording_append_json() gives false then, with a part of it appended, and
 * recording_json() raises 54000; what is the word for it, in the plural.
 */
extern bool recording_append_json(StringInfo json, Datum value, Size most);
extern EngineText recording_json(Datum value, const char *what);

/*
 * JSON that is nested deeper than a collector reads does not fit, either: false
 * for such a depth.  recording_take_too_deep() says whether that was the reason
 * the last time, once.
 */
extern bool recording_fits_depth(int depth);
extern bool recording_take_too_deep(void);

/* Bytes of text that an event may have, and the error for more. */
extern Size recording_most_json(void);
pg_noreturn extern void recording_raise_too_large(const char *what);

/*
 * The name of a goal, in UTF-8.  Raises 22023 if it is empty or too long.
 */
extern EngineText recording_goal_name(const text *name);

/*
 * A time in ms since the epoch, rounded down.  Raises 22008 for infinity; what
 * is the word for it in the message.
 */
extern int64 recording_time_ms(TimestampTz time, const char *what);

#endif /* ABSMARTLY_SQL_RECORDING_H */
