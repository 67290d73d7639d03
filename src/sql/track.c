/*
 * track.c
 *		absmartly_track(): goals (DESIGN 3.1).
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "events/buffer.h"
#include "settings.h"
#include "sql/evaluation.h"
#include "sql/function.h"
#include "sql/jsonb_value.h"
#include "sql/recording.h"
#include "sql/units.h"

/* The properties of a goal: those of an object, or null. */
static EngineText
goal_properties(Datum properties, const text *goal)
{
	EngineText none = {NULL, 0};
	Jsonb *jsonb;
	Value value;

	if (jsonb_datum_is_object(properties))
		return recording_json(properties, "properties");
	jsonb = DatumGetJsonbP(properties);
	jsonb_to_value(jsonb, &value);
	if (value.kind != VALUE_NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("properties of goal \"%s\" must be a JSON object",
						text_to_cstring(goal)),
				 errhint("Name each value, as in '{\"amount\": 125}'.")));
	return none;
}

PG_FUNCTION_INFO_V1(absmartly_track);

/*
 * absmartly_track(units jsonb, goal text, properties jsonb,
 *				   achieved_at timestamptz, attributes jsonb,
 *				   historic boolean) -> void
 *
 * Queues a goal.  NULL units or goal, and units that are all null, queue
 * nothing.  22023 for units, a goal's name, properties or attributes that
 * cannot be, 22008 for an infinite time, 54000 for more units or attributes
 * than an event may have, and the errors of recording (events/buffer.h).
 */
SQL_FUNCTION(absmartly_track)
{
	EventContext context = {0};
	EventGoal goal = {0};
	JsonbBuffer buffer;
	UnitList units;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_VOID();
	unit_list_read(jsonb_argument(PG_GETARG_DATUM(0), &buffer), &units);
	goal.name = recording_goal_name(PG_GETARG_TEXT_PP(1));
	if (!PG_ARGISNULL(2))
		goal.properties =
			goal_properties(PG_GETARG_DATUM(2), PG_GETARG_TEXT_PP(1));
	goal.achieved_at =
		PG_ARGISNULL(3)
			? buffer_time_ms(GetCurrentTimestamp())
			: recording_time_ms(PG_GETARG_TIMESTAMPTZ(3), "achieved_at");
	if (!PG_ARGISNULL(4) || settings_include_system_attributes)
		context.attributes = recording_attributes(
			PG_ARGISNULL(4) ? (Datum) 0 : PG_GETARG_DATUM(4),
			&context.nattributes, NULL);
	if (units.count == 0)
		PG_RETURN_VOID();

	unit_list_digest_all(&units);
	context.units = units.units;
	context.nunits = units.count;
	if (context.nattributes > 0)
		context.set_at = goal.achieved_at;
	context.historic = PG_ARGISNULL(5) ? settings_historic : PG_GETARG_BOOL(5);
	buffer_goal(&context, &goal);
	PG_RETURN_VOID();
}
