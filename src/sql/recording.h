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

#include "events/encoding.h"

/*
 * The attributes as they are sent: with absmartly.include_system_attributes
 * those of the system, then those of the jsonb object, or none if it is
 * (Datum) 0, in the order of their names (by bytes); values as JSON text, all
 * in UTF-8.  Raises 22023 if it is no object or a name is too long, 54000 for
 * too many.  NULL if there are none.
 */
extern const EventAttribute *recording_attributes(Datum attributes,
												  uint32 *count);

/*
 * The attributes of the system, at most so many; gives their number.  Values
 * are in memory of the current context.
 */
#define RECORDING_SYSTEM_ATTRIBUTES 5
extern uint32 recording_system_attributes(EventAttribute *attributes);

/* A jsonb value as JSON text in UTF-8. */
extern EngineText recording_json(Datum value);

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
