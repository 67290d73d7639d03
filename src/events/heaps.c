/*
 * heaps.c
 *		The outbox's heaps.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/generic_xlog.h"
#include "access/heapam.h"
#include "access/relation.h"
#include "access/rmgr.h"
#include "access/table.h"
#include "access/tupmacs.h"
#include "access/visibilitymap.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "common/pg_prng.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "events/heaps.h"
#include "events/outbox.h"

#define COLUMNS 17

/*
 * Locks that are taken to write: of a heap of each lane, and to make one
 * longer.
 */
#define PLACES 3
#define PLACE_KIND 7
#define HEAP_ROW_SIZE (offsetof(HeapRow, goals) + sizeof(int32))

static const char *const heap_names[HEAPS_COUNT] = {
	"absmartly_outbox_a", "absmartly_outbox_b", "absmartly_outbox_bulk_a",
	"absmartly_outbox_bulk_b", "absmartly_outbox_parked"};

/* the heaps' OIDs; the first InvalidOid: to be found */
static Oid heaps[HEAPS_COUNT];
/* else they are to be looked up anew; who goes through them uses them still */
static bool found_all = false;
static uint32 prepared = 0; /* what writing to them needs is in the caches:
							 * a bit for each */

/*
 * Finding the heaps
 */

static void
heaps_invalidate(Datum argument, Oid relation)
{
	for (int i = 0; i < HEAPS_COUNT; i++)
		if (!OidIsValid(relation) || relation == heaps[i])
		{
			found_all = false;
			prepared = 0;
		}
}

static Oid
extension_schema(Oid extension)
{
	Relation catalog = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;
	Oid schema = InvalidOid;

	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan =
		systable_beginscan(catalog, ExtensionOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return schema;
}

bool
heaps_find(void)
{
	static bool watching = false;
	Oid extension;
	Oid schema;
	Oid found[HEAPS_COUNT];

	if (likely(found_all))
		return true;
	if (!watching)
	{
		CacheRegisterRelcacheCallback(heaps_invalidate, (Datum) 0);
		watching = true;
	}
	extension = get_extension_oid("absmartly", true);
	if (!OidIsValid(extension))
		return false;
	schema = extension_schema(extension);
	for (int i = 0; i < HEAPS_COUNT; i++)
	{
		found[i] = get_relname_relid(heap_names[i], schema);
		if (!OidIsValid(found[i]) ||
			getExtensionOfObject(RelationRelationId, found[i]) != extension)
			return false;
	}
	memcpy(heaps, found, sizeof(heaps));
	found_all = true;
	return true;
}

bool
heaps_belongs(Oid relation)
{
	Oid extension;

	if (get_rel_relkind(relation) != RELKIND_MATVIEW)
		return false;
	extension = getExtensionOfObject(RelationRelationId, relation);
	return OidIsValid(extension) &&
		   extension == get_extension_oid("absmartly", true);
}

/*
 * As ConditionalLockRelationOid(), but that a full lock table is no error: who
 * writes has kept a place there (heaps_reserve()).
 */
static bool
lock_at_once(Oid relation, LOCKMODE mode)
{
	LOCKTAG tag;
	LOCALLOCK *lock;
	LockAcquireResult result;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, relation);
	result = compat_lock_at_once(&tag, mode, false, false, &lock);
	if (result == LOCKACQUIRE_NOT_AVAIL)
		return false;
	if (result != LOCKACQUIRE_ALREADY_CLEAR)
	{
		AcceptInvalidationMessages();
		MarkLockClear(lock);
	}
	return true;
}

/*
 * Places in the lock table
 */

static void
set_tag(LOCKTAG *tag, uint32 key)
{
	*tag = (LOCKTAG){.locktag_field1 = MyDatabaseId,
					 .locktag_field2 = (uint32) MyProcPid,
					 .locktag_field3 = key,
					 .locktag_field4 = PLACE_KIND,
					 .locktag_type = LOCKTAG_USERLOCK,
					 .locktag_lockmethodid = DEFAULT_LOCKMETHOD};
}

/*
 * Locks that mean nothing, but have a place of their own.  They are no advisory
 * locks: pg_advisory_unlock_all() would release them.  Those of a session
 * are in one partition of the table, since the end of each transaction locks
 * all in which the session has some; and sessions are spread over the
 * partitions, so that they do not wait for each other there.
 */
