/*
 * harness.h
 *		Test programs that speak TAP, in as few words as possible.
 */
#ifndef ABSMARTLY_TEST_HARNESS_H
#define ABSMARTLY_TEST_HARNESS_H

#include <stdbool.h>
#include <stddef.h>

/* One test; the format says what it is about. */
extern void tap_ok(bool ok, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* One test that was not run, and why. */
extern void tap_skip(const char *why, ...)
	__attribute__((format(printf, 1, 2)));

/* A remark. */
extern void tap_diag(const char *format, ...)
	__attribute__((format(printf, 1, 2)));

/* Prints the plan; returns the program's exit code. */
extern int tap_done(void);

/*
 * A whole file, with a NUL behind, from malloc(); NULL if there is none.  dir
 * may be NULL: then there is none.
 */
extern char *tap_read_file(const char *dir, const char *name, size_t *length);

#endif /* ABSMARTLY_TEST_HARNESS_H */
