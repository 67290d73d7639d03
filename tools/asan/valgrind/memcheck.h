/*
 * memcheck.h
 *		Valgrind's requests, made to the address sanitizer.
 *
 * A PostgreSQL that is compiled with USE_VALGRIND tells Valgrind which memory of
 * its contexts and buffers may be used.  With this header, found instead of
 * Valgrind's, it tells the address sanitizer: which then knows as much of
 * palloc() as of malloc().
 */
#ifndef ABSMARTLY_ASAN_MEMCHECK_H
#define ABSMARTLY_ASAN_MEMCHECK_H

#include <sanitizer/asan_interface.h>

#define VALGRIND_MAKE_MEM_NOACCESS(address, size) \
	ASAN_POISON_MEMORY_REGION(address, size)
#define VALGRIND_MAKE_MEM_UNDEFINED(address, size) \
	ASAN_UNPOISON_MEMORY_REGION(address, size)
#define VALGRIND_MAKE_MEM_DEFINED(address, size) \
	ASAN_UNPOISON_MEMORY_REGION(address, size)

#define VALGRIND_CREATE_MEMPOOL(pool, redzone, zeroed) ((void) 0)
#define VALGRIND_DESTROY_MEMPOOL(pool) ((void) 0)
#define VALGRIND_MEMPOOL_ALLOC(pool, address, size) \
	ASAN_UNPOISON_MEMORY_REGION(address, size)
#define VALGRIND_MEMPOOL_CHANGE(pool, before, address, size) \
	ASAN_UNPOISON_MEMORY_REGION(address, size)
/* what is freed has been overwritten, and is told to be no more accessible */
#define VALGRIND_MEMPOOL_FREE(pool, address) ((void) 0)
#define VALGRIND_MEMPOOL_TRIM(pool, address, size) ((void) 0)

/* the sanitizer does not know what has been written to */
#define VALGRIND_CHECK_MEM_IS_DEFINED(address, size) (0)
#define VALGRIND_GET_VBITS(address, bits, size) (0)

#define VALGRIND_COUNT_ERRORS 0
#define VALGRIND_PRINTF(...) ((void) 0)
#define RUNNING_ON_VALGRIND 0

#endif /* ABSMARTLY_ASAN_MEMCHECK_H */