static void
set_place_tag(LOCKTAG *tag, int number)
{
	static uint32 keys[PLACES];

	if (keys[PLACES - 1] == 0)
	{
		uint32 key = 1;

		for (int i = 0; i < PLACES; i++)
		{
			do
				set_tag(tag, key++);
			while (LockHashPartition(LockTagHashCode(tag)) !=
				   (uint32) MyProcPid % NUM_LOCK_PARTITIONS);
			keys[i] = key - 1;
		}
	}
	set_tag(tag, keys[number]);
}

/* The server releases no such lock when a process ends outside transactions. */
static void
release_at_exit(int code, Datum argument)
{
	(void) heaps_unreserve();
}

bool
heaps_reserve(bool must)
{
	static bool registered = false;
	LOCKTAG tag;

	/* an abort takes them */
	set_place_tag(&tag, PLACES - 1);
	if (likely(compat_lock_is_held(&tag, AccessShareLock)))
		return true;
	if (!registered)
	{
		on_shmem_exit(release_at_exit, (Datum) 0);
		registered = true;
	}
	for (int number = 0; number < PLACES; number++)
	{
		set_place_tag(&tag, number);
		if (!compat_lock_is_held(&tag, AccessShareLock) &&
			compat_lock_at_once(&tag, AccessShareLock, true, must, NULL) ==
				LOCKACQUIRE_NOT_AVAIL)
		{
			(void) heaps_unreserve();
			return false;
		}
	}
	return true;
}

bool
heaps_unreserve(void)
{
	bool any = false;

	for (int number = 0; number < PLACES; number++)
	{
		LOCKTAG tag;

		set_place_tag(&tag, number);
		if (compat_lock_is_held(&tag, AccessShareLock))
			any |= LockRelease(&tag, AccessShareLock, true);
	}
	return any;
}

Relation
heaps_open(int place, LOCKMODE mode, bool wait)
{
	Oid oid = heaps[place];
	Relation relation;

	if (wait)
		LockRelationOid(oid, mode);
	else if (!lock_at_once(oid, mode))
		return NULL;
	relation = try_relation_open(oid, NoLock);
	if (relation == NULL)
		UnlockRelationOid(oid, mode);
	return relation;
}

const char *
heaps_place(int place)
{
	return heap_names[place] + strlen("absmartly_outbox_");
}

/*
 * Rows
 */

void
heaps_row_texts(const HeapRow *row, EngineText texts[HEAP_TEXTS])
{
	const char *at = (const char *) row + HEAP_ROW_SIZE;

	for (int i = 0; i < HEAP_TEXTS; i++)
	{
		at = (const char *) att_align_pointer(at, TYPALIGN_INT, -1, at);
		texts[i].data = VARDATA_ANY(at);
		texts[i].length = VARSIZE_ANY_EXHDR(at);
		at += VARSIZE_ANY(at);
	}
}

static bytea *
make_varlena(const char *data, Size length)
{
	bytea *result = palloc(VARHDRSZ + length);

	SET_VARSIZE(result, VARHDRSZ + length);
	memcpy(VARDATA(result), data, length);
	return result;
}

/* Bytes of payload that fit in a tuple beside the other texts. */
static uint32
payload_room(bytea *const texts[HEAP_PAYLOAD])
{
	Size size = MAXALIGN(SizeofHeapTupleHeader) + HEAP_ROW_SIZE;

	for (int i = 0; i < HEAP_PAYLOAD; i++)
		size += INTALIGN(VARSIZE(texts[i]));
	return (uint32) (MaxHeapTupleSize - size - VARHDRSZ - MAXIMUM_ALIGNOF);
}

/*
 * Whether an error says that the lock table is full.  Memory of other kinds
 * that is not to be had has the same code.
 */
static bool
is_lock_table_full(MemoryContext memory)
{
	ErrorData *error;
	bool full;

	if (geterrcode() != ERRCODE_OUT_OF_MEMORY)
		return false;
	MemoryContextSwitchTo(memory);
	error = CopyErrorData();
	full = error->funcname != NULL &&
		   strcmp(error->funcname, "LockAcquireExtended") == 0;
	FreeErrorData(error);
	return full;
}

/* Lets go of what an insertion that has failed has pinned. */
static void
release_all(ResourceOwner owner)
{
	ResourceOwnerRelease(owner, RESOURCE_RELEASE_BEFORE_LOCKS, false, false);
	ResourceOwnerRelease(owner, RESOURCE_RELEASE_LOCKS, false, false);
	ResourceOwnerRelease(owner, RESOURCE_RELEASE_AFTER_LOCKS, false, false);
}

/*
 * False: the lock table was full, and what was kept there is given up.  Nothing
 * has been written then, and no lock is held, since none is taken once there is
 * the page; one of the visibility map may be pinned.  Each try has an owner of
 * its own: one that was released takes nothing more.
 */
