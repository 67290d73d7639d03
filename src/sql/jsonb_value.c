/*
 * jsonb_value.c
 *		jsonb read in place: values for the engine, and numbers.
 *
 * The server's own functions for both make copies and go through text, which
 * costs several times what an assignment does.
 */
#include "postgres.h"

#include <float.h>
#include <math.h>

#include "miscadmin.h"
#include "utils/builtins.h"

#include "data/store.h"
#include "engine/number.h"
#include "sql/jsonb_value.h"
#include "sql/text.h"

/*
 * Numbers
 *
 * A numeric on disk is a header word, in the long form followed by the weight,
 * and digits of base 10000, most significant first; the number is the sum of
 * digit[i] * 10000^(weight - i).  The header's two high bits tell the form:
 *
 *	00, 01	long form, positive or negative; the other bits are the digits shown
 *			after the point
 *	10		short form: bit 13 is the sign, bits 0-6 the weight, signed; bits
 *			7-12 are the digits shown after the point
 *	11		not a number, or infinite: jsonb holds neither
 *
 * Leading and trailing zero digits are not stored; zero has no digits.
 */
#define NUMBER_BASE 10000
#define NUMBER_BASE_DIGITS 4
#define NUMBER_SPECIAL 0xC000

typedef struct Number
{
	const char *digits; /* int16 each, not aligned */
	int count;
	int weight;
	bool negative;
} Number;

static inline void
number_read(Numeric numeric, Number *number)
{
	const char *data = VARDATA_ANY(numeric);
	int size = (int) VARSIZE_ANY_EXHDR(numeric);
	uint16 header;
	int16 weight;

	memcpy(&header, data, sizeof(header));
	if (header & JSONB_NUMBER_SHORT_FORM)
	{
		number->negative = (header & 0x2000) != 0;
		number->weight = (header & 0x003F) - (header & 0x0040);
		number->digits = data + sizeof(header);
		size -= (int) sizeof(header);
	}
	else
	{
		memcpy(&weight, data + sizeof(header), sizeof(weight));
		number->negative = (header & 0x4000) != 0;
		number->weight = weight;
		number->digits = data + sizeof(header) + sizeof(weight);
		size -= (int) (sizeof(header) + sizeof(weight));
	}
	number->count = size / (int) sizeof(int16);
}

static inline int
number_digit(const Number *number, int index)
{
	int16 digit;

	if (index >= number->count)
		return 0;
	memcpy(&digit, number->digits + index * (int) sizeof(digit), sizeof(digit));
	return digit;
}

static inline bool
number_is_integral(const Number *number)
{
	int index;

	for (index = Max(number->weight + 1, 0); index < number->count; index++)
	{
		if (number_digit(number, index) != 0)
			return false;
	}
	return true;
}

/* So many digits fit an int64. */
#define MAX_SMALL_DIGITS 4

/* The first digits as an integer. */
static inline int64
number_small_integer(const Number *number, int count)
{
	int64 integer = 0;
	int index;

	for (index = 0; index < count; index++)
		integer = integer * NUMBER_BASE + number_digit(number, index);
	return integer;
}

/* Writes a digit of base 10000 in full. */
static inline char *
write_digit(char *to, int digit)
{
	to[0] = (char) ('0' + digit / 1000);
	to[1] = (char) ('0' + digit / 100 % 10);
	to[2] = (char) ('0' + digit / 10 % 10);
	to[3] = (char) ('0' + digit % 10);
	return to + NUMBER_BASE_DIGITS;
}

/* The same without leading zeros; nothing for zero. */
static inline char *
write_first_digit(char *to, int digit)
{
	char text[NUMBER_BASE_DIGITS];
	int skip = digit >= 1000  ? 0
			   : digit >= 100 ? 1
			   : digit >= 10  ? 2
			   : digit > 0    ? 3
							  : 4;

	write_digit(text, digit);
	memcpy(to, text + skip, (size_t) (NUMBER_BASE_DIGITS - skip));
	return to + NUMBER_BASE_DIGITS - skip;
}

