/*
 * exposure.h
 *		Exposures as functions that take the units with each call queue them
 *		(DESIGN 3.1, 6.1).
 */
#ifndef ABSMARTLY_SQL_EXPOSURE_H
#define ABSMARTLY_SQL_EXPOSURE_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "fmgr.h"

#include "engine/assign.h"
#include "engine/snapshot.h"
#include "events/encoding.h"
#include "sql/units.h"

/* What the exposures of one call have in common. */
typedef struct ExposureCall
{
	bool has_attributes;
	Datum attributes;
	bool timed; /* exposed_at is given */
	bool historic;
	bool deduplicated; /* consults and marks what was exposed lately */
	TimestampTz now; /* 0: not known yet */
	bool prepared; /* what follows is valid */
	int64 exposed_at; /* ms */
	uint32 nsent; /* attributes as they are sent */
	const EventAttribute *sent;
} ExposureCall;

/*
 * Reads the arguments attributes, exposed_at, and historic, which follows.
 * Raises 22023 for attributes that are no object and 22008 for infinity.
 */
extern void exposure_begin(ExposureCall *call, FunctionCallInfo fcinfo,
						   int attributes, int exposed_at);

/*
 * What tells an experiment's exposures from others in this database.  An
 * unknown one (NULL) is known by its name, which counts for nothing otherwise.
 */
extern uint64 exposure_identity(const SnapImage *snapshot,
								const SnapExperiment *experiment,
								EngineText name);

/*
 * Queues the exposure of an assignment, unless an identical one was queued
 * lately.  experiment and name as above; units has the experiment's own one
 * chosen.
 */
extern void exposure_queue(ExposureCall *call, const SnapImage *snapshot,
						   const SnapExperiment *experiment, EngineText name,
						   uint64 identity, const Assignment *assignment,
						   UnitList *units);

/* The experiment's unit type; its data is NULL if it has none. */
static inline EngineText
exposure_unit_type(const SnapImage *snapshot, const SnapExperiment *experiment)
{
	EngineText none = {NULL, 0};

	if (experiment == NULL || (experiment->flags & SNAP_HAS_UNIT_TYPE) == 0)
		return none;
	return snapshot_text(snapshot, experiment->unit_type);
}

#endif /* ABSMARTLY_SQL_EXPOSURE_H */
