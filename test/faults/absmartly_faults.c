/*
 * absmartly_faults.c
 *		Allocations that fail when a test wants them to.
 *
 * A module of its own, beside the extension in shared_preload_libraries: so the
 * extension that is tested is the one that is used, and has nothing of this.
 * What can fail is
 *
 * - what the server's memory contexts give to anybody, be it this extension or
 *	 the server's own code below it: the table of their methods is changed;
 * - what libcurl, PCRE2 and the extension get from malloc() and its kin, the
 *extension's entries in hash tables, lists, contexts, and its shared memory
 *(dsa): the slots by which they call these are changed.
 *
 * An allocation counts if the extension is among its callers, in the process
 * that is chosen.  What fails is remembered by its stack.  So two ways of
 * testing are possible: the nth allocation fails, and that for n = 1, 2, ...;
 * or, in the course of other work, each place fails once ("sweep").
 *
 * Not made to fail is what the server itself does not survive: allocations in
 * critical sections, its own when a transaction has already ended, and a few
 * others.  An allocation of the extension's own in a critical section is
 * reported.
 */
#include "postgres.h"

#include <dlfcn.h>
#include <elf.h>
#include <execinfo.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "access/xact.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/memnodes.h"
#include "nodes/pg_list.h"
#include "port/atomics.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/dsa.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#if PG_VERSION_NUM >= 160000
#include "utils/memutils_internal.h"
#endif

PG_MODULE_MAGIC;

#define MAX_FRAMES 48
/* of them, those that tell one stack from another */
#define TELLING_FRAMES 20
#define MAX_STACKS 65536
#define MAX_PLACE 4096

/* What is to fail, and what has happened; in shared memory. */
typedef struct Control
{
	int pid; /* of the process; 0: those of the type; -1: none */
	char type[BGW_MAXLEN]; /* of background workers */
	bool distinct; /* a stack counts once */
	bool sweep; /* it fails once: it counts as long as it has not failed */
	int64 gap; /* so many succeed before the next one fails */
	pg_atomic_uint64 before; /* so many succeed before this one fails */
	pg_atomic_uint64 left; /* so many fail */
	pg_atomic_uint64 seen;
	pg_atomic_uint64 failed;
	pg_atomic_uint64 critical; /* own allocations in critical sections */
	char place[MAX_PLACE]; /* where the last one failed */
	uint64 stacks[MAX_STACKS];
} Control;

void _PG_init(void);

PG_FUNCTION_INFO_V1(absmartly_faults_begin);
PG_FUNCTION_INFO_V1(absmartly_faults_end);
PG_FUNCTION_INFO_V1(absmartly_faults_status);

static Control *control = NULL;
static shmem_request_hook_type previous_request = NULL;
static shmem_startup_hook_type previous_startup = NULL;

static uintptr_t own_start = 0;
static uintptr_t own_end = 0;
static bool deciding = false;

/*
 * Whether this allocation fails
 */

static bool
is_chosen_process(void)
{
	int pid = control->pid;

	if (pid > 0)
		return pid == MyProcPid;
	return pid == 0 && MyBgworkerEntry != NULL &&
		   strcmp(MyBgworkerEntry->bgw_type, control->type) == 0;
}

static bool
is_own(const void *address)
{
	return (uintptr_t) address >= own_start && (uintptr_t) address < own_end;
}

/* The function that an address is in; what has been asked is remembered. */
static const char *
function_of(void *address)
{
	static struct
	{
		void *address;
		const char *name;
	} known[8192];
	int at = (uintptr_t) address % lengthof(known);

	if (known[at].address != address)
	{
		Dl_info info;

		known[at].name = dladdr(address, &info) != 0 ? info.dli_sname : NULL;
		known[at].address = address;
	}
	return known[at].name;
}

/* Whether one of the frames is of one of these functions. */
static bool
has_frame_of(void *const *frames, int count, const char *const *names)
{
	for (int i = 0; i < count && *names != NULL; i++)
	{
		const char *function = function_of(frames[i]);

		if (function == NULL)
			continue;
		for (const char *const *name = names; *name != NULL; name++)
			if (strcmp(function, *name) == 0)
				return true;
	}
	return false;
}