/* Characters of an integral number's text. */
static int
integral_length(const Number *number)
{
	int first = number_digit(number, 0);

	if (number->count == 0 || number->weight < 0)
		return 1;
	return number->negative + number->weight * NUMBER_BASE_DIGITS +
		   (first >= 1000  ? 4
			: first >= 100 ? 3
			: first >= 10  ? 2
						   : 1);
}

static NumberText
number_kind(const Number *number)
{
	if (!number_is_integral(number))
		return NUMBER_TEXT_FRACTIONAL;
	if (integral_length(number) > ENGINE_MAX_UID)
		return NUMBER_TEXT_TOO_LONG;
	return NUMBER_TEXT_INTEGRAL;
}

bool
jsonb_number_check_length(Numeric numeric)
{
	Number number;

	number_read(numeric, &number);
	return number_kind(&number) != NUMBER_TEXT_TOO_LONG;
}

NumberText
jsonb_number_text(Numeric numeric, char buffer[ENGINE_MAX_UID], size_t *length)
{
	Number number;
	NumberText kind;
	char *to = buffer;
	int index;

	number_read(numeric, &number);

	/* keys, mostly: below 10^16, and integral since no digit is below one */
	if (likely(number.weight >= number.count - 1 &&
			   number.weight < MAX_SMALL_DIGITS))
	{
		int64 integer = number_small_integer(&number, number.weight + 1);

		*length =
			(size_t) pg_lltoa(number.negative ? -integer : integer, buffer);
		return NUMBER_TEXT_INTEGRAL;
	}

	kind = number_kind(&number);
	if (kind != NUMBER_TEXT_INTEGRAL)
		return kind;

	if (number.count == 0 || number.weight < 0)
		*to++ = '0';
	else
	{
		if (number.negative)
			*to++ = '-';
		to = write_first_digit(to, number_digit(&number, 0));
		for (index = 1; index <= number.weight; index++)
			to = write_digit(to, number_digit(&number, index));
	}
	*length = (size_t) (to - buffer);
	return kind;
}

bool
jsonb_number_is_zero(Numeric numeric)
{
	Number number;

	number_read(numeric, &number);
	return number.count == 0;
}

/* The digits after the point are those that the header says are shown. */
Size
jsonb_number_least_length(Numeric numeric)
{
	Number number;
	uint16 header;
	int scale;

	memcpy(&header, VARDATA_ANY(numeric), sizeof(header));
	if ((header & NUMBER_SPECIAL) == NUMBER_SPECIAL)
		return strlen("NaN");
	scale = header & JSONB_NUMBER_SHORT_FORM ? (header & 0x1F80) >> 7
											 : header & 0x3FFF;
	number_read(numeric, &number);
	return (Size) integral_length(&number) + (scale > 0 ? scale + 1 : 0);
}

/*
 * Through text: digits and an exponent.  More digits than any double needs to
 * be told from its neighbours are cut, with one that stands for the rest.
 */
static double
number_through_text(const Number *number)
{
	enum
	{
		MAX_DIGITS = 200
	};
	char text[MAX_DIGITS * NUMBER_BASE_DIGITS + 32];
	char *to = text;
	int count = Min(number->count, MAX_DIGITS);
	int index;

	if (number->negative)
		*to++ = '-';
	for (index = 0; index < count; index++)
		to = write_digit(to, number_digit(number, index));
	if (count < number->count)
		*to++ = '1';
	snprintf(to, 32, "e%d",
			 (number->weight - count + 1) * NUMBER_BASE_DIGITS -
				 (count < number->count));
	return strtod(text, NULL);
}

double
jsonb_number_double(Numeric numeric)
{
	/* powers of 10000 that a double holds exactly: up to 10^20 */
	static const double powers[] = {1e0, 1e4, 1e8, 1e12, 1e16, 1e20};
	Number number;
	int64 mantissa;
	int exponent;
	double result;

	number_read(numeric, &number);

	/*
	 * Where both the digits as an integer and the power are exact, one
	 * multiplication or division rounds correctly.
	 */
	exponent = number.weight - number.count + 1;
	if (number.count <= MAX_SMALL_DIGITS &&
		exponent > -(int) lengthof(powers) && exponent < (int) lengthof(powers))
	{
		mantissa = number_small_integer(&number, number.count);
		if (mantissa <= INT64CONST(1) << DBL_MANT_DIG)
		{
			result = (double) mantissa;
			if (exponent > 0)
				result *= powers[exponent];
			else if (exponent < 0)
				result /= powers[-exponent];
			return number.negative ? -result : result;
		}
	}
	return number_through_text(&number);
}

