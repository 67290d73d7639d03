/*
 * pairs.h
 *		Arguments of triggers and backfills that name columns.
 */
#ifndef ABSMARTLY_SQL_PAIRS_H
#define ABSMARTLY_SQL_PAIRS_H

#include "postgres.h"

#include "nodes/pg_list.h"

/* A member of a list: name=column, name='text', or a column alone. */
typedef struct NamePair
{
	char *name;
	char *column; /* as the catalog has it, which cuts names; NULL: a text */
	char *constant;
} NamePair;

/* What is wrong with an argument. */
typedef struct PairsError
{
	const char *at; /* it cannot be read from here on; NULL: it can */
	const char *twice; /* a name that stands there twice; NULL: none does */
} PairsError;

/*
 * The NamePairs of an argument, in the current memory context.  texts: whether
 * there may be texts in it.  False if something is wrong with it.
 */
extern bool pairs_parse(const char *argument, bool texts, List **pairs,
						PairsError *error);

/* An argument that is one name; NULL if something is wrong with it. */
extern char *pairs_parse_name(const char *argument, PairsError *error);

/* Whether an argument stands for all columns: "*". */
extern bool pairs_are_all(const char *argument);

#endif /* ABSMARTLY_SQL_PAIRS_H */