/* What hooks of the extension call: the server would do that without it. */
static const char *const passed_on[] = {"standard_ExecutorStart",
										"standard_ExecutorRun",
										"standard_ExecutorFinish",
										"standard_ExecutorEnd",
										"standard_ProcessUtility",
										"standard_planner",
										NULL};

/* How transactions, and processes, end. */
static const char *const ends[] = {"CommitTransactionCommand",
								   "AbortCurrentTransaction",
								   "AbortOutOfAnyTransaction",
								   "ReleaseCurrentSubTransaction",
								   "RollbackAndReleaseCurrentSubTransaction",
								   "proc_exit",
								   "shmem_exit",
								   NULL};

/* What the server does not survive itself, in a subtransaction. */
static const char *const fragile[] = {"LockAcquireExtended", NULL};

/* Where newer servers end the session themselves rather than raise. */
static const char *const deadly[] = {
#if PG_VERSION_NUM >= 170000
	"BeginInternalSubTransaction",
#endif
	NULL};

static bool
transaction_is_ending(void)
{
	return proc_exit_inprogress ||
		   (GetCurrentTransactionNestLevel() > 0 && !IsTransactionState());
}

/* Whether a stack is new; keep has it be old from now on. */
static bool
is_new_stack(uint64 hash, bool keep)
{
	uint32 at = (uint32) (hash % MAX_STACKS);

	for (int i = 0; i < MAX_STACKS; i++, at = (at + 1) % MAX_STACKS)
	{
		if (control->stacks[at] == hash)
			return false;
		if (control->stacks[at] == 0)
		{
			if (keep)
				control->stacks[at] = hash;
			return true;
		}
	}
	return false;
}

/* Writes down the stack, the innermost frame first. */
static void
note_place(void *const *frames, int count)
{
	size_t at = 0;

	for (int i = 0; i < count && at < MAX_PLACE - 1; i++)
	{
		Dl_info info;
		const char *file;

		if (dladdr(frames[i], &info) == 0)
			continue;
		file = strrchr(info.dli_fname, '/');
		at += snprintf(
			control->place + at, MAX_PLACE - at, "%s%s(%s+0x%lx)",
			i > 0 ? " < " : "", info.dli_sname ? info.dli_sname : "",
			file ? file + 1 : info.dli_fname,
			(unsigned long) ((char *) frames[i] - (char *) info.dli_fbase));
	}
}

/* Judges an allocation of the chosen process. */
static pg_noinline bool
judge(void)
{
	void *frames[MAX_FRAMES];
	int count = backtrace(frames, MAX_FRAMES);
	int own = 0;
	bool in_hook = false;
	uint64 hash = UINT64CONST(14695981039346656037);

	for (; own < count; own++)
	{
		/* hooks call those of before, and these the server's function */
		in_hook = is_own(frames[own]) && own > 0 &&
				  (in_hook || has_frame_of(&frames[own - 1], 1, passed_on));
		if (is_own(frames[own]) && !in_hook)
			break;
	}
	if (own == count)
		return false;
	if (CritSectionCount > 0)
	{
		/* straight from the extension, but for a few layers of pallocs */
		if (own <= 6)
		{
			pg_atomic_fetch_add_u64(&control->critical, 1);
			note_place(frames, count);
		}
		return false;
	}
	if (transaction_is_ending() && has_frame_of(frames, own, ends))
		return false;
	if (has_frame_of(frames, own, deadly))
		return false;
	if (IsSubTransaction() && has_frame_of(frames, own, fragile))
		return false;

	for (int i = 0; i < count && i < TELLING_FRAMES; i++)
		hash = (hash ^ (uintptr_t) frames[i]) * UINT64CONST(1099511628211);
	if (control->distinct && !is_new_stack(hash, !control->sweep))
		return false;
	pg_atomic_fetch_add_u64(&control->seen, 1);
	if (pg_atomic_read_u64(&control->before) > 0)
	{
		pg_atomic_fetch_sub_u64(&control->before, 1);
		return false;
	}
	if (pg_atomic_read_u64(&control->left) == 0)
		return false;
	pg_atomic_fetch_sub_u64(&control->left, 1);
	pg_atomic_write_u64(&control->before, control->gap);
	(void) is_new_stack(hash, true);
	note_place(frames, count);
	/* a crash forgets what is in memory */
	write_stderr("absmartly_faults [%d]: %s\n", MyProcPid, control->place);
	pg_atomic_fetch_add_u64(&control->failed, 1);
	return true;
}

