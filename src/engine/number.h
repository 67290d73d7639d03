/*
 * number.h
 *		Numbers and text as JavaScript converts them (protocol 3, 5, 6).
 */
#ifndef ABSMARTLY_ENGINE_NUMBER_H
#define ABSMARTLY_ENGINE_NUMBER_H

#include "engine.h"
#include "work.h"

/*
 * Number(text).toFixed(decimals) for decimals 0..15: correctly rounded from
 * the binary value with ties away from zero, exponent form from 1e21 up.
 * buffer has room for 64 bytes; returns the length.  (toFixed of -0.4 with no
 * decimals is "-0", of -0.0 it is "0".)
 */
extern size_t number_to_fixed(double number, int decimals, char *buffer);

/* Shortest text that reads back to the same double; buffer of 64 bytes. */
extern size_t number_to_shortest(double number, char *buffer);

/* parseFloat(): longest prefix; false: none, or not finite. */
extern bool number_parse_prefix(const char *text, size_t length, double *number,
								Work *work);

/*
 * Number(): the whole text, blanks around it allowed, "" is 0, prefixes 0x,
 * 0o, 0b; false: NaN.  "Infinity" gives an infinite double.
 */
extern bool number_parse_whole(const char *text, size_t length, double *number,
							   Work *work);

/*
 * Cuts the blanks of protocol 3 (JavaScript's white space) from both ends.
 */
extern EngineText text_trim(const char *text, size_t length, Work *work);

/* Bytes of a blank that starts at text, 0 if there is none. */
extern size_t text_blank_length(const char *text, size_t length);

#endif /* ABSMARTLY_ENGINE_NUMBER_H */