static bool
try_to_insert(Relation relation, HeapTuple tuple)
{
	MemoryContext memory = CurrentMemoryContext;
	ResourceOwner caller = CurrentResourceOwner;
	ResourceOwner owner = ResourceOwnerCreate(caller, "absmartly insertion");
	uint32 held_off = InterruptHoldoffCount;
	volatile bool done = false;

	CurrentResourceOwner = owner;
	PG_TRY();
	{
		heap_insert(relation, tuple, GetCurrentCommandId(true),
					HEAP_INSERT_SKIP_FSM | HEAP_INSERT_NO_LOGICAL, NULL);
		done = true;
	}
	PG_CATCH();
	{
		CurrentResourceOwner = caller;
		if (!is_lock_table_full(memory) || !heaps_unreserve())
			PG_RE_THROW();
		FlushErrorState();
		/* which an error has set to 0 */
		InterruptHoldoffCount = held_off;
		release_all(owner);
	}
	PG_END_TRY();
	CurrentResourceOwner = caller;
	ResourceOwnerDelete(owner);
	return done;
}

/*
 * Inserts a tuple.  Where that has to make the heap longer it takes a lock, for
 * which the lock table may be full: it is tried again as long as there is
 * something to be given up for it.
 */
static void
insert_tuple(Relation relation, HeapTuple tuple)
{
	while (!try_to_insert(relation, tuple))
		;
}

static void
insert_row(Relation relation, const HeapRow *row,
		   bytea *const texts[HEAP_PAYLOAD], const char *data, Size length)
{
	Datum values[COLUMNS];
	bool nulls[COLUMNS] = {false};
	bytea *payload = make_varlena(data, length);
	HeapTuple tuple;
	int column = 0;

	values[column++] = Int32GetDatum(row->status);
	values[column++] = ObjectIdGetDatum(row->database);
	values[column++] = Int64GetDatum(row->endpoint);
	values[column++] = TimestampTzGetDatum(row->created);
	values[column++] = Int64GetDatum(row->record);
	values[column++] = Int64GetDatum(row->context);
	values[column++] = Int64GetDatum(row->sequence);
	values[column++] = Int32GetDatum(row->chunk);
	values[column++] = Int32GetDatum(row->chunks);
	values[column++] = Int32GetDatum(row->contexts);
	values[column++] = Int32GetDatum(row->exposures);
	values[column++] = Int32GetDatum(row->goals);
	for (int i = 0; i < HEAP_PAYLOAD; i++)
		values[column++] = PointerGetDatum(texts[i]);
	values[column++] = PointerGetDatum(payload);
	Assert(column == COLUMNS);
	Assert(HaveRegisteredOrActiveSnapshot());

	tuple = heap_form_tuple(RelationGetDescr(relation), values, nulls);
	insert_tuple(relation, tuple);
	heap_freetuple(tuple);
	pfree(payload);
}

/*
 * Rows go past the executor, so what it would do for them must not be needed:
 * an index would miss them, and CLUSTER by it lose them; a text that is not
 * plain could be compressed, and not be read.
 */
static void
require_shape(Relation relation)
{
	TupleDesc columns = RelationGetDescr(relation);
	const char *problem = NULL;
	List *indexes = NIL;

	if (relation->rd_rel->relhasindex)
		indexes = RelationGetIndexList(relation);
	if (indexes != NIL)
		problem = "It has an index, which does not know its rows.";
	if (columns->natts != COLUMNS)
		problem = "It has other columns.";
	for (int i = 0; problem == NULL && i < COLUMNS; i++)
		if (TupleDescAttr(columns, i)->attstorage != TYPSTORAGE_PLAIN)
			problem = "Its columns are not all of storage PLAIN.";
	if (problem != NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("events cannot be written to \"%s\"",
							   RelationGetRelationName(relation)),
						errdetail_internal("%s", problem),
						errhint("It must be as the extension has made it.")));
	list_free(indexes);
}

void
heaps_prepare(int place)
{
	Relation relation;

	if (likely(prepared & (1U << place)) || !heaps_find())
		return;
	relation = heaps_open(place, AccessShareLock, false);
	if (relation == NULL)
		return;
	require_shape(relation);
	relation_close(relation, AccessShareLock);
	prepared |= 1U << place;
}