static bool
must_fail(void)
{
	bool fails;

	/* the postmaster has no memory that it shares after a crash */
	if (!IsUnderPostmaster || likely(control == NULL || control->pid < 0) ||
		deciding || !is_chosen_process() || syscall(SYS_gettid) != MyProcPid)
		return false;
	deciding = true;
	fails = judge();
	deciding = false;
	return fails;
}

_Noreturn static void
raise_out_of_memory(const char *what)
{
	ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory"),
					errdetail("Failed by a test in %s.", what)));
}

/*
 * Memory contexts
 */

/*
 * The server's statistics keep an entry whose reference could not be allocated,
 * and with assertions a session ends by that at its end.
 */
static bool
is_spared(MemoryContext context)
{
	return context == ErrorContext ||
		   strcmp(context->name, "PgStat Shared Ref") == 0;
}

#if PG_VERSION_NUM >= 170000
static void *(*original_alloc)(MemoryContext, Size, int);
static void *(*original_realloc)(void *, Size, int);

static void *
failing_alloc(MemoryContext context, Size size, int flags)
{
	if (!is_spared(context) && must_fail())
		return MemoryContextAllocationFailure(context, size, flags);
	return original_alloc(context, size, flags);
}

static void *
failing_realloc(void *pointer, Size size, int flags)
{
	MemoryContext context = GetMemoryChunkContext(pointer);

	if (!is_spared(context) && must_fail())
		return MemoryContextAllocationFailure(context, size, flags);
	return original_realloc(pointer, size, flags);
}
#else
static void *(*original_alloc)(MemoryContext, Size);

static void *
failing_alloc(MemoryContext context, Size size)
{
	if (!is_spared(context) && must_fail())
		return NULL;
	return original_alloc(context, size);
}

#if PG_VERSION_NUM >= 160000
static void *(*original_realloc)(void *, Size);

static void *
failing_realloc(void *pointer, Size size)
{
	if (GetMemoryChunkContext(pointer) != ErrorContext && must_fail())
		return NULL;
	return original_realloc(pointer, size);
}
#else
static void *(*original_realloc)(MemoryContext, void *, Size);

static void *
failing_realloc(MemoryContext context, void *pointer, Size size)
{
	if (!is_spared(context) && must_fail())
		return NULL;
	return original_realloc(context, pointer, size);
}
#endif
#endif

/* Writes to a place that may be read-only. */
static void
overwrite(void *place, const void *value)
{
	uintptr_t page = (uintptr_t) sysconf(_SC_PAGESIZE);
	uintptr_t start = (uintptr_t) place & ~(page - 1);
	size_t length = (uintptr_t) place + sizeof(void *) - start;

	if (mprotect((void *) start, length, PROT_READ | PROT_WRITE) != 0)
		elog(ERROR, "could not make memory writable: %m");
	memcpy(place, &value, sizeof(void *));
}

#if PG_VERSION_NUM >= 160000
/* Looks for the table of methods in what the server's program has loaded. */
static int
find_methods(struct dl_phdr_info *info, size_t size, void *argument)
{
	MemoryContextMethods **found = argument;

	if (info->dlpi_name[0] != '\0')
		return 0;
	for (int i = 0; i < info->dlpi_phnum && *found == NULL; i++)
	{
		const ElfW(Phdr) *header = &info->dlpi_phdr[i];
		char *start = (char *) info->dlpi_addr + header->p_vaddr;

		if (header->p_type != PT_LOAD || !(header->p_flags & PF_R))
			continue;
		for (char *at = start;
			 at + sizeof(MemoryContextMethods) <= start + header->p_memsz;
			 at += sizeof(void *))
		{
			MemoryContextMethods *methods = (MemoryContextMethods *) at;

			if ((void *) methods->alloc == (void *) AllocSetAlloc &&
				(void *) methods->realloc == (void *) AllocSetRealloc &&
				(void *) methods->reset == (void *) AllocSetReset)
			{
				*found = methods;
				break;
			}
		}
	}
	return 1;
}
#endif

