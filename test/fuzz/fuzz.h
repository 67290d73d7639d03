/*
 * fuzz.h
 *		What the fuzz targets share.
 */
#ifndef ABSMARTLY_TEST_FUZZ_H
#define ABSMARTLY_TEST_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* The target: one input, which is not terminated. */
extern int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif /* ABSMARTLY_TEST_FUZZ_H */
