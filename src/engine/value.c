/*
 * value.c
 *		Conversion and comparison of the values of expressions (protocol 6),
 *		and the accessors over the engine's own tree.
 */
#include "value.h"

#include <string.h>

#include "number.h"

/* What an element or a member costs, apart from its length */
#define ITEM_COST 16

/* So much of a text is compared in what its item costs */
#define SHORT_TEXT 16

static uint32_t
json_count(const Value *container)
{
	return ((const JsonNode *) container->u.container.node)->count;
}

static bool
json_element_value(const Value *array, uint32_t index, Value *result)
{
	const JsonNode *node = array->u.container.node;

	if (index >= node->count)
		return false;
	value_from_json(json_element(node, index), result);
	return true;
}

static EngineText
node_text(const JsonNode *node)
{
	EngineText text = {json_text(node), node->count};

	return text;
}

static bool
json_member(const Value *object, const char *name, size_t length, Value *result)
{
	const JsonNode *node = object->u.container.node;
	EngineText wanted = {name, length};
	uint32_t low = 0;
	uint32_t high = node->count;

	while (low < high)
	{
		uint32_t middle = low + (high - low) / 2;
		int order = json_compare_names(
			wanted, node_text(json_member_name(node, middle)));

		if (order == 0)
		{
			value_from_json(json_member_value(node, middle), result);
			return true;
		}
		if (order < 0)
			high = middle;
		else
			low = middle + 1;
	}
	return false;
}

static void
json_member_at(const Value *object, uint32_t index, EngineText *name,
			   Value *result)
{
	const JsonNode *node = object->u.container.node;
	const JsonNode *member = json_member_name(node, index);

	*name = node_text(member);
	value_from_json(member + 1, result);
}

const ValueOps json_value_ops = {json_count, json_element_value, json_member,
								 json_member_at};

void
value_from_json(const JsonNode *node, Value *value)
{
	switch ((JsonKind) node->kind)
	{
		case JSON_NULL:
			value->kind = VALUE_NULL;
			break;
		case JSON_FALSE:
		case JSON_TRUE:
			value->kind = VALUE_BOOLEAN;
			value->u.boolean = node->kind == JSON_TRUE;
			break;
		case JSON_NUMBER:
			value->kind = VALUE_NUMBER;
			value->u.number = node->number;
			break;
		case JSON_STRING:
			value->kind = VALUE_STRING;
			value->u.string.data = json_text(node);
			value->u.string.length = node->count;
			break;
		case JSON_ARRAY:
		case JSON_OBJECT:
			value->kind = node->kind == JSON_ARRAY ? VALUE_ARRAY : VALUE_OBJECT;
			value->u.container.ops = &json_value_ops;
			value->u.container.node = node;
			value->u.container.extra = 0;
			break;
	}
}

static bool
text_is(EngineText text, const char *other)
{
	return text.length == strlen(other) &&
		   memcmp(text.data, other, text.length) == 0;
}

bool
value_to_boolean(const Value *value)
{
	switch (value->kind)
	{
		case VALUE_NULL:
			return false;
		case VALUE_BOOLEAN:
			return value->u.boolean;
		case VALUE_NUMBER:
			return value->u.number != 0;
		case VALUE_STRING:
			return value->u.string.length > 0 &&
				   !text_is(value->u.string, "0") &&
				   !text_is(value->u.string, "false");
		case VALUE_ARRAY:
		case VALUE_OBJECT:
			return true;
	}
	return false;
}

bool
value_to_number(const Value *value, double *number, Work *work)
{
	switch (value->kind)
	{
		case VALUE_NUMBER:
			*number = value->u.number;
			return true;
		case VALUE_BOOLEAN:
			*number = value->u.boolean ? 1 : 0;
			return true;
		case VALUE_STRING:
			return number_parse_prefix(value->u.string.data,
									   value->u.string.length, number, work);
		case VALUE_NULL:
		case VALUE_ARRAY:
		case VALUE_OBJECT:
			break;
	}
	return false;
}

bool
value_to_string(const Value *value, char *buffer, EngineText *text)
{
	switch (value->kind)
	{
		case VALUE_STRING:
			*text = value->u.string;
			return true;
		case VALUE_BOOLEAN:
			text->data = value->u.boolean ? "true" : "false";
			text->length = value->u.boolean ? 4 : 5;
			return true;
		case VALUE_NUMBER:
			/*
			 * The reference removes zeros at the end of whatever toFixed()
			 * gives, also of an exponent.
			 */
			text->data = buffer;
			text->length = number_to_fixed(value->u.number, 15, buffer);
			while (text->length > 1 && buffer[text->length - 1] == '0')
				text->length--;
			if (buffer[text->length - 1] == '.')
				text->length--;
			return true;
		case VALUE_NULL:
		case VALUE_ARRAY:
		case VALUE_OBJECT:
			break;
	}
	return false;
}

