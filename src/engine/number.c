/*
 * number.c
 *		Numbers and text as JavaScript converts them.
 *
 * Nothing here depends on LC_NUMERIC: what goes to strtod() are digits and an
 * exponent without a decimal point, and of what printf() writes with a point
 * only the digits are used.  Both are expected to round correctly, as those
 * of glibc, musl and the BSDs do.
 */
#include "number.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Numbers from here up are written with an exponent. */
#define EXPONENT_FORM 1e21

/* Integers below this are exact in a double and fit into 64 bits. */
#define EXACT_INTEGER 9007199254740992.0

/*
 * Digits of a number's text that count.  No more than 767 are ever needed to
 * tell on which side of the middle between two doubles a number lies, as long
 * as one more digit says whether anything follows.
 */
#define MAX_DIGITS 800

/* Beyond this an exponent means zero or infinity, whatever the digits are. */
#define MAX_EXPONENT 100000

static const double exact_power_of_ten[] = {
	1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
	1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

/* Writes an integer, with zeros in front up to width; returns the length. */
static size_t
write_integer(uint64_t integer, int width, char *buffer)
{
	char digits[24];
	int count = 0;
	size_t length = 0;

	do
	{
		digits[count++] = (char) ('0' + integer % 10);
		integer /= 10;
	} while (integer != 0);
	while (count < width)
		digits[count++] = '0';
	while (count > 0)
		buffer[length++] = digits[--count];
	return length;
}

static size_t
write_text(const char *text, char *buffer)
{
	size_t length = strlen(text);

	memcpy(buffer, text, length + 1);
	return length;
}

/*
 * fraction * 10^decimals, rounded to an integer with ties upwards; fraction
 * is in (0, 1), decimals at most 15.
 *
 * fraction is a 53-bit integer over a power of two, so the product needs no
 * more than 103 bits: it is built exactly, from 32-bit halves.
 */
static uint64_t
scale_fraction(double fraction, int decimals)
{
	uint64_t factor = (uint64_t) exact_power_of_ten[decimals];
	uint64_t mantissa;
	uint64_t low;
	uint64_t high;
	uint64_t middle;
	int exponent;
	int shift;

	mantissa = (uint64_t) ldexp(frexp(fraction, &exponent), 53);
	shift = 53 - exponent; /* at least 53 */
	if (shift > 104)
		return 0; /* less than a half */

	middle = (mantissa >> 32) * (factor & UINT32_MAX);
	low = (mantissa & UINT32_MAX) * (factor & UINT32_MAX);
	middle += low >> 32; /* cannot overflow: at most 21 + 32 bits */
	high = (mantissa >> 32) * (factor >> 32) + (middle >> 32);
	middle = (middle & UINT32_MAX) + (mantissa & UINT32_MAX) * (factor >> 32);
	high += middle >> 32;
	low = (low & UINT32_MAX) | (middle << 32);

	/* add a half, cut off the rest */
	if (shift <= 64)
	{
		uint64_t half = UINT64_C(1) << (shift - 1);

		low += half;
		if (low < half)
			high++;
		return shift == 64 ? high : (high << (64 - shift)) | (low >> shift);
	}
	high += UINT64_C(1) << (shift - 65);
	return high >> (shift - 64);
}

size_t
number_to_fixed(double number, int decimals, char *buffer)
{
	size_t length = 0;
	double magnitude = fabs(number);
	double whole;
	uint64_t integer;
	uint64_t fraction = 0;

	if (!(magnitude < EXPONENT_FORM))
		return number_to_shortest(number, buffer);
	if (number < 0)
		buffer[length++] = '-';

	if (magnitude < EXACT_INTEGER)
	{
		whole = floor(magnitude);
		integer = (uint64_t) whole;
		if (magnitude != whole)
		{
			fraction = scale_fraction(magnitude - whole, decimals);
			if (fraction == (uint64_t) exact_power_of_ten[decimals])
			{
				fraction = 0;
				integer++;
			}
		}
		length += write_integer(integer, 1, buffer + length);
	}
	else
	{
		/* an integer of at most 21 digits, written without a point */
		length += (size_t) snprintf(buffer + length, 32, "%.0f", magnitude);
	}

	if (decimals > 0)
	{
		buffer[length++] = '.';
		length += write_integer(fraction, decimals, buffer + length);
	}
	buffer[length] = '\0';
	return length;
}

/*
 * The decimal digits of a positive number, rounded to count digits, and the
 * power of ten of the first one.
 */
static void
round_to_digits(double number, int count, char *digits, int *exponent)
{
	char text[40];
	const char *next = text;
	int length = 0;

	(void) snprintf(text, sizeof(text), "%.*e", count - 1, number);
	for (; *next != 'e'; next++)
	{
		if (*next >= '0' && *next <= '9')
			digits[length++] = *next;
	}
	digits[length] = '\0';
	*exponent = (int) strtol(next + 1, NULL, 10);
}

/* Whether digits, the first one standing for 10^exponent, read as number. */
static bool
reads_back(const char *digits, int exponent, double number)
{
	char text[40];

	(void) snprintf(text, sizeof(text), "%se%d", digits,
					exponent - (int) strlen(digits) + 1);
	return strtod(text, NULL) == number;
}

/* The next number of as many digits; false: it would have one more. */
static bool
increment_digits(char *digits)
{
	size_t at = strlen(digits);

	while (at > 0 && digits[at - 1] == '9')
		digits[--at] = '0';
	if (at == 0)
		return false;
	digits[at - 1]++;
	return true;
}

/*
 * The fewest digits that read back.
 *
 * The nearest decimal of so many digits is the only candidate, except above
 * a power of two, where doubles are twice as far apart as below it: there the
 * next decimal above may read back where the nearest, below, does not.
 */
static void
shortest_digits(double number, char *digits, int *exponent)
{
	/* every decimal of 15 digits survives, but not among the denormals */
	int count = number < 2.3e-308 ? 1 : 15;

	for (; count < 17; count++)
	{
		round_to_digits(number, count, digits, exponent);
		if (reads_back(digits, *exponent, number))
			break;
		if (increment_digits(digits) && reads_back(digits, *exponent, number))
			break;
	}
	if (count == 17)
		round_to_digits(number, count, digits, exponent);

	count = (int) strlen(digits);
	while (count > 1 && digits[count - 1] == '0')
		count--;
	digits[count] = '\0';
}

/*
 * The form is that of JavaScript's String(): "0.000001", "1e-7",
 * "100000000000000000000", "1e+21", and "0" also for -0.
 */
size_t
number_to_shortest(double number, char *buffer)
{
	char digits[24];
	size_t length = 0;
	int exponent;
	int count;
	int at;

	if (isnan(number))
		return write_text("NaN", buffer);
	if (isinf(number))
		return write_text(number < 0 ? "-Infinity" : "Infinity", buffer);
	if (number == 0)
		return write_text("0", buffer);
	if (number < 0)
	{
		buffer[length++] = '-';
		number = -number;
	}
	if (number < EXACT_INTEGER && number == floor(number))
	{
		length += write_integer((uint64_t) number, 1, buffer + length);
		buffer[length] = '\0';
		return length;
	}

	shortest_digits(number, digits, &exponent);
	count = (int) strlen(digits);
	if (exponent >= 21 || exponent < -6)
	{
		buffer[length++] = digits[0];
		if (count > 1)
		{
			buffer[length++] = '.';
			memcpy(buffer + length, digits + 1, (size_t) count - 1);
			length += (size_t) count - 1;
		}
		buffer[length++] = 'e';
		buffer[length++] = exponent < 0 ? '-' : '+';
		length += write_integer((uint64_t) abs(exponent), 1, buffer + length);
		buffer[length] = '\0';
		return length;
	}

	if (exponent < 0)
	{
		buffer[length++] = '0';
		buffer[length++] = '.';
		for (at = exponent + 1; at < 0; at++)
			buffer[length++] = '0';
	}
	for (at = 0; at < count || at <= exponent; at++)
	{
		if (at > 0 && at == exponent + 1)
			buffer[length++] = '.';
		buffer[length++] = at < count ? digits[at] : '0';
	}
	buffer[length] = '\0';
	return length;
}

static bool
is_digit(char character)
{
	return character >= '0' && character <= '9';
}

/* What the piece of a text that starts there costs. */
static uint64_t
piece_cost(size_t length, size_t at)
{
	return length - at < WORK_PIECE ? length - at : WORK_PIECE;
}

/* Bytes of the blanks that text begins with. */
static size_t
blanks_at_start(const char *text, size_t length, Work *work)
{
	size_t at = 0;
	size_t blank;

	while ((blank = text_blank_length(text + at, length - at)) > 0 &&
		   work_goes_on(work, 1))
		at += blank;
	return at;
}

/*
 * Reads the longest decimal number without a sign at the start of text:
 * digits with or without a point, and an exponent if it is complete.  Returns
 * its length, 0 if there is none.
 *
 * The result is correctly rounded, whatever the number of digits: those that
 * count are collected as an integer, with the exponent adjusted; small ones
 * are converted by one exact multiplication or division, the others by
 * strtod().
 */
static size_t
read_decimal(const char *text, size_t length, double *number, Work *work)
{
	char digits[MAX_DIGITS + 24];
	int count = 0; /* digits collected, without leading zeros */
	bool more = false; /* something other than zeros was left out */
	bool any = false;
	bool after_point = false;
	int64_t exponent = 0;
	uint64_t integer = 0;
	size_t at;
	size_t end = 0;

	for (at = 0; at < length; at++)
	{
		char character = text[at];

		if (at % WORK_PIECE == 0 && !work_goes_on(work, piece_cost(length, at)))
			return 0;
		if (character == '.' && !after_point)
		{
			after_point = true;
			if (any)
				end = at + 1; /* "5." */
			continue;
		}
		if (!is_digit(character))
			break;
		any = true;
		end = at + 1;
		if (after_point)
			exponent--;
		if (count == 0 && character == '0')
			continue;
		if (count == MAX_DIGITS)
		{
			more = more || character != '0';
			exponent++;
			continue;
		}
		digits[count++] = character;
		if (count <= 19)
			integer = integer * 10 + (uint64_t) (character - '0');
	}
	if (!any)
		return 0;

	if (end < length && (text[end] == 'e' || text[end] == 'E'))
	{
		bool negative = false;
		int64_t given = 0;

		at = end + 1;
		if (at < length && (text[at] == '+' || text[at] == '-'))
			negative = text[at++] == '-';
		if (at < length && is_digit(text[at]))
		{
			for (; at < length && is_digit(text[at]); at++)
			{
				if (at % WORK_PIECE == 0 &&
					!work_goes_on(work, piece_cost(length, at)))
					return 0;
				if (given < INT64_MAX / 100)
					given = given * 10 + (text[at] - '0');
			}
			exponent += negative ? -given : given;
			end = at;
		}
	}

	if (count == 0)
		*number = 0;
	else if (count <= 19 && integer <= (uint64_t) EXACT_INTEGER &&
			 exponent >= -22 && exponent <= 22)
	{
		if (exponent < 0)
			*number = (double) integer / exact_power_of_ten[-exponent];
		else
			*number = (double) integer * exact_power_of_ten[exponent];
	}
	else
	{
		if (more)
		{
			digits[count++] = '1';
			exponent--;
		}
		if (exponent > MAX_EXPONENT)
			exponent = MAX_EXPONENT;
		if (exponent < -MAX_EXPONENT)
			exponent = -MAX_EXPONENT;
		(void) snprintf(digits + count, sizeof(digits) - (size_t) count, "e%d",
						(int) exponent);
		*number = strtod(digits, NULL);
	}
	return end;
}

bool
number_parse_prefix(const char *text, size_t length, double *number, Work *work)
{
	bool negative = false;
	size_t blanks = blanks_at_start(text, length, work);

	text += blanks;
	length -= blanks;
	if (length > 0 && (text[0] == '+' || text[0] == '-'))
	{
		negative = text[0] == '-';
		text++;
		length--;
	}
	if (read_decimal(text, length, number, work) == 0 || isinf(*number))
		return false;
	if (negative)
		*number = -*number;
	return true;
}

/* The value of a digit in any base up to 36, or 36. */
static unsigned
digit_value(char character)
{
	if (is_digit(character))
		return (unsigned) (character - '0');
	if (character >= 'a' && character <= 'z')
		return (unsigned) (character - 'a') + 10;
	if (character >= 'A' && character <= 'Z')
		return (unsigned) (character - 'A') + 10;
	return 36;
}

/*
 * Reads digits of base 2^bits, all of text, rounding to nearest, ties to even.
 */
static bool
read_binary(const char *text, size_t length, unsigned bits, double *number,
			Work *work)
{
	uint64_t mantissa = 0; /* the 60 or so highest bits */
	bool more = false; /* some lower bit is set */
	int64_t exponent = 0;
	size_t at;

	if (length == 0)
		return false;
	for (at = 0; at < length; at++)
	{
		unsigned digit = digit_value(text[at]);

		if (at % WORK_PIECE == 0 && !work_goes_on(work, piece_cost(length, at)))
			return false;
		if (digit >= 1U << bits)
			return false;
		if (mantissa < UINT64_C(1) << 59)
			mantissa = (mantissa << bits) | digit;
		else
		{
			exponent += bits;
			more = more || digit != 0;
		}
	}
	/* the lowest bit of so long a mantissa only decides ties */
	if (more)
		mantissa |= 1;
	if (exponent > MAX_EXPONENT)
		exponent = MAX_EXPONENT;
	*number = ldexp((double) mantissa, (int) exponent);
	return true;
}

bool
number_parse_whole(const char *text, size_t length, double *number, Work *work)
{
	static const char infinity[] = "Infinity";
	EngineText rest = text_trim(text, length, work);
	bool negative = false;

	if (rest.length == 0)
	{
		*number = 0;
		return true;
	}
	if (rest.length > 2 && rest.data[0] == '0')
	{
		unsigned bits = 0;

		if (rest.data[1] == 'x' || rest.data[1] == 'X')
			bits = 4;
		else if (rest.data[1] == 'o' || rest.data[1] == 'O')
			bits = 3;
		else if (rest.data[1] == 'b' || rest.data[1] == 'B')
			bits = 1;
		if (bits != 0)
			return read_binary(rest.data + 2, rest.length - 2, bits, number,
							   work);
	}
	if (rest.data[0] == '+' || rest.data[0] == '-')
	{
		negative = rest.data[0] == '-';
		rest.data++;
		rest.length--;
	}
	if (rest.length == sizeof(infinity) - 1 &&
		memcmp(rest.data, infinity, rest.length) == 0)
		*number = HUGE_VAL;
	else if (rest.length == 0 ||
			 read_decimal(rest.data, rest.length, number, work) != rest.length)
		return false;
	if (negative)
		*number = -*number;
	return true;
}

size_t
text_blank_length(const char *text, size_t length)
{
	const unsigned char *byte = (const unsigned char *) text;

	if (length == 0)
		return 0;
	if (byte[0] < 0x80)
		return byte[0] == ' ' || (byte[0] >= 0x09 && byte[0] <= 0x0d) ? 1 : 0;
	if (byte[0] == 0xc2)
		return length >= 2 && byte[1] == 0xa0 ? 2 : 0; /* U+00A0 */
	if (length < 3)
		return 0;
	switch (byte[0])
	{
		case 0xe1: /* U+1680 */
			return byte[1] == 0x9a && byte[2] == 0x80 ? 3 : 0;
		case 0xe2:
			/* U+2000 to U+200A, U+2028, U+2029, U+202F */
			if (byte[1] == 0x80)
				return (byte[2] >= 0x80 && byte[2] <= 0x8a) ||
							   byte[2] == 0xa8 || byte[2] == 0xa9 ||
							   byte[2] == 0xaf
						   ? 3
						   : 0;
			return byte[1] == 0x81 && byte[2] == 0x9f ? 3 : 0; /* U+205F */
		case 0xe3: /* U+3000 */
			return byte[1] == 0x80 && byte[2] == 0x80 ? 3 : 0;
		case 0xef: /* U+FEFF */
			return byte[1] == 0xbb && byte[2] == 0xbf ? 3 : 0;
		default:
			return 0;
	}
}

EngineText
text_trim(const char *text, size_t length, Work *work)
{
	EngineText result;
	size_t blank = blanks_at_start(text, length, work);

	text += blank;
	length -= blank;
	while (length > 0 && work_goes_on(work, 1))
	{
		/* a blank of 1, 2 or 3 bytes that ends where the text ends */
		for (blank = 1; blank <= 3 && blank <= length; blank++)
		{
			if (text_blank_length(text + length - blank, blank) == blank)
				break;
		}
		if (blank > 3 || blank > length)
			break;
		length -= blank;
	}
	result.data = text;
	result.length = length;
	return result;
}
