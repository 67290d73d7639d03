/*
 * response.h
 *		What the collector says about a publish request (protocol 1).
 */
#ifndef ABSMARTLY_WORKER_RESPONSE_H
#define ABSMARTLY_WORKER_RESPONSE_H

#include "postgres.h"

#include "worker/collector.h"

/* One of the collector's remarks. */
typedef struct ResponseMessage
{
	int batch_index; /* which request of a batch it is about; -1: not said */
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
 * the current memory context.
 */
extern void response_parse(Response *response, const char *body, size_t length,
						   const CollectorKey *key);

#endif /* ABSMARTLY_WORKER_RESPONSE_H */
