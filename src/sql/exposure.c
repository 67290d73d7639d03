/*
 * exposure.c
 *		Functions that assign and expose (DESIGN 3.1).
 *
 * Beyond the assignment, an exposure that was queued lately costs a few
 * multiplications and a look into a table, and one that was not is encoded
 * from where things are: usually nothing is allocated here.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/timestamp.h"

#include "events/buffer.h"
#include "events/record.h"
#include "settings.h"
#include "sql/assignment.h"
#include "sql/evaluation.h"
#include "sql/exposure.h"
#include "sql/function.h"
#include "sql/jsonb_value.h"
#include "sql/recording.h"
#include "sql/text.h"

/* state of a call site: the experiment asked for last */
typedef struct ExposureSite
{
	NameCache name;
	uint64 identity; /* of its exposures */
} ExposureSite;

/*
 * What makes exposures the same
 */

/* Adds a value to a hash; each step can be undone, so none loses anything. */
static inline uint64
mix(uint64 hash, uint64 value)
{
	hash = (hash ^ value) * UINT64CONST(0x9E3779B97F4A7C15);
	return hash ^ hash >> 32;
}

static inline uint64
mix_text(uint64 hash, EngineText text)
{
	return mix(hash, hash_bytes_extended((const unsigned char *) text.data,
										 (int) text.length, text.length));
}

static inline uint64
mix_digest(uint64 hash, const uint8_t digest[ENCODING_UNIT_BYTES])
{
	uint64 halves[2];

	memcpy(halves, digest, sizeof(halves));
	return mix(mix(hash, halves[0]), halves[1]);
}

uint64
exposure_identity(const SnapImage *snapshot, const SnapExperiment *experiment,
				  EngineText name)
{
	uint64 hash = mix(0, MyDatabaseId);

	if (experiment == NULL)
		return mix_text(hash, name);
	hash = mix(hash, (uint64) experiment->id);
	hash = mix(hash, (uint64) experiment->iteration);
	if (experiment->flags & SNAP_HAS_UNIT_TYPE)
		hash = mix_text(hash, snapshot_text(snapshot, experiment->unit_type));
	return hash;
}

/*
 * The key of an exposure.  Who is exposed is the unit of the experiment's type;
 * without one, all units are.
 */
static uint64
exposure_key(uint64 identity, const Assignment *assignment, UnitList *units)
{
	uint64 hash = mix(identity, record_current_origin()->endpoint);
	uint32 index;

	if (likely(units->own >= 0))
	{
		unit_list_digest(units, (uint32) units->own);
		hash = mix_digest(hash, units->units[units->own].hash);
	}
	else
	{
		unit_list_digest_all(units);
		hash = mix(hash, units->count);
		for (index = 0; index < units->count; index++)
		{
			hash = mix_text(hash, units->units[index].type);
			hash = mix_digest(hash, units->units[index].hash);
		}
	}
	hash = mix(hash, (uint64) (uint32) assignment->variant |
						 (uint64) assignment->flags << 32);
	hash = mix(hash, (uint64) assignment->holdout_id);

	/* all of its bits count */
	hash = mix(hash, hash >> 29);
	return hash != 0 ? hash : 1;
}

/*
 * Queueing
 */

void
exposure_begin(ExposureCall *call, FunctionCallInfo fcinfo, int attributes,
			   int exposed_at)
{
	int historic = exposed_at + 1;

	call->has_attributes = !PG_ARGISNULL(attributes);
	call->attributes =
		call->has_attributes ? PG_GETARG_DATUM(attributes) : (Datum) 0;
	if (call->has_attributes)
		evaluation_check_object(call->attributes, "attributes");
	call->timed = !PG_ARGISNULL(exposed_at);
	if (call->timed)
		call->exposed_at =
			recording_time_ms(PG_GETARG_TIMESTAMPTZ(exposed_at), "exposed_at");
	call->historic =
		PG_ARGISNULL(historic) ? settings_historic : PG_GETARG_BOOL(historic);
	call->deduplicated =
		!call->timed && !call->historic && settings_exposure_dedup_interval > 0;
	call->prepared = false;
	call->now = 0;
}

