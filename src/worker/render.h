/*
 * render.h
 *		Publish requests as the collector expects them (protocol 1 and 9).
 */
#ifndef ABSMARTLY_WORKER_RENDER_H
#define ABSMARTLY_WORKER_RENDER_H

#include "postgres.h"

#include "lib/stringinfo.h"

#include "events/encoding.h"

/* what begins every request; the moment of sending follows, in 13 digits */
#define RENDER_PREFIX "{\"publishedAt\":"
#define RENDER_TIME_DIGITS 13

/* A publish request that is being written to the end of a text. */
typedef struct Render
{
	StringInfo text;
	bool has_exposures;
	/* what waits for the end of the exposures; empty if there is none */
	StringInfoData goals;
	StringInfoData attributes;
} Render;

/* One for each worker; made in the current memory context. */
extern void render_init(Render *render, StringInfo text);

/*
 * Writes a request: begin, its events in order, end.  Nothing given is needed
 * longer than the call.  publishedAt is 0 in 13 digits until
 * render_set_time() writes it at the request's start.
 */
extern void render_begin(Render *render, const EventContext *context);
extern void render_exposure(Render *render, const EventExposure *exposure);
extern void render_goal(Render *render, const EventGoal *goal);
extern void render_end(Render *render);

extern void render_set_time(char *request, int64 ms);

/* This moment, in ms. */
extern int64 render_now(void);

/*
 * The attributes of a context alone, as an array, as they are sent now, but
 * with those that have no name.
 */
extern void render_attributes(StringInfo text, const EventContext *context);

#endif /* ABSMARTLY_WORKER_RENDER_H */
