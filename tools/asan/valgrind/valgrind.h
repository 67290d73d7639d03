/*
 * valgrind.h
 *		Beside memcheck.h, for sources that want no more than this.
 */
#ifndef ABSMARTLY_ASAN_VALGRIND_H
#define ABSMARTLY_ASAN_VALGRIND_H

#include "memcheck.h"

#endif /* ABSMARTLY_ASAN_VALGRIND_H */
