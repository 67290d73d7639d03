/*
 * value.c
 *		Conversion and comparison of the values of expressions (protocol 6),
 *		and the accessors over the engine's own tree.
 */
#include "value.h"

#include <string.h>

#include "number.h"

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

static bool
json_member(const Value *object, const char *name, size_t length, Value *result)
{
	const JsonNode *node = object->u.container.node;
	const JsonNode *member = json_element(node, 0);
	uint32_t index;

	for (index = 0; index < node->count; index++, member += 2)
	{
		if (member->count == length &&
			memcmp(json_text(member), name, length) == 0)
		{
			value_from_json(member + 1, result);
			return true;
		}
	}
	return false;
}

static void
json_member_at(const Value *object, uint32_t index, EngineText *name,
			   Value *result)
{
	const JsonNode *node = object->u.container.node;
	const JsonNode *member = json_member_name(node, index);

	name->data = json_text(member);
	name->length = member->count;
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
value_to_number(const Value *value, double *number)
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
									   value->u.string.length, number);
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
value_compare_text(EngineText left, EngineText right)
{
	size_t common = left.length < right.length ? left.length : right.length;
	size_t at = 0;
	unsigned char a;
	unsigned char b;

	if (common > 0 && memcmp(left.data, right.data, common) == 0)
		at = common;
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

EngineStatus
value_deep_equal(const Value *left, const Value *right, StackCheck stack_ok,
				 bool *equal)
{
	const ValueOps *left_ops;
	const ValueOps *right_ops;
	uint32_t count;
	uint32_t index;

	*equal = false;
	if (left->kind != right->kind)
		return ENGINE_OK;
	switch (left->kind)
	{
		case VALUE_NULL:
			*equal = true;
			return ENGINE_OK;
		case VALUE_BOOLEAN:
			*equal = left->u.boolean == right->u.boolean;
			return ENGINE_OK;
		case VALUE_NUMBER:
			*equal = left->u.number == right->u.number;
			return ENGINE_OK;
		case VALUE_STRING:
			*equal = left->u.string.length == right->u.string.length &&
					 value_compare_text(left->u.string, right->u.string) == 0;
			return ENGINE_OK;
		case VALUE_ARRAY:
		case VALUE_OBJECT:
			break;
	}

	if (stack_ok != NULL && !stack_ok())
		return ENGINE_STACK;
	left_ops = left->u.container.ops;
	right_ops = right->u.container.ops;
	count = left_ops->count(left);
	if (count != right_ops->count(right))
		return ENGINE_OK;
	for (index = 0; index < count; index++)
	{
		Value left_item;
		Value right_item;
		EngineStatus status;
		bool same;

		if (left->kind == VALUE_ARRAY)
		{
			if (!left_ops->element(left, index, &left_item) ||
				!right_ops->element(right, index, &right_item))
				return ENGINE_OK;
		}
		else
		{
			EngineText name;

			/* names are unique, so one direction and the count suffice */
			left_ops->member_at(left, index, &name, &left_item);
			if (!right_ops->member(right, name.data, name.length, &right_item))
				return ENGINE_OK;
		}
		status = value_deep_equal(&left_item, &right_item, stack_ok, &same);
		if (status != ENGINE_OK || !same)
			return status;
	}
	*equal = true;
	return ENGINE_OK;
}

EngineStatus
value_compare(const Value *left, const Value *right, StackCheck stack_ok,
			  ValueOrder *order)
{
	*order = VALUE_INCOMPARABLE;
	if (left->kind == VALUE_NULL || right->kind == VALUE_NULL)
	{
		if (left->kind == right->kind)
			*order = VALUE_EQUAL;
		return ENGINE_OK;
	}
	switch (left->kind)
	{
		case VALUE_NUMBER:
		{
			double number;

			if (value_to_number(right, &number))
				*order = left->u.number < number   ? VALUE_LESS
						 : left->u.number > number ? VALUE_GREATER
												   : VALUE_EQUAL;
			break;
		}
		case VALUE_STRING:
		{
			char buffer[VALUE_NUMBER_TEXT];
			EngineText text;

			if (value_to_string(right, buffer, &text))
				*order = (ValueOrder) value_compare_text(left->u.string, text);
			break;
		}
		case VALUE_BOOLEAN:
			*order = (ValueOrder) (left->u.boolean - value_to_boolean(right));
			break;
		case VALUE_ARRAY:
		case VALUE_OBJECT:
		{
			bool equal;
			EngineStatus status =
				value_deep_equal(left, right, stack_ok, &equal);

			if (status != ENGINE_OK)
				return status;
			if (equal)
				*order = VALUE_EQUAL;
			break;
		}
		case VALUE_NULL:
			break;
	}
	return ENGINE_OK;
}