void
heaps_insert(Relation relation, const HeapRecord *record, HeapInserted inserted,
			 void *argument)
{
	const EventPayload *payload = record->payload;
	const EventOrigin *origin = record->origin;
	bytea *texts[HEAP_PAYLOAD];
	HeapRow row;
	uint32 room;
	uint32 at = 0;

	require_shape(relation);
	texts[HEAP_APPLICATION] =
		make_varlena(origin->application, strlen(origin->application));
	texts[HEAP_APPLICATION_VERSION] = make_varlena(
		origin->application_version, strlen(origin->application_version));
	texts[HEAP_ENVIRONMENT] =
		make_varlena(origin->environment, strlen(origin->environment));
	texts[HEAP_NOTE] = make_varlena(
		record->note,
		pg_mbcliplen(record->note, (int) strlen(record->note), HEAP_MAX_NOTE));
	room = payload_room(texts);

	row.status = record->status;
	row.database = record->database;
	row.endpoint = record->endpoint;
	row.created = record->created;
	/* an id that no two records share, for all that is likely */
	row.record = record->id;
	if (row.record == 0)
		row.record = (int64) (pg_prng_uint64(&pg_global_prng_state) >> 1) | 1;
	row.context = (int64) payload->context;
	row.sequence = (int64) payload->sequence;
	row.contexts = (int32) payload->contexts;
	row.exposures = (int32) payload->exposures;
	row.goals = (int32) payload->goals;
	row.chunks = (int32) Max((payload->length + room - 1) / room, 1);
	for (row.chunk = 0; row.chunk < row.chunks; row.chunk++)
	{
		uint32 length = Min(room, payload->length - at);

		insert_row(relation, &row, texts, payload->data + at, length);
		if (inserted)
			inserted(argument, RelationGetTargetBlock(relation));
		at += length;
	}
	for (int i = 0; i < HEAP_PAYLOAD; i++)
		pfree(texts[i]);
}

/*
 * Walking over the rows of a heap
 */

/* What a transaction's outcome makes of a row. */
typedef enum RowFate
{
	ROW_THERE,
	ROW_OPEN, /* its transaction is running, or prepared */
	ROW_LEAVING, /* one that is running has deleted it */
	ROW_GONE
} RowFate;

static RowFate
row_fate(Relation relation, Buffer buffer, BlockNumber page, ItemId item,
		 OffsetNumber offset, HeapTupleData *tuple)
{
	TransactionId dead_after;

	tuple->t_data = (HeapTupleHeader) PageGetItem(BufferGetPage(buffer), item);
	tuple->t_len = ItemIdGetLength(item);
	tuple->t_tableOid = RelationGetRelid(relation);
	ItemPointerSet(&tuple->t_self, page, offset);
	switch (HeapTupleSatisfiesVacuumHorizon(tuple, buffer, &dead_after))
	{
		case HEAPTUPLE_LIVE:
			return ROW_THERE;
		case HEAPTUPLE_INSERT_IN_PROGRESS:
			return ROW_OPEN;
		case HEAPTUPLE_DELETE_IN_PROGRESS:
			return ROW_LEAVING;
		default:
			return ROW_GONE;
	}
}

Page
heaps_change_page(GenericXLogState *xlog, Buffer buffer)
{
	return GenericXLogRegisterBuffer(
		xlog, buffer,
		wal_consistency_checking[RM_GENERIC_ID] ? GENERIC_XLOG_FULL_IMAGE : 0);
}

int
heaps_walk_page(Relation relation, BlockNumber page_number,
				const HeapWalk *walk)
{
	Buffer buffer = ReadBuffer(relation, page_number);
	GenericXLogState *xlog = NULL;
	Page page = BufferGetPage(buffer);
	Page changed = NULL;
	OffsetNumber most;
	int open = 0;

	LockBuffer(buffer,
			   walk->change ? BUFFER_LOCK_EXCLUSIVE : BUFFER_LOCK_SHARE);
	most = PageIsNew(page) ? 0 : PageGetMaxOffsetNumber(page);
	for (OffsetNumber offset = FirstOffsetNumber; offset <= most; offset++)
	{
		ItemId item = PageGetItemId(page, offset);
		HeapTupleData tuple;
		RowFate fate;

		if (!ItemIdIsNormal(item) ||
			heap_row(page, item)->status == OUTBOX_DONE)
			continue;
		fate = row_fate(relation, buffer, page_number, item, offset, &tuple);
		if (fate == ROW_OPEN || fate == ROW_LEAVING)
			open++;
		if ((fate != ROW_THERE && !(fate == ROW_LEAVING && walk->leaving)) ||
			!walk->visit(walk->argument, heap_row(page, item), &tuple) ||
			walk->change == NULL)
			continue;
		if (xlog == NULL)
		{
			xlog = GenericXLogStart(relation);
			changed = heaps_change_page(xlog, buffer);
		}
		walk->change(walk->argument,
					 heap_row(changed, PageGetItemId(changed, offset)));
	}
	if (xlog != NULL)
		(void) GenericXLogFinish(xlog);
	UnlockReleaseBuffer(buffer);
	return open;
}

