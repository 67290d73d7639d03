/*
 * baseline.c
 *		What the extension's functions are compared with: functions of the same
 *		shape that do next to nothing (see bench/assign and bench/events).
 */
#include "postgres.h"

#include <time.h>

#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

PG_MODULE_MAGIC;

void _PG_init(void);

PGDLLEXPORT PG_FUNCTION_INFO_V1(bench_trivial);
PGDLLEXPORT PG_FUNCTION_INFO_V1(bench_trivial_peek);
PGDLLEXPORT PG_FUNCTION_INFO_V1(bench_constant_rows);
PGDLLEXPORT PG_FUNCTION_INFO_V1(bench_trivial_trigger);
PGDLLEXPORT PG_FUNCTION_INFO_V1(bench_cpu);

/* Loaded at the server's start, as the extension is. */
void
_PG_init(void)
{
}

/*
 * bench_trivial(bigint) -> int
 *		What any call of a C function costs.
 */
Datum
bench_trivial(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32((int32) PG_GETARG_INT64(0));
}

/*
 * bench_trivial_peek(units, experiment, attributes, custom_variant) -> int
 *		The same, with the arguments of absmartly_peek_treatment().
 */
Datum
bench_trivial_peek(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	PG_RETURN_INT32(1);
}

/* A value that stands for all of a column, by the column's type. */
static Datum
constant(Oid type)
{
	switch (type)
	{
		case TEXTOID:
			return CStringGetTextDatum("experiment_1000");
		case INT4OID:
			return Int32GetDatum(1);
		case INT8OID:
			return Int64GetDatum(1);
		case BOOLOID:
			return BoolGetDatum(false);
		case JSONBOID:
			return DirectFunctionCall1(
				jsonb_in,
				CStringGetDatum("{\"button.color\": \"red\", \"limit\": 10}"));
		default:
			elog(ERROR, "no constant of type %u", type);
	}
}

typedef struct Constants
{
	Datum *values;
	bool *nulls;
} Constants;

/*
 * bench_constant_rows(units, attributes, rows) -> table
 *		As many rows as asked for, always the same, handed over in the way of
 *		absmartly_assignments().  The values are made at a query's first call.
 */
Datum
bench_constant_rows(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *set = (ReturnSetInfo *) fcinfo->resultinfo;
	Constants *constants = fcinfo->flinfo->fn_extra;
	int32 count = PG_GETARG_INT32(2);

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	if (constants == NULL)
	{
		TupleDesc columns = set->setDesc;
		MemoryContext previous = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);

		constants = palloc(sizeof(Constants));
		constants->values = palloc(columns->natts * sizeof(Datum));
		constants->nulls = palloc0(columns->natts * sizeof(bool));
		for (int i = 0; i < columns->natts; i++)
			constants->values[i] =
				constant(TupleDescAttr(columns, i)->atttypid);
		fcinfo->flinfo->fn_extra = constants;
		MemoryContextSwitchTo(previous);
	}
	for (int32 i = 0; i < count; i++)
		tuplestore_putvalues(set->setResult, set->setDesc, constants->values,
							 constants->nulls);
	return (Datum) 0;
}

/*
 * bench_trivial_trigger() -> trigger
 *		What any trigger in C costs that is fired after each row.
 */
Datum
bench_trivial_trigger(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		elog(ERROR, "not called by the trigger manager");
	return PointerGetDatum(NULL);
}

/*
 * bench_cpu() -> double precision
 *		The processor's time that this process has used, in milliseconds: other
 *		programs disturb it much less than the clock's.
 */
Datum
bench_cpu(PG_FUNCTION_ARGS)
{
	struct timespec used;

	if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used) != 0)
		elog(ERROR, "cannot read the processor's time: %m");
	PG_RETURN_FLOAT8((double) used.tv_sec * 1e3 + (double) used.tv_nsec / 1e6);
}
