/*
 * response.h
 *		What the collector says about a publish request (protocol 1).
 */
#ifndef ABSMARTLY_WORKER_RESPONSE_H
#define ABSMARTLY_WORKER_RESPONSE_H

#include "postgres.h"

#include "worker/collector.h"

/* The part of a publish request that a remark is about. */
typedef enum ResponsePart
{
	RESPONSE_UNKNOWN,
	RESPONSE_EXPOSURES,
	RESPONSE_GOALS,
	RESPONSE_SHARED /* units or attributes: all events have them */
} ResponsePart;

/* One of the collector's remarks. */
typedef struct ResponseMessage
{
	int batch_index; /* which request of a batch it is about; -1: not said */
	ResponsePart part;
	int event_index; /* which element of that part; -1: not said */
	char *text; /* UTF-8, without the key and control characters */
} ResponseMessage;

typedef struct Response
{
	int nwarnings;
	char *first_warning; /* NULL: none */
	int nerrors;
	ResponseMessage *errors;
} Response;

/*
 * Reads a publish response; what can't be read of it is left out.  All is in
 * the current memory context.  False if it is none.
 */
extern bool response_parse(Response *response, const char *body, size_t length,
						   const CollectorKey *key);

#endif /* ABSMARTLY_WORKER_RESPONSE_H */
