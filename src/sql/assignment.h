/*
 * assignment.h
 *		One assignment, for the functions that peek and those that expose.
 */
#ifndef ABSMARTLY_SQL_ASSIGNMENT_H
#define ABSMARTLY_SQL_ASSIGNMENT_H

#include "postgres.h"

#include "sql/evaluation.h"

/*
 * Assigns a unit, which source gives, to an experiment, which may be unknown
 * (NULL).  The attributes have been checked.  In line, since it is the hot path
 * of both.
 */
static inline void
assignment_make(const DataVersion *version, const SnapExperiment *experiment,
				const text *name, const int32 *custom, AssignUnitSource source,
				void *source_context, bool has_attributes, Datum attributes,
				Assignment *result)
{
	Evaluation evaluation;
	AssignRequest request;
	EngineStatus status;

	if (unlikely(evaluation_needed(experiment)))
		evaluation_begin(&evaluation, version,
						 settings_include_system_attributes, has_attributes,
						 attributes);

	request.snapshot = data_version_snapshot(version);
	request.experiment = experiment;
	request.override = evaluation_override(name);
	request.custom = custom;
	request.unit = source;
	request.unit_context = source_context;
	request.eval = &evaluation.context;
	request.trace = NULL;
	status = assign(&request, result);
	if (unlikely(status != ENGINE_OK))
		evaluation_raise(status);
}

#endif /* ABSMARTLY_SQL_ASSIGNMENT_H */