/*
 * The quick way for what most numbers are: false if number is not integral or
 * has more than 16 digits.
 */
static inline bool
number_is_small(Numeric numeric, int64 *result)
{
	const char *data = VARDATA_ANY(numeric);
	int count = (int) VARSIZE_ANY_EXHDR(numeric) / (int) sizeof(int16) - 1;
	int64 value = 0;
	uint16 header;
	int16 digit;
	int weight;
	int index;

	memcpy(&header, data, sizeof(header));
	weight = (header & 0x003F) - (header & 0x0040);
	if ((header & 0xC000) != 0x8000 || weight > 3 || count > weight + 1)
		return false;
	for (index = 0; index <= weight; index++)
	{
		value *= NUMBER_BASE;
		if (likely(index < count))
		{
			memcpy(&digit, data + sizeof(header) + index * sizeof(digit),
				   sizeof(digit));
			value += digit;
		}
	}
	*result = header & 0x2000 ? -value : value;
	return true;
}

double
jsonb_number_finite(Numeric numeric)
{
	double number;
	int64 small;

	if (likely(number_is_small(numeric, &small)))
		return (double) small;
	number = jsonb_number_double(numeric);
	return Min(Max(number, -DBL_MAX), DBL_MAX);
}

bool
jsonb_number_int64(Numeric numeric, int64 *result)
{
	Number number;
	int64 value = 0;
	int index;

	number_read(numeric, &number);
	if (!number_is_integral(&number))
		return false;
	/* downwards, since the smallest has no positive counterpart */
	for (index = 0; index <= number.weight && number.count > 0; index++)
	{
		if (__builtin_mul_overflow(value, NUMBER_BASE, &value) ||
			__builtin_sub_overflow(value, number_digit(&number, index), &value))
			return false;
	}
	if (!number.negative && __builtin_sub_overflow(0, value, &value))
		return false;
	*result = value;
	return true;
}