static void
change_methods(void)
{
	MemoryContextMethods *methods = NULL;

#if PG_VERSION_NUM >= 160000
	dl_iterate_phdr(find_methods, &methods);
	if (methods == NULL)
		elog(ERROR, "could not find the methods of memory contexts");
#else
	methods = unconstify(MemoryContextMethods *, TopMemoryContext->methods);
#endif
	original_alloc = methods->alloc;
	original_realloc = methods->realloc;
	overwrite(&methods->alloc, failing_alloc);
	overwrite(&methods->realloc, failing_realloc);
}

/*
 * Functions that libraries call
 */

static void *
failing_malloc(size_t size)
{
	return must_fail() ? NULL : malloc(size);
}

static void *
failing_calloc(size_t count, size_t size)
{
	return must_fail() ? NULL : calloc(count, size);
}

static void *
failing_libc_realloc(void *pointer, size_t size)
{
	return must_fail() ? NULL : realloc(pointer, size);
}

static char *
failing_strdup(const char *text)
{
	return must_fail() ? NULL : strdup(text);
}

static char *
failing_strndup(const char *text, size_t size)
{
	return must_fail() ? NULL : strndup(text, size);
}

static int pg_attribute_printf(2, 0)
	failing_vasprintf(char **result, const char *format, va_list arguments)
{
	if (must_fail())
	{
		*result = NULL;
		return -1;
	}
	return vasprintf(result, format, arguments);
}

static MemoryContext
failing_context_create(MemoryContext parent, const char *name, Size least,
					   Size initial, Size most)
{
	if (must_fail())
		raise_out_of_memory("AllocSetContextCreate");
	return AllocSetContextCreateInternal(parent, name, least, initial, most);
}

static dsa_pointer
failing_dsa_allocate(dsa_area *area, size_t size, int flags)
{
	if (must_fail())
	{
		if (flags & DSA_ALLOC_NO_OOM)
			return InvalidDsaPointer;
		raise_out_of_memory("dsa_allocate");
	}
	return dsa_allocate_extended(area, size, flags);
}

static void *
failing_hash_search(HTAB *table, const void *key, HASHACTION action,
					bool *found)
{
	if ((action == HASH_ENTER || action == HASH_ENTER_NULL) &&
		hash_search(table, key, HASH_FIND, NULL) == NULL && must_fail())
	{
		if (action == HASH_ENTER_NULL)
		{
			if (found != NULL)
				*found = false;
			return NULL;
		}
		raise_out_of_memory("hash_search");
	}
	return hash_search(table, key, action, found);
}

static List *
failing_lappend(List *list, void *datum)
{
	if (must_fail())
		raise_out_of_memory("lappend");
	return lappend(list, datum);
}

static void
failing_enlarge(StringInfo text, int needed)
{
	if (must_fail())
		raise_out_of_memory("enlargeStringInfo");
	enlargeStringInfo(text, needed);
}

static void
failing_append_char(StringInfo text, char character)
{
	if (must_fail())
		raise_out_of_memory("appendStringInfoChar");
	appendStringInfoChar(text, character);
}

static void
failing_append_string(StringInfo text, const char *string)
{
	if (must_fail())
		raise_out_of_memory("appendStringInfoString");
	appendStringInfoString(text, string);
}

static void
failing_append_binary(StringInfo text, const void *data, int length)
{
	if (must_fail())
		raise_out_of_memory("appendBinaryStringInfo");
	appendBinaryStringInfo(text, data, length);
}

typedef struct Change
{
	const char *name;
	void *function;
	bool own; /* for the extension only */
} Change;

