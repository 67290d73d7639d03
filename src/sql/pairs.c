/*
 * pairs.c
 *		Arguments of triggers and backfills that name columns.
 *
 * Names follow the rules of SQL identifiers, but may be of any length.
 */
#include "postgres.h"

#include "parser/scansup.h"

#include "sql/pairs.h"

static const char *
skip_blanks(const char *at)
{
	while (scanner_isspace(*at))
		at++;
	return at;
}

static bool
is_name_start(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
		   IS_HIGHBIT_SET(c);
}

static bool
is_name_part(char c)
{
	return is_name_start(c) || (c >= '0' && c <= '9') || c == '$';
}

/* What stands in quotes, of which two in it are one; NULL: it has no end. */
static char *
parse_quoted(const char **at)
{
	const char *end = *at + 1;
	char quote = **at;
	char *text = palloc(strlen(*at));
	char *to = text;

	for (; *end != quote || end[1] == quote; end++)
	{
		if (*end == '\0')
			return NULL;
		*to++ = *end;
		if (*end == quote)
			end++;
	}
	*to = '\0';
	*at = skip_blanks(end + 1);
	return text;
}

static char *
parse_name(const char **at, PairsError *error)
{
	const char *start = *at;
	const char *end = start;
	char *name = NULL;

	if (is_name_start(*start))
	{
		while (is_name_part(*end))
			end++;
		*at = skip_blanks(end);
		return downcase_identifier(start, (int) (end - start), false, false);
	}
	if (*start == '"')
		name = parse_quoted(at);
	if (name != NULL && name[0] != '\0')
		return name;
	error->at = start;
	return NULL;
}

static char *
parse_text(const char **at, PairsError *error)
{
	const char *start = *at;
	char *text = parse_quoted(at);

	if (text == NULL)
		error->at = start;
	return text;
}

static NamePair *
parse_pair(const char **at, bool texts, PairsError *error)
{
	NamePair *pair = palloc0(sizeof(NamePair));

	pair->name = parse_name(at, error);
	pair->column = pair->name;
	if (error->at == NULL && **at == '=')
	{
		*at = skip_blanks(*at + 1);
		pair->column = NULL;
		if (**at == '\'' && texts)
			pair->constant = parse_text(at, error);
		else
			pair->column = parse_name(at, error);
	}
	/* the same column has this name in SQL */
	if (pair->column != NULL)
		truncate_identifier(pair->column, (int) strlen(pair->column), false);
	return pair;
}

bool
pairs_parse(const char *argument, bool texts, List **pairs, PairsError *error)
{
	const char *at = skip_blanks(argument);

	*pairs = NIL;
	*error = (PairsError){.at = NULL};
	while (*at != '\0')
	{
		NamePair *pair = parse_pair(&at, texts, error);
		ListCell *cell;

		if (error->at != NULL)
			return false;
		foreach (cell, *pairs)
		{
			if (strcmp(((const NamePair *) lfirst(cell))->name, pair->name) !=
				0)
				continue;
			error->twice = pair->name;
			return false;
		}
		*pairs = lappend(*pairs, pair);

		if (*at == ',')
		{
			at = skip_blanks(at + 1);
			if (*at != '\0')
				continue;
		}
		else if (*at == '\0')
			return true;
		error->at = at;
		return false;
	}
	return true;
}

char *
pairs_parse_name(const char *argument, PairsError *error)
{
	const char *at = skip_blanks(argument);
	char *name;

	*error = (PairsError){.at = NULL};
	name = parse_name(&at, error);
	if (name != NULL && *at != '\0')
		error->at = at;
	return error->at == NULL ? name : NULL;
}

bool
pairs_are_all(const char *argument)
{
	const char *at = skip_blanks(argument);

	return *at == '*' && *skip_blanks(at + 1) == '\0';
}