/* The time of the call: that of its first exposure. */
static inline TimestampTz
call_time(ExposureCall *call)
{
	if (call->now == 0)
		call->now = GetCurrentTimestamp();
	return call->now;
}

/* What exposures need once they are queued: one time, and the attributes. */
static inline void
prepare(ExposureCall *call)
{
	if (call->prepared)
		return;
	if (!call->timed)
		call->exposed_at = buffer_time_ms(call_time(call));
	call->nsent = 0;
	call->sent = NULL;
	if (unlikely(call->has_attributes || settings_include_system_attributes))
		call->sent = recording_attributes(call->attributes, &call->nsent, NULL);
	call->prepared = true;
}

void
exposure_queue(ExposureCall *call, const SnapImage *snapshot,
			   const SnapExperiment *experiment, EngineText name,
			   uint64 identity, const Assignment *assignment, UnitList *units)
{
	EventContext context;
	EventExposure exposure;
	uint64 key = 0;

	if (call->deduplicated)
	{
		key = exposure_key(identity, assignment, units);
		if (buffer_exposed(key, call_time(call)))
			return;
	}

	unit_list_digest_all(units);
	prepare(call);
	context.units = units->units;
	context.nunits = units->count;
	context.attributes = call->sent;
	context.nattributes = call->nsent;
	context.set_at = call->nsent > 0 ? call->exposed_at : 0;
	context.historic = call->historic;
	context.own_times = false;
	context.identity = 0;

	if (likely(experiment != NULL))
	{
		exposure.id = experiment->id;
		exposure.name = snapshot_text(snapshot, experiment->name);
	}
	else
	{
		exposure.id = 0;
		exposure.name = name;
	}
	exposure.unit_type = exposure_unit_type(snapshot, experiment);
	exposure.variant = assignment->variant;
	exposure.flags = assignment->flags;
	exposure.has_holdouts = snapshot->has_holdouts;
	exposure.holdout_id = assignment->holdout_id;
	exposure.exposed_at = call->exposed_at;

	if (buffer_exposure(&context, &exposure) && call->deduplicated)
		buffer_mark_exposed(key);
}

/*
 * Treatments
 */

/* Finds the experiment; NULL: unknown. */
static inline const SnapExperiment *
find_experiment(ExposureSite *site, const DataVersion *version,
				const text *name)
{
	const SnapExperiment *experiment;

	if (likely(name_cache_holds(&site->name, version, name)))
		return site->name.found;
	experiment = evaluation_find_experiment(&site->name, version, name);
	site->identity = exposure_identity(data_version_snapshot(version),
									   experiment, text_datum_to_utf8(name));
	return experiment;
}

/* Assigns the list's own unit, exposes, and gives the variant. */
static inline int32
treat(ExposureCall *call, const ExposureSite *site, const DataVersion *version,
	  const SnapExperiment *experiment, const text *name, const int32 *custom,
	  UnitList *units)
{
	EngineText unknown = {NULL, 0};
	Assignment assignment;

	assignment_make(version, experiment, name, custom, unit_from_list, units,
					call->has_attributes, call->attributes, &assignment);
	if (unlikely(experiment == NULL))
		unknown = text_datum_to_utf8(name);
	exposure_queue(call, data_version_snapshot(version), experiment, unknown,
				   site->identity, &assignment, units);
	return assignment.variant;
}

/* Without data everybody gets control and nobody is exposed; overrides work. */
static int32
treat_not_ready(const text *name)
{
	const int32 *override = evaluation_override(name);

	return override ? *override : 0;
}

PG_FUNCTION_INFO_V1(absmartly_treatment);

/*
 * absmartly_treatment(units jsonb, experiment text, attributes jsonb,
 *					   custom_variant int, exposed_at timestamptz,
 *					   historic boolean) -> int
 *
 * The variant of an experiment for these units, 0 if there is no such
 * experiment; queues its exposure.  NULL units or experiment give NULL and
 * queue nothing.  Errors as absmartly_peek_treatment(), those of recording
 * (events/buffer.h), 22008 for an infinite time, and 54000 for more units or
 * attributes than an event may have.
 */