static const Change changes[] = {
	{"malloc", failing_malloc, false},
	{"calloc", failing_calloc, false},
	{"realloc", failing_libc_realloc, false},
	{"strdup", failing_strdup, false},
	{"__strdup", failing_strdup, false},
	{"strndup", failing_strndup, false},
	{"vasprintf", (void *) failing_vasprintf, false},
	{"AllocSetContextCreateInternal", failing_context_create, true},
	{"dsa_allocate_extended", failing_dsa_allocate, true},
	{"hash_search", failing_hash_search, true},
	{"lappend", failing_lappend, true},
	{"enlargeStringInfo", failing_enlarge, true},
	{"appendStringInfoChar", failing_append_char, true},
	{"appendStringInfoString", failing_append_string, true},
	{"appendBinaryStringInfo", failing_append_binary, true}};

/* The address that the dynamic section gives, which may be relative. */
static void *
resolve(const struct dl_phdr_info *info, ElfW(Addr) address)
{
	return (void *) (address < info->dlpi_addr ? info->dlpi_addr + address
											   : address);
}

static void
change_slots(const struct dl_phdr_info *info, const ElfW(Rela) * relocations,
			 size_t count, const ElfW(Sym) * symbols, const char *strings,
			 bool own)
{
	for (size_t i = 0; i < count; i++)
	{
#if defined(__x86_64__)
		uint32 type = ELF64_R_TYPE(relocations[i].r_info);
		bool slot = type == R_X86_64_JUMP_SLOT || type == R_X86_64_GLOB_DAT;
#elif defined(__aarch64__)
		uint32 type = ELF64_R_TYPE(relocations[i].r_info);
		bool slot = type == R_AARCH64_JUMP_SLOT || type == R_AARCH64_GLOB_DAT;
#else
#error "absmartly_faults knows the relocations of x86-64 and aarch64 only"
#endif
		const char *name =
			strings + symbols[ELF64_R_SYM(relocations[i].r_info)].st_name;

		for (int j = 0; slot && j < lengthof(changes); j++)
			if (strcmp(changes[j].name, name) == 0 && (own || !changes[j].own))
				overwrite((char *) info->dlpi_addr + relocations[i].r_offset,
						  changes[j].function);
	}
}

static int
change_library(struct dl_phdr_info *info, size_t size, void *argument)
{
	static const char *const libraries[] = {"/absmartly.so", "/libcurl",
											"/libpcre2-16.so"};
	const ElfW(Sym) *symbols = NULL;
	const char *strings = NULL;
	const ElfW(Rela) *jumps = NULL;
	const ElfW(Rela) *others = NULL;
	size_t njumps = 0;
	size_t nothers = 0;
	bool wanted = false;
	bool own = false;

	for (int i = 0; i < lengthof(libraries) && !wanted; i++)
	{
		wanted = strstr(info->dlpi_name, libraries[i]) != NULL;
		own = wanted && i == 0;
	}
	if (!wanted)
		return 0;
	for (int i = 0; i < info->dlpi_phnum; i++)
	{
		const ElfW(Phdr) *header = &info->dlpi_phdr[i];
		uintptr_t start = info->dlpi_addr + header->p_vaddr;

		if (own && header->p_type == PT_LOAD && (header->p_flags & PF_X))
		{
			own_start = start;
			own_end = start + header->p_memsz;
		}
		if (header->p_type != PT_DYNAMIC)
			continue;
		for (const ElfW(Dyn) *entry = (const ElfW(Dyn) *) start;
			 entry->d_tag != DT_NULL; entry++)
			switch (entry->d_tag)
			{
				case DT_SYMTAB:
					symbols = resolve(info, entry->d_un.d_ptr);
					break;
				case DT_STRTAB:
					strings = resolve(info, entry->d_un.d_ptr);
					break;
				case DT_JMPREL:
					jumps = resolve(info, entry->d_un.d_ptr);
					break;
				case DT_PLTRELSZ:
					njumps = entry->d_un.d_val / sizeof(ElfW(Rela));
					break;
				case DT_RELA:
					others = resolve(info, entry->d_un.d_ptr);
					break;
				case DT_RELASZ:
					nothers = entry->d_un.d_val / sizeof(ElfW(Rela));
					break;
				default:
					break;
			}
	}
	if (jumps != NULL)
		change_slots(info, jumps, njumps, symbols, strings, own);
	if (others != NULL)
		change_slots(info, others, nothers, symbols, strings, own);
	return 0;
}