/*
 * The order of UTF-8 bytes is that of code points.  The order of UTF-16 code
 * units differs from it in one place: characters above U+FFFF (lead bytes
 * from F0) are surrogates there and sort below U+E000 to U+FFFF (lead bytes
 * EE and EF).
 */
int
value_compare_text(EngineText left, EngineText right, Work *work)
{
	size_t common = left.length < right.length ? left.length : right.length;
	size_t at = 0;
	unsigned char a;
	unsigned char b;

	/* most texts differ early, and are short */
	while (common - at > SHORT_TEXT)
	{
		size_t piece = common - at < WORK_PIECE ? common - at : WORK_PIECE;

		if (!work_goes_on(work, piece / WORK_BYTES) ||
			memcmp(left.data + at, right.data + at, piece) != 0)
			break;
		at += piece;
	}
	while (at < common && left.data[at] == right.data[at])
		at++;
	if (at == common)
		return left.length < right.length   ? -1
			   : left.length > right.length ? 1
											: 0;
	a = (unsigned char) left.data[at];
	b = (unsigned char) right.data[at];
	if (a >= 0xee && b >= 0xee && (a >= 0xf0) != (b >= 0xf0))
		return a >= 0xf0 ? -1 : 1;
	return a < b ? -1 : 1;
}

/*
 * Substring search in linear time, whatever the texts are: the algorithm of
 * Crochemore and Perrin ("Two-way string-matching", 1991), which needs no
 * memory.  The needle is cut where it has a period only as a whole; its right
 * part is compared forwards, then its left part backwards.
 */

/*
 * The start of the largest suffix of the needle in the order of bytes, or in
 * the opposite one, and the suffix's period.
 */
static size_t
largest_suffix(EngineText needle, bool opposite, size_t *period, Work *work)
{
	size_t start = 0;
	size_t candidate = 1;
	size_t length = 0; /* so many bytes are equal */

	*period = 1;
	while (candidate + length < needle.length && work_goes_on(work, 1))
	{
		unsigned char new_byte =
			(unsigned char) needle.data[candidate + length];
		unsigned char old_byte = (unsigned char) needle.data[start + length];

		if (new_byte == old_byte)
		{
			if (++length == *period)
			{
				candidate += length;
				length = 0;
			}
		}
		else if ((new_byte < old_byte) != opposite)
		{
			/* the candidate is smaller: so far all is one period */
			candidate += length + 1;
			length = 0;
			*period = candidate - start;
		}
		else
		{
			start = candidate++;
			length = 0;
			*period = 1;
		}
	}
	return start;
}

static bool
contains_long(EngineText haystack, EngineText needle, Work *work)
{
	size_t period;
	size_t other_period;
	size_t cut = largest_suffix(needle, false, &period, work);
	size_t other_cut = largest_suffix(needle, true, &other_period, work);
	size_t last = haystack.length - needle.length;
	size_t known = 0; /* bytes of the needle known to match */
	size_t at = 0;
	bool periodic;

	if (other_cut > cut)
	{
		cut = other_cut;
		period = other_period;
	}
	periodic = cut + period <= needle.length &&
			   memcmp(needle.data, needle.data + period, cut) == 0;
	if (!periodic)
		period = (cut > needle.length - cut ? cut : needle.length - cut) + 1;

	while (at <= last)
	{
		const char *place = haystack.data + at;
		size_t right = cut > known ? cut : known;
		size_t left = cut;

		while (right < needle.length && needle.data[right] == place[right])
		{
			if (!work_goes_on(work, 1))
				return false;
			right++;
		}
		if (right < needle.length)
		{
			at += right - cut + 1;
			known = 0;
		}
		else
		{
			while (left > known && needle.data[left - 1] == place[left - 1])
			{
				if (!work_goes_on(work, 1))
					return false;
				left--;
			}
			if (left <= known)
				return true;
			at += period;
			known = periodic ? needle.length - period : 0;
		}
		if (!work_goes_on(work, 1))
			return false;
	}
	return false;
}

/*
 * Short needles, nearly all, are left to memmem(), in pieces of the haystack
 * that overlap by as much as a needle that lies across may need.
 */
bool
text_contains(EngineText haystack, EngineText needle, Work *work)
{
	size_t at = 0;

	if (needle.length == 0)
		return true;
	if (needle.length > haystack.length)
		return false;
	if (needle.length > WORK_PIECE / 8)
		return contains_long(haystack, needle, work);
	for (;;)
	{
		size_t length = haystack.length - at;

		if (length > WORK_PIECE + needle.length)
			length = WORK_PIECE + needle.length;
		if (!work_goes_on(work, length))
			return false;
		if (memmem(haystack.data + at, length, needle.data, needle.length) !=
			NULL)
			return true;
		if (at + length == haystack.length)
			return false;
		at += WORK_PIECE;
	}
}