Numeric
jsonb_number_from_double(double number)
{
	char text[64];
	size_t length = number_to_shortest(number, text);

	text[length] = '\0';
	return DatumGetNumeric(
		DirectFunctionCall3(numeric_in, CStringGetDatum(text),
							ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
}

/*
 * Values
 */

/* up to so many names a search from the start beats bisection */
#define FEW_NAMES 16

/* extra holds the container's size in bytes. */
static void
container_value(const JsonbContainer *container, uint32 size, Value *value)
{
	value->kind = JsonContainerIsObject(container) ? VALUE_OBJECT : VALUE_ARRAY;
	value->u.container.ops = &jsonb_value_ops;
	value->u.container.node = container;
	value->u.container.extra = size;
}

/*
 * Where a child's data starts, counted from that of the first one: what
 * getJsonbOffset() says.  Most containers are small, so a call of another
 * module would cost more than the loop.
 */
static inline uint32
child_offset(const JsonbContainer *container, uint32 child)
{
	uint32 offset = 0;

	while (child > 0)
	{
		JEntry entry = container->children[--child];

		offset += JBE_OFFLENFLD(entry);
		if (JBE_HAS_OFF(entry))
			break;
	}
	return offset;
}

/*
 * A child of a container.  An object's children are its names, in order, and
 * then their values; base is where the children's data starts.
 */
static inline void
child_value(const JsonbContainer *container, uint32 child, const char *base,
			Value *value)
{
	JEntry entry = container->children[child];
	uint32 offset = child_offset(container, child);
	uint32 length = JBE_OFFLENFLD(entry);

	if (JBE_HAS_OFF(entry))
		length -= offset;
	if (JBE_ISSTRING(entry))
	{
		value->kind = VALUE_STRING;
		value->u.string.data = base + offset;
		value->u.string.length = length;
	}
	else if (JBE_ISNUMERIC(entry))
	{
		value->kind = VALUE_NUMBER;
		value->u.number = jsonb_number_finite(
			(Numeric) unconstify(char *, base + INTALIGN(offset)));
	}
	else if (JBE_ISBOOL(entry))
	{
		value->kind = VALUE_BOOLEAN;
		value->u.boolean = JBE_ISBOOL_TRUE(entry);
	}
	else if (JBE_ISCONTAINER(entry))
		container_value((const JsonbContainer *) (base + INTALIGN(offset)),
						length - (uint32) (INTALIGN(offset) - offset), value);
	else
		value->kind = VALUE_NULL;
}

static uint32_t
container_count(const Value *container)
{
	return JsonContainerSize(
		(const JsonbContainer *) container->u.container.node);
}

static bool
array_element(const Value *array, uint32_t index, Value *result)
{
	const JsonbContainer *container = array->u.container.node;
	uint32 count = JsonContainerSize(container);

	if (index >= count)
		return false;
	child_value(container, index, (const char *) &container->children[count],
				result);
	return true;
}

/*
 * The place of a name in a small object, looked for from the start; count if
 * it is not there.  Names are ordered by length, then by their bytes.
 */
static inline uint32
find_name_in_few(const JsonbContainer *container, uint32 count,
				 const char *base, const char *name, size_t length)
{
	uint32 start = 0;
	uint32 index;

	for (index = 0; index < count; index++)
	{
		uint32 end = start;

		JBE_ADVANCE_OFFSET(end, container->children[index]);
		if (end - start > length)
			break;
		if (end - start == length && memcmp(name, base + start, length) == 0)
			return index;
		start = end;
	}
	return count;
}

/* The same by bisection. */
static uint32
find_name_in_many(const JsonbContainer *container, uint32 count,
				  const char *base, const char *name, size_t length)
{
	uint32 low = 0;
	uint32 high = count;

	while (low < high)
	{
		uint32 middle = low + (high - low) / 2;
		size_t other = getJsonbLength(container, (int) middle);
		int order;

		if (length != other)
			order = length < other ? -1 : 1;
		else
			order = memcmp(name, base + getJsonbOffset(container, (int) middle),
						   length);
		if (order == 0)
			return middle;
		if (order < 0)
			high = middle;
		else
			low = middle + 1;
	}
	return count;
}

static bool
object_member(const Value *object, const char *name, size_t length,
			  Value *result)
{
	const JsonbContainer *container = object->u.container.node;
	uint32 count = JsonContainerSize(container);
	const char *base = (const char *) &container->children[2 * count];
	uint32 place =
		likely(count <= FEW_NAMES)
			? find_name_in_few(container, count, base, name, length)
			: find_name_in_many(container, count, base, name, length);

	if (place == count)
		return false;
	child_value(container, count + place, base, result);
	return true;
}

static void
object_member_at(const Value *object, uint32_t index, EngineText *name,
				 Value *result)
{
	const JsonbContainer *container = object->u.container.node;
	uint32 count = JsonContainerSize(container);
	const char *base = (const char *) &container->children[2 * count];

	name->data = base + getJsonbOffset(container, (int) index);
	name->length = getJsonbLength(container, (int) index);
	child_value(container, count + index, base, result);
}

const ValueOps jsonb_value_ops = {
	.count = container_count,
	.element = array_element,
	.member = object_member,
	.member_at = object_member_at,
};

void
jsonb_to_value(const Jsonb *jsonb, Value *value)
{
	const JsonbContainer *root = &jsonb->root;

	/* a scalar is the element of an array made for it */
	if (JsonContainerIsScalar(root))
		child_value(root, 0, (const char *) &root->children[1], value);
	else
		container_value(root, VARSIZE(jsonb) - VARHDRSZ, value);
}

bool
jsonb_datum_is_object(Datum datum)
{
	struct varlena *value = (struct varlena *) DatumGetPointer(datum);
	uint32 header;

	if (VARATT_IS_EXTERNAL(value) || VARATT_IS_COMPRESSED(value))
		value = PG_DETOAST_DATUM_SLICE(datum, 0, sizeof(header));
	memcpy(&header, VARDATA_ANY(value), sizeof(header));
	return (header & JB_FOBJECT) != 0;
}

/*
 * Whole values
 */

typedef EngineText (*TextConversion)(const char *data, size_t length);

/* Copies a value with all texts converted. */
static Jsonb *
convert_texts(const Jsonb *jsonb, TextConversion conversion)
{
	JsonbIterator *iterator =
		JsonbIteratorInit(unconstify(JsonbContainer *, &jsonb->root));
	JsonbParseState *state = NULL;
	JsonbIteratorToken token;
	JsonbValue *root = NULL;
	JsonbValue value;

	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		CHECK_FOR_INTERRUPTS();
		if ((token == WJB_KEY || token == WJB_VALUE || token == WJB_ELEM) &&
			value.type == jbvString)
		{
			EngineText converted =
				conversion(value.val.string.val, (size_t) value.val.string.len);

			value.val.string.val = unconstify(char *, converted.data);
			value.val.string.len = (int) converted.length;
		}

		/* only names and scalars have a value, and the array around a scalar */
		root = pushJsonbValue(
			&state, token,
			token < WJB_BEGIN_ARRAY ||
					(token == WJB_BEGIN_ARRAY && value.val.array.rawScalar)
				? &value
				: NULL);
	}
	return JsonbValueToJsonb(root);
}

static bool
texts_are_ascii(const Jsonb *jsonb)
{
	JsonbIterator *iterator =
		JsonbIteratorInit(unconstify(JsonbContainer *, &jsonb->root));
	JsonbIteratorToken token;
	JsonbValue value;

	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		CHECK_FOR_INTERRUPTS();
		if ((token == WJB_KEY || token == WJB_VALUE || token == WJB_ELEM) &&
			value.type == jbvString &&
			!text_is_ascii(value.val.string.val, (size_t) value.val.string.len))
			return false;
	}
	return true;
}