void
heaps_walk(Relation relation, const HeapWalk *walk)
{
	BlockNumber pages = RelationGetNumberOfBlocks(relation);

	for (BlockNumber page = 0; page < pages; page++)
	{
		CHECK_FOR_INTERRUPTS();
		(void) heaps_walk_page(relation, page, walk);
	}
}

/* A transaction without an id would leave that to the WAL writer. */
void
heaps_flush(void)
{
	if (!XLogRecPtrIsInvalid(XactLastRecEnd))
		XLogFlush(XactLastRecEnd);
}

bool
heaps_page_is_empty(Relation relation, Buffer buffer)
{
	BlockNumber page_number = BufferGetBlockNumber(buffer);
	Page page = BufferGetPage(buffer);
	OffsetNumber most = PageIsNew(page) ? 0 : PageGetMaxOffsetNumber(page);

	for (OffsetNumber offset = FirstOffsetNumber; offset <= most; offset++)
	{
		ItemId item = PageGetItemId(page, offset);
		HeapTupleData tuple;

		if (ItemIdIsNormal(item) &&
			heap_row(page, item)->status != OUTBOX_DONE &&
			row_fate(relation, buffer, page_number, item, offset, &tuple) !=
				ROW_GONE)
			return false;
	}
	return true;
}

/*
 * Has the visibility map forget a page.  That is logged apart, and before: no
 * record that we can write has both.
 */
static void
forget_visibility(Relation relation, BlockNumber page, Buffer map)
{
	if (!visibilitymap_clear(relation, page, map, VISIBILITYMAP_VALID_BITS))
		return;
	LockBuffer(map, BUFFER_LOCK_EXCLUSIVE);
	START_CRIT_SECTION();
	log_newpage_buffer(map, false);
	END_CRIT_SECTION();
	LockBuffer(map, BUFFER_LOCK_UNLOCK);
}

/* Whether a row of that record is there. */
static bool
is_row_of(Relation relation, Buffer buffer, OffsetNumber offset, int64 record)
{
	Page page = BufferGetPage(buffer);
	HeapTupleData tuple;
	ItemId item;

	if (PageIsNew(page) || offset > PageGetMaxOffsetNumber(page))
		return false;
	item = PageGetItemId(page, offset);
	return ItemIdIsNormal(item) && heap_row(page, item)->record == record &&
		   row_fate(relation, buffer, BufferGetBlockNumber(buffer), item,
					offset, &tuple) == ROW_THERE;
}

/*
 * Does what heap_delete() does, by generic WAL: so logical decoding sees
 * nothing of it.  Nobody else deletes or locks rows of the outbox.
 */
void
heaps_remove(Relation relation, const ItemPointerData *place, int64 record)
{
	TransactionId xid = GetCurrentTransactionId();
	CommandId command = GetCurrentCommandId(true);
	BlockNumber page_number = ItemPointerGetBlockNumber(place);
	OffsetNumber offset = ItemPointerGetOffsetNumber(place);
	Buffer map = InvalidBuffer;
	Buffer buffer;
	Page page;

	if (page_number >= RelationGetNumberOfBlocks(relation))
		return;
	buffer = ReadBuffer(relation, page_number);
	page = BufferGetPage(buffer);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	while (PageIsAllVisible(page) && !visibilitymap_pin_ok(page_number, map))
	{
		LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
		visibilitymap_pin(relation, page_number, &map);
		LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	}
	if (is_row_of(relation, buffer, offset, record))
	{
		GenericXLogState *xlog;
		HeapTupleHeader header;

		if (PageIsAllVisible(page))
			forget_visibility(relation, page_number, map);
		xlog = GenericXLogStart(relation);
		page = heaps_change_page(xlog, buffer);
		header =
			(HeapTupleHeader) PageGetItem(page, PageGetItemId(page, offset));
		header->t_infomask &= ~(HEAP_XMAX_BITS | HEAP_MOVED);
		header->t_infomask2 |= HEAP_KEYS_UPDATED;
		HeapTupleHeaderClearHotUpdated(header);
		HeapTupleHeaderSetXmax(header, xid);
		HeapTupleHeaderSetCmax(header, command, false);
		header->t_ctid = *place;
		PageSetPrunable(page, xid);
		PageClearAllVisible(page);
		(void) GenericXLogFinish(xlog);
	}
	UnlockReleaseBuffer(buffer);
	if (BufferIsValid(map))
		ReleaseBuffer(map);
}