/* Elements, or members with their names, one by one. */
static EngineStatus
containers_equal(const Value *left, const Value *right, Work *work, bool *equal)
{
	const ValueOps *left_ops = left->u.container.ops;
	const ValueOps *right_ops = right->u.container.ops;
	uint32_t count = left_ops->count(left);
	uint32_t index;

	if (count != right_ops->count(right))
		return ENGINE_OK;
	for (index = 0; index < count; index++)
	{
		Value left_item;
		Value right_item;
		EngineStatus status;
		bool same;

		if (!work_goes_on(work, ITEM_COST))
			return ENGINE_INTERRUPTED;
		if (left->kind == VALUE_ARRAY)
		{
			if (!left_ops->element(left, index, &left_item) ||
				!right_ops->element(right, index, &right_item))
				return ENGINE_OK;
		}
		else
		{
			EngineText left_name;
			EngineText right_name;

			/* both in one order: equal objects have equal names everywhere */
			left_ops->member_at(left, index, &left_name, &left_item);
			right_ops->member_at(right, index, &right_name, &right_item);
			if (!texts_equal(left_name, right_name, work))
				return ENGINE_OK;
		}
		status = value_deep_equal(&left_item, &right_item, work, &same);
		if (status != ENGINE_OK || !same)
			return status;
	}
	*equal = true;
	return ENGINE_OK;
}

EngineStatus
value_deep_equal(const Value *left, const Value *right, Work *work, bool *equal)
{
	*equal = false;
	if (left->kind != right->kind)
		return ENGINE_OK;
	switch (left->kind)
	{
		case VALUE_NULL:
			*equal = true;
			break;
		case VALUE_BOOLEAN:
			*equal = left->u.boolean == right->u.boolean;
			break;
		case VALUE_NUMBER:
			*equal = left->u.number == right->u.number;
			break;
		case VALUE_STRING:
			*equal = texts_equal(left->u.string, right->u.string, work);
			break;
		case VALUE_ARRAY:
		case VALUE_OBJECT:
			if (!work_has_stack(work))
				return ENGINE_STACK;
			return containers_equal(left, right, work, equal);
	}
	return work->stopped ? ENGINE_INTERRUPTED : ENGINE_OK;
}

void
compared_value_init(ComparedValue *compared, const Value *value)
{
	compared->value = value;
	compared->has_number = false;
	compared->has_text = false;
}

static bool
compared_number(ComparedValue *compared, Work *work, double *number)
{
	if (!compared->has_number)
	{
		compared->is_number =
			value_to_number(compared->value, &compared->number, work);
		compared->has_number = true;
	}
	*number = compared->number;
	return compared->is_number;
}

static bool
compared_text(ComparedValue *compared, EngineText *text)
{
	if (!compared->has_text)
	{
		compared->is_text =
			value_to_string(compared->value, compared->buffer, &compared->text);
		compared->has_text = true;
	}
	*text = compared->text;
	return compared->is_text;
}

static inline ValueOrder
compare_numbers(double left, double right)
{
	return left < right   ? VALUE_LESS
		   : left > right ? VALUE_GREATER
						  : VALUE_EQUAL;
}

EngineStatus
value_compare_with(const Value *left, ComparedValue *right, Work *work,
				   ValueOrder *order)
{
	*order = VALUE_INCOMPARABLE;
	if (left->kind == VALUE_NULL || right->value->kind == VALUE_NULL)
	{
		if (left->kind == right->value->kind)
			*order = VALUE_EQUAL;
		return ENGINE_OK;
	}
	switch (left->kind)
	{
		case VALUE_NUMBER:
		{
			double number;

			if (compared_number(right, work, &number))
				*order = compare_numbers(left->u.number, number);
			break;
		}
		case VALUE_STRING:
		{
			EngineText text;

			if (compared_text(right, &text))
				*order =
					(ValueOrder) value_compare_text(left->u.string, text, work);
			break;
		}
		case VALUE_BOOLEAN:
			*order =
				(ValueOrder) (left->u.boolean - value_to_boolean(right->value));
			break;
		case VALUE_ARRAY:
		case VALUE_OBJECT:
		{
			bool equal;
			EngineStatus status =
				value_deep_equal(left, right->value, work, &equal);

			if (status != ENGINE_OK)
				return status;
			if (equal)
				*order = VALUE_EQUAL;
			break;
		}
		case VALUE_NULL:
			break;
	}
	return work->stopped ? ENGINE_INTERRUPTED : ENGINE_OK;
}

EngineStatus
value_compare(const Value *left, const Value *right, Work *work,
			  ValueOrder *order)
{
	ComparedValue compared;

	/* what nearly all comparisons are about */
	if (left->kind == VALUE_NUMBER && right->kind == VALUE_NUMBER)
	{
		*order = compare_numbers(left->u.number, right->u.number);
		return ENGINE_OK;
	}
	if (left->kind == VALUE_STRING && right->kind == VALUE_STRING)
	{
		*order = (ValueOrder) value_compare_text(left->u.string,
												 right->u.string, work);
		return work->stopped ? ENGINE_INTERRUPTED : ENGINE_OK;
	}
	compared_value_init(&compared, right);
	return value_compare_with(left, &compared, work, order);
}