const Jsonb *
jsonb_to_utf8(const Jsonb *jsonb)
{
	if (text_database_is_utf8() || texts_are_ascii(jsonb))
		return jsonb;
	return convert_texts(jsonb, text_to_utf8);
}

Jsonb *
jsonb_from_value(const Value *value)
{
	JsonbValue copy;
	Jsonb *result;

	switch (value->kind)
	{
		case VALUE_BOOLEAN:
			copy.type = jbvBool;
			copy.val.boolean = value->u.boolean;
			break;
		case VALUE_NUMBER:
			copy.type = jbvNumeric;
			copy.val.numeric = jsonb_number_from_double(value->u.number);
			break;
		case VALUE_STRING:
			if (value->u.string.length > 0 &&
				memchr(value->u.string.data, '\0', value->u.string.length))
				ereport(ERROR,
						(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
						 errmsg("unsupported Unicode escape sequence"),
						 errdetail("\\u0000 cannot be converted to text.")));
			copy.type = jbvString;
			copy.val.string.val = unconstify(char *, value->u.string.data);
			copy.val.string.len = (int) value->u.string.length;
			break;
		case VALUE_ARRAY:
		case VALUE_OBJECT:
			copy.type = jbvBinary;
			if (value->u.container.ops == &json_value_ops)
			{
				const Jsonb *tree = store_jsonb(value->u.container.node);

				copy.val.binary.data =
					unconstify(JsonbContainer *, &tree->root);
				copy.val.binary.len = (int) (VARSIZE(tree) - VARHDRSZ);
			}
			else
			{
				copy.val.binary.data = (JsonbContainer *) unconstify(
					void *, value->u.container.node);
				copy.val.binary.len = (int) value->u.container.extra;
			}
			break;
		default:
			copy.type = jbvNull;
			break;
	}

	result = JsonbValueToJsonb(&copy);
	if (!text_database_is_utf8() && !texts_are_ascii(result))
		result = convert_texts(result, text_from_utf8);
	return result;
}

void
jsonb_push_value(JsonbParseState **state, JsonbIteratorToken token,
				 const Jsonb *value)
{
	JsonbContainer *root = unconstify(JsonbContainer *, &value->root);
	JsonbValue pushed;

	if (!JsonbExtractScalar(root, &pushed))
	{
		pushed.type = jbvBinary;
		pushed.val.binary.data = root;
		pushed.val.binary.len = (int) (VARSIZE(value) - VARHDRSZ);
	}
	pushJsonbValue(state, token, &pushed);
}