/*
 * Set-up
 */

static void
request_memory(void)
{
	if (previous_request)
		previous_request();
	RequestAddinShmemSpace(sizeof(Control));
}

static void
start_memory(void)
{
	bool found;

	if (previous_startup)
		previous_startup();
	control = ShmemInitStruct("absmartly faults", sizeof(Control), &found);
	if (!found)
	{
		memset(control, 0, sizeof(Control));
		control->pid = -1;
		pg_atomic_init_u64(&control->before, 0);
		pg_atomic_init_u64(&control->left, 0);
		pg_atomic_init_u64(&control->seen, 0);
		pg_atomic_init_u64(&control->failed, 0);
		pg_atomic_init_u64(&control->critical, 0);
	}
}

void
_PG_init(void)
{
	void *frames[4];

	if (!process_shared_preload_libraries_in_progress)
		return;
	/* what it loads when it is called first is not to be loaded later */
	(void) backtrace(frames, 4);
	dl_iterate_phdr(change_library, NULL);
	if (own_start == 0)
		elog(ERROR, "absmartly must be loaded before absmartly_faults");
	change_methods();
	previous_request = shmem_request_hook;
	shmem_request_hook = request_memory;
	previous_startup = shmem_startup_hook;
	shmem_startup_hook = start_memory;
}

/*
 * absmartly_faults_begin(process text, before bigint, fail bigint, gap bigint,
 * distinct_stacks boolean, sweep boolean): in the process of that id, or in the
 * background workers of that type, fails so many allocations after so many
 * that succeed.
 */
Datum
absmartly_faults_begin(PG_FUNCTION_ARGS)
{
	char *process = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int pid = atoi(process);

	if (control == NULL)
		elog(ERROR, "absmartly_faults is not preloaded");
	control->pid = -1;
	strlcpy(control->type, process, BGW_MAXLEN);
	pg_atomic_write_u64(&control->before, (uint64) PG_GETARG_INT64(1));
	pg_atomic_write_u64(&control->left, (uint64) PG_GETARG_INT64(2));
	control->gap = PG_GETARG_INT64(3);
	control->distinct = PG_GETARG_BOOL(4);
	control->sweep = PG_GETARG_BOOL(5);
	pg_atomic_write_u64(&control->seen, 0);
	pg_atomic_write_u64(&control->failed, 0);
	pg_atomic_write_u64(&control->critical, 0);
	control->place[0] = '\0';
	/* a sweep goes on where the one before has ended */
	if (!control->sweep)
		memset(control->stacks, 0, sizeof(control->stacks));
	pg_memory_barrier();
	control->pid = pid;
	PG_RETURN_VOID();
}

Datum
absmartly_faults_end(PG_FUNCTION_ARGS)
{
	if (control != NULL)
		control->pid = -1;
	PG_RETURN_VOID();
}

/* What has happened: (seen, failed, critical bigint, place text). */
Datum
absmartly_faults_status(PG_FUNCTION_ARGS)
{
	TupleDesc columns;
	Datum values[4];
	bool nulls[4] = {false};

	if (control == NULL)
		elog(ERROR, "absmartly_faults is not preloaded");
	if (get_call_result_type(fcinfo, NULL, &columns) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = Int64GetDatum((int64) pg_atomic_read_u64(&control->seen));
	values[1] = Int64GetDatum((int64) pg_atomic_read_u64(&control->failed));
	values[2] = Int64GetDatum((int64) pg_atomic_read_u64(&control->critical));
	values[3] = CStringGetTextDatum(control->place);
	PG_RETURN_DATUM(HeapTupleGetDatum(
		heap_form_tuple(BlessTupleDesc(columns), values, nulls)));
}
