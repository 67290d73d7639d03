/*
 * held.c
 *		Where records are parked that session contexts hold.
 */
#include "postgres.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "events/held.h"

/* What a context has on a page. */
typedef struct PageEntry
{
	BlockNumber page;
	uint64 lowest; /* sequence number of its records there, or less */
} PageEntry;

typedef struct ContextEntry
{
	uint64 context; /* first: the hash table's */
	PageEntry *pages; /* in ascending order */
	int npages;
	int max_pages;
} ContextEntry;

static MemoryContext memory = NULL;
static HTAB *entries = NULL;

void
held_init(MemoryContext for_it)
{
	HASHCTL control = {.keysize = sizeof(uint64),
					   .entrysize = sizeof(ContextEntry),
					   .hcxt = for_it};

	memory = for_it;
	entries = hash_create("absmartly held records", 256, &control,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* The place of a page in a context's list, or where it belongs. */
static int
place_of(const ContextEntry *entry, BlockNumber page)
{
	int low = 0;
	int high = entry->npages;

	while (low < high)
	{
		int middle = (low + high) / 2;

		if (entry->pages[middle].page < page)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static bool
is_page_at(const ContextEntry *entry, int place, BlockNumber page)
{
	return place < entry->npages && entry->pages[place].page == page;
}

static void
make_room(ContextEntry *entry)
{
	int most = Max(entry->max_pages * 2, 4);

	/* an error leaves an entry without pages, which is as good as none */
	if (entry->npages < entry->max_pages)
		return;
	entry->pages = entry->pages == NULL
					   ? MemoryContextAlloc(memory, most * sizeof(PageEntry))
					   : repalloc(entry->pages, most * sizeof(PageEntry));
	entry->max_pages = most;
}

void
held_add(uint64 context, BlockNumber page, uint64 sequence)
{
	bool found;
	ContextEntry *entry = hash_search(entries, &context, HASH_ENTER, &found);
	PageEntry *at;
	int place;

	if (!found)
	{
		entry->pages = NULL;
		entry->npages = 0;
		entry->max_pages = 0;
	}
	place = place_of(entry, page);
	if (is_page_at(entry, place, page))
	{
		entry->pages[place].lowest = Min(entry->pages[place].lowest, sequence);
		return;
	}
	make_room(entry);
	at = &entry->pages[place];
	memmove(at + 1, at, (entry->npages - place) * sizeof(PageEntry));
	*at = (PageEntry){page, sequence};
	entry->npages++;
}

static void
forget_context(ContextEntry *entry)
{
	uint64 context = entry->context;

	if (entry->pages != NULL)
		pfree(entry->pages);
	(void) hash_search(entries, &context, HASH_REMOVE, NULL);
}

void
held_forget(uint64 context, BlockNumber page)
{
	ContextEntry *entry = hash_search(entries, &context, HASH_FIND, NULL);
	PageEntry *at;
	int place;

	if (entry == NULL)
		return;
	place = place_of(entry, page);
	if (!is_page_at(entry, place, page))
		return;
	at = &entry->pages[place];
	entry->npages--;
	memmove(at, at + 1, (entry->npages - place) * sizeof(PageEntry));
	if (entry->npages == 0)
		forget_context(entry);
}

void
held_forget_all(void)
{
	HASH_SEQ_STATUS scan;
	ContextEntry *entry;

	hash_seq_init(&scan, entries);
	while ((entry = hash_seq_search(&scan)) != NULL)
		forget_context(entry);
}

static int
compare_pages(const void *left, const void *right)
{
	BlockNumber a = ((const HeldPage *) left)->page;
	BlockNumber b = ((const HeldPage *) right)->page;

	return a < b ? -1 : a > b ? 1 : 0;
}

HeldPage *
held_free_pages(OutboxHolds holds, int *count)
{
	HASH_SEQ_STATUS scan;
	ContextEntry *entry;
	HeldPage *pages;
	Size most = 0;

	*count = 0;
	hash_seq_init(&scan, entries);
	while ((entry = hash_seq_search(&scan)) != NULL)
		most += entry->npages;
	if (most == 0)
		return NULL;
	pages = MemoryContextAllocHuge(memory, most * sizeof(HeldPage));
	hash_seq_init(&scan, entries);
	while ((entry = hash_seq_search(&scan)) != NULL)
		for (int i = 0; i < entry->npages; i++)
		{
			TimestampTz until;

			if (!holds(entry->context, entry->pages[i].lowest, true, &until))
				pages[(*count)++] =
					(HeldPage){entry->pages[i].page, entry->context};
		}
	qsort(pages, *count, sizeof(HeldPage), compare_pages);
	return pages;
}
