/*
 * dedup.c
 *		Which exposures were queued lately, database-wide (DESIGN 6.1).
 *
 * A table in sets of four entries, a set being a line of the processor's
 * cache: to look a key up costs one miss.  The sets are shared out among many
 * locks, so that sessions seldom meet.
 */
#include "postgres.h"

#include "storage/lwlock.h"

#include "data/shared.h"
#include "events/dedup.h"
#include "settings.h"

#define SET_ENTRIES 4
#define PARTITIONS 128 /* a power of 2 */

/* what a session without shared memory has for itself */
#define LOCAL_SETS 1024

typedef struct DedupEntry
{
	uint64 key;
	TimestampTz time; /* 0: free */
} DedupEntry;

typedef struct DedupSet
{
	DedupEntry entries[SET_ENTRIES];
} DedupSet;

StaticAssertDecl(sizeof(DedupSet) == 64, "a set is a line of the cache");

typedef struct DedupHeader
{
	int tranche;
	uint32 nsets;
	LWLockPadded locks[PARTITIONS];
} DedupHeader;

/* the sets begin at a line of the cache, like the memory itself */
#define DEDUP_SETS_OFFSET CACHELINEALIGN(sizeof(DedupHeader))

/* memory without entries, as it is where nobody has marked anything */
static DedupSet local_sets[LOCAL_SETS];

static LWLockPadded *locks = NULL; /* NULL: the table is the session's own */
static DedupSet *sets = local_sets;
static uint32 nsets = LOCAL_SETS;

Size
dedup_size(void)
{
	return add_size(DEDUP_SETS_OFFSET,
					mul_size(settings_dedup_size, (Size) 1024));
}

void
dedup_init(void *place, bool found)
{
	DedupHeader *header = place;

	sets = (DedupSet *) ((char *) place + DEDUP_SETS_OFFSET);
	if (!found)
	{
		header->tranche = LWLockNewTrancheId();
		header->nsets =
			(uint32) ((Size) settings_dedup_size * 1024 / sizeof(DedupSet));
		for (int i = 0; i < PARTITIONS; i++)
			LWLockInitialize(&header->locks[i].lock, header->tranche);
		memset(sets, 0, header->nsets * sizeof(DedupSet));
	}
	LWLockRegisterTranche(header->tranche, "absmartly_dedup");
	locks = header->locks;
	nsets = header->nsets;
}

/* The number of a key's set, for any number of sets. */
static inline uint32
set_of_key(uint64 key)
{
	key ^= key >> 33;
	key *= UINT64CONST(0xff51afd7ed558ccd);
	key ^= key >> 33;
	return (uint32) (((key & 0xffffffff) * nsets) >> 32);
}

static inline void
lock_set(uint32 number, LWLockMode mode)
{
	if (locks != NULL)
		LWLockAcquire(&locks[number & (PARTITIONS - 1)].lock, mode);
}

static inline void
unlock_set(uint32 number)
{
	if (locks != NULL)
		LWLockRelease(&locks[number & (PARTITIONS - 1)].lock);
}

void
dedup_prefetch(uint64 key)
{
	__builtin_prefetch(&sets[set_of_key(key)]);
}

bool
dedup_seen(uint64 key, TimestampTz now, int64 interval_ms)
{
	uint32 number = set_of_key(key);
	const volatile DedupSet *set = &sets[number];
	int64 interval = interval_ms * 1000;
	int place = 0;
	bool seen;

	/*
	 * Most keys are not there, which needs no lock: at worst, a mark that is
	 * being made is missed.
	 */
	while (set->entries[place].key != key)
		if (++place == SET_ENTRIES)
			return false;

	lock_set(number, LW_SHARED);
	/* a clock that was put back must not hold for ever */
	seen = set->entries[place].key == key && set->entries[place].time != 0 &&
		   set->entries[place].time >= now - interval &&
		   set->entries[place].time <= now + interval;
	unlock_set(number);
	return seen;
}

void
dedup_mark(uint64 key, TimestampTz now)
{
	uint32 number = set_of_key(key);
	DedupSet *set = &sets[number];
	DedupEntry *chosen;

	lock_set(number, LW_EXCLUSIVE);
	chosen = &set->entries[0];
	for (int i = 0; i < SET_ENTRIES; i++)
	{
		DedupEntry *entry = &set->entries[i];

		if (entry->key == key && entry->time != 0)
		{
			chosen = entry;
			break;
		}
		/* a free one is older than all */
		if (entry->time < chosen->time)
			chosen = entry;
	}
	chosen->key = key;
	chosen->time = now;
	unlock_set(number);
}