SQL_FUNCTION(absmartly_treatment)
{
	ExposureSite *site = call_site_state(fcinfo, sizeof(ExposureSite));
	const DataVersion *version;
	const SnapExperiment *experiment;
	const Jsonb *units;
	JsonbBuffer buffer;
	const text *name;
	ExposureCall call;
	UnitList list;
	int32 custom;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	units = jsonb_argument(PG_GETARG_DATUM(0), &buffer);
	name = PG_GETARG_TEXT_PP(1);
	custom = PG_ARGISNULL(3) ? 0 : PG_GETARG_INT32(3);
	evaluation_check_variant(custom);
	exposure_begin(&call, fcinfo, 2, 4);
	unit_list_read(units, &list);

	version = evaluation_data();
	if (unlikely(version == NULL))
		PG_RETURN_INT32(treat_not_ready(name));
	experiment = find_experiment(site, version, name);
	unit_list_choose(
		&list, exposure_unit_type(data_version_snapshot(version), experiment));

	PG_RETURN_INT32(treat(&call, site, version, experiment, name,
						  PG_ARGISNULL(3) ? NULL : &custom, &list));
}

/*
 * The three functions that take one unit: (uid, experiment text, attributes
 * jsonb, exposed_at timestamptz, historic boolean).  The uid is that of
 * whatever unit type the experiment names; if it names none, the exposure is
 * one without units.
 */
static inline Datum
treat_unit(FunctionCallInfo fcinfo, const UnitValue *unit)
{
	ExposureSite *site = call_site_state(fcinfo, sizeof(ExposureSite));
	const text *name = PG_GETARG_TEXT_PP(1);
	const DataVersion *version;
	const SnapExperiment *experiment;
	ExposureCall call;
	UnitList list;

	exposure_begin(&call, fcinfo, 2, 3);
	version = evaluation_data();
	if (unlikely(version == NULL))
		PG_RETURN_INT32(treat_not_ready(name));
	experiment = find_experiment(site, version, name);
	unit_list_one(
		unit, exposure_unit_type(data_version_snapshot(version), experiment),
		&list);
	PG_RETURN_INT32(treat(&call, site, version, experiment, name, NULL, &list));
}

PG_FUNCTION_INFO_V1(absmartly_unit_treatment_text);

/*
 * absmartly_unit_treatment(uid text, experiment text, attributes jsonb,
 *							exposed_at timestamptz, historic boolean) -> int
 *
 * NULL uid or experiment give NULL and queue nothing; 22023 for a blank or
 * overlong uid.
 */
SQL_FUNCTION(absmartly_unit_treatment_text)
{
	const text *uid;
	UnitValue unit;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	uid = PG_GETARG_TEXT_PP(0);
	units_from_text(VARDATA_ANY(uid), VARSIZE_ANY_EXHDR(uid), &unit);
	return treat_unit(fcinfo, &unit);
}

PG_FUNCTION_INFO_V1(absmartly_unit_treatment_bigint);

/* The same for a bigint uid, which stands for its decimal text. */
SQL_FUNCTION(absmartly_unit_treatment_bigint)
{
	char digits[UNITS_BIGINT_LENGTH + 1];
	UnitValue unit;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	units_from_bigint(PG_GETARG_INT64(0), digits, &unit);
	return treat_unit(fcinfo, &unit);
}

PG_FUNCTION_INFO_V1(absmartly_unit_treatment_uuid);

/* The same for a uuid, which stands for its canonical text. */
SQL_FUNCTION(absmartly_unit_treatment_uuid)
{
	char canonical[UUID_TEXT_LENGTH];
	UnitValue unit;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	units_from_uuid(PG_GETARG_UUID_P(0), canonical, &unit);
	return treat_unit(fcinfo, &unit);
}
