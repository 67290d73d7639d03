/*
 * semver.c
 *		Comparison of versions, as the semver_ operators need it.
 *
 * It is more lenient than semantic versioning: any text with a core is a
 * version ("latest", "1.x"), with any number of parts of any length.
 */
#include "semver.h"

#include <string.h>

/* What a part costs, apart from its length */
#define PART_COST 32

/*
 * Takes the text up to the next separator off rest; false when nothing is
 * left.  An empty text has one empty part, as when JavaScript splits it: the
 * caller marks the end by rest->data being NULL.
 */
static bool
next_part(EngineText *rest, EngineText *part)
{
	const char *dot;

	if (rest->data == NULL)
		return false;
	*part = *rest;
	dot = rest->length > 0 ? memchr(rest->data, '.', rest->length) : NULL;
	if (dot == NULL)
		rest->data = NULL;
	else
	{
		part->length = (size_t) (dot - rest->data);
		rest->data = dot + 1;
		rest->length -= part->length + 1;
	}
	return true;
}

static bool
is_numeric(EngineText part, Work *work)
{
	size_t at;

	for (at = 0; at < part.length; at++)
	{
		if (at % WORK_PIECE == WORK_PIECE - 1 &&
			!work_goes_on(work, WORK_PIECE))
			return false;
		if (part.data[at] < '0' || part.data[at] > '9')
			return false;
	}
	return part.length > 0;
}

/* A number without the zeros in front of it. */
static EngineText
skip_zeros(EngineText number, Work *work)
{
	while (number.length > 1 && number.data[0] == '0' && work_goes_on(work, 1))
	{
		number.data++;
		number.length--;
	}
	return number;
}

static int
compare_part(EngineText left, EngineText right, Work *work)
{
	bool left_numeric = is_numeric(left, work);
	bool right_numeric = is_numeric(right, work);

	if (left_numeric != right_numeric)
		return left_numeric ? -1 : 1;
	if (left_numeric)
	{
		left = skip_zeros(left, work);
		right = skip_zeros(right, work);
		if (left.length != right.length)
			return left.length < right.length ? -1 : 1;
	}
	return value_compare_text(left, right, work);
}

/*
 * Splits a version into core and pre-release; *pre has no data if there is
 * none or an empty one.  False: no version.
 */
static bool
split_version(EngineText version, EngineText *core, EngineText *pre)
{
	const char *mark;

	if (version.length > 0 &&
		(version.data[0] == 'v' || version.data[0] == 'V'))
	{
		version.data++;
		version.length--;
	}
	if (version.length == 0)
		return false;
	mark = memchr(version.data, '+', version.length);
	if (mark != NULL)
		version.length = (size_t) (mark - version.data);

	*core = version;
	pre->data = NULL;
	pre->length = 0;
	mark =
		version.length > 0 ? memchr(version.data, '-', version.length) : NULL;
	if (mark != NULL)
	{
		core->length = (size_t) (mark - version.data);
		if (core->length + 1 < version.length)
		{
			pre->data = mark + 1;
			pre->length = version.length - core->length - 1;
		}
	}
	return core->length > 0;
}

ValueOrder
semver_compare(EngineText left, EngineText right, Work *work)
{
	static const EngineText zero = {"0", 1};
	EngineText left_pre;
	EngineText right_pre;
	EngineText left_part;
	EngineText right_part;
	bool left_more;
	bool right_more;
	int order = 0;

	if (!split_version(left, &left, &left_pre) ||
		!split_version(right, &right, &right_pre))
		return VALUE_INCOMPARABLE;

	while (order == 0 && work_goes_on(work, PART_COST))
	{
		left_more = next_part(&left, &left_part);
		right_more = next_part(&right, &right_part);
		if (!left_more && !right_more)
			break;
		order = compare_part(left_more ? left_part : zero,
							 right_more ? right_part : zero, work);
	}

	if (order == 0 && (left_pre.data == NULL) != (right_pre.data == NULL))
		order = left_pre.data == NULL ? 1 : -1;
	while (order == 0 && work_goes_on(work, PART_COST))
	{
		left_more = next_part(&left_pre, &left_part);
		right_more = next_part(&right_pre, &right_part);
		if (!left_more && !right_more)
			break;
		if (left_more != right_more)
			order = left_more ? 1 : -1;
		else
			order = compare_part(left_part, right_part, work);
	}
	return order < 0 ? VALUE_LESS : order > 0 ? VALUE_GREATER : VALUE_EQUAL;
}
