/*
 * jsonb_value.h
 *		jsonb read in place: values for the engine, and numbers.
 *
 * Besides units.c, no other file knows how jsonb lies in memory, and none how
 * numeric does.
 */
#ifndef ABSMARTLY_SQL_JSONB_VALUE_H
#define ABSMARTLY_SQL_JSONB_VALUE_H

#include "postgres.h"

#include "fmgr.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"

#include "compat.h"
#include "engine/value.h"

/*
 * A jsonb argument.  Small values from tables come with a short header, which
 * leaves them unaligned: these are moved to the buffer, on the stack, what
 * saves an allocation for each call.
 */
typedef union JsonbBuffer
{
	int32 aligned;
	char bytes[VARATT_SHORT_MAX + VARHDRSZ];
} JsonbBuffer;

static inline const Jsonb *
jsonb_argument(Datum datum, JsonbBuffer *buffer)
{
	struct varlena *value = (struct varlena *) DatumGetPointer(datum);
	Size size;

	if (likely(VARATT_IS_4B_U(value)))
		return (const Jsonb *) value;
	/* a pointer to a toasted value has a short header, too */
	if (VARATT_IS_SHORT(value) && !VARATT_IS_EXTERNAL(value))
	{
		size = VARSIZE_SHORT(value) - VARHDRSZ_SHORT;
		SET_VARSIZE(buffer, size + VARHDRSZ);
		memcpy(VARDATA(buffer), VARDATA_SHORT(value), size);
		return (const Jsonb *) buffer;
	}
	return DatumGetJsonbP(datum);
}

/*
 * Whether a jsonb datum, possibly toasted, holds an object; looks at its first
 * bytes only.
 */
extern bool jsonb_datum_is_object(Datum datum);

/* Values over jsonb in UTF-8, which must outlive them. */
extern const ValueOps jsonb_value_ops;

extern void jsonb_to_value(const Jsonb *jsonb, Value *value);

/*
 * A value of any kind as jsonb, in the database's encoding.  Raises what jsonb
 * cannot hold (store_jsonb()).
 */
extern Jsonb *jsonb_from_value(const Value *value);

/*
 * The same value with its texts in UTF-8; jsonb itself where nothing needs to
 * be converted.
 */
extern const Jsonb *jsonb_to_utf8(const Jsonb *jsonb);

/* Pushes a value of any kind, of the database's encoding. */
extern void jsonb_push_value(JsonbParseState **state, JsonbIteratorToken token,
							 const Jsonb *value);

/* How a number is written as the value of a unit (DESIGN 3.1). */
typedef enum NumberText
{
	NUMBER_TEXT_INTEGRAL, /* by its exact decimal text */
	NUMBER_TEXT_FRACTIONAL, /* as a double, protocol 3 */
	NUMBER_TEXT_TOO_LONG /* integral, but its text is too long */
} NumberText;

/*
 * If number is integral, writes its exact decimal text, of at most
 * ENGINE_MAX_UID characters, to buffer, not terminated.
 */
extern NumberText jsonb_number_text(Numeric number, char buffer[ENGINE_MAX_UID],
									size_t *length);

/*
 * Whether jsonb_number_text() would say that it is too long.  The short form
 * of a numeric, that of nearly all, has at most 256 digits before the point.
 */
#define JSONB_NUMBER_SHORT_FORM 0x8000

extern bool jsonb_number_check_length(Numeric number);

static inline bool
jsonb_number_is_too_long(Numeric number)
{
	uint16 header;

	memcpy(&header, VARDATA_ANY(number), sizeof(header));
	return unlikely((header & JSONB_NUMBER_SHORT_FORM) == 0) &&
		   !jsonb_number_check_length(number);
}

/*
 * The nearest double, correctly rounded; infinite for what is beyond double.
 * Never raises, allocates nothing.
 */
extern double jsonb_number_double(Numeric number);

/* The same, but the largest double for what is beyond (DESIGN 7.2). */
extern double jsonb_number_finite(Numeric number);

/* Whether a number is 0, and not one that is too small for a double. */
extern bool jsonb_number_is_zero(Numeric number);

/*
 * Characters that a number's text has at the very least, worked out without
 * making it: few bytes may stand for some 131,000 digits.
 */
extern Size jsonb_number_least_length(Numeric number);

/* false: number is not integral or out of range */
extern bool jsonb_number_int64(Numeric number, int64 *result);

/* A finite double as the shortest numeric that reads back to it. */
extern Numeric jsonb_number_from_double(double number);

#endif /* ABSMARTLY_SQL_JSONB_VALUE_H */
