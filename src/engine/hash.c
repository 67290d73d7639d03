/*
 * hash.c
 *		Hashing of units (protocol 3): MD5, base64url, murmur3.
 *
 * unit_hash() is what every assignment pays for, so its usual case, a text of
 * at most 55 bytes, takes a way of its own: one block, all 64 steps written
 * out, and the digest goes from registers through base64url into murmur3
 * without being read back from memory.
 */
#include <string.h>

#include "hash.h"
#include "number.h"

#define MD5_BLOCK 64
/* The longest text that fits one block with the mark and the length. */
#define MD5_ONE_BLOCK 55

typedef struct Md5State
{
	uint32_t a;
	uint32_t b;
	uint32_t c;
	uint32_t d;
} Md5State;

/* A text that comes in pieces. */
typedef struct Md5Stream
{
	Md5State state;
	uint64_t length; /* bytes so far */
	uint8_t block[MD5_BLOCK]; /* the last, incomplete block */
} Md5Stream;

/* RFC 1321, 3.3 */
static const Md5State md5_initial = {0x67452301, 0xefcdab89, 0x98badcfe,
									 0x10325476};

/* RFC 4648, table 2 */
static const char base64url_digits[64] = {
	'A', 'B', 'C', 'D', 'E', 'F', 'G', 'H', 'I', 'J', 'K', 'L', 'M',
	'N', 'O', 'P', 'Q', 'R', 'S', 'T', 'U', 'V', 'W', 'X', 'Y', 'Z',
	'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm',
	'n', 'o', 'p', 'q', 'r', 's', 't', 'u', 'v', 'w', 'x', 'y', 'z',
	'0', '1', '2', '3', '4', '5', '6', '7', '8', '9', '-', '_'};

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define LITTLE_ENDIAN_32(x) __builtin_bswap32(x)
#define LITTLE_ENDIAN_64(x) __builtin_bswap64(x)
#else
#define LITTLE_ENDIAN_32(x) (x)
#define LITTLE_ENDIAN_64(x) (x)
#endif

static inline uint32_t
load_le32(const void *bytes)
{
	uint32_t word;

	memcpy(&word, bytes, sizeof(word));
	return LITTLE_ENDIAN_32(word);
}

static inline void
store_le32(void *bytes, uint32_t word)
{
	uint32_t little = LITTLE_ENDIAN_32(word);

	memcpy(bytes, &little, sizeof(little));
}

static inline uint64_t
load_le64(const void *bytes)
{
	uint64_t word;

	memcpy(&word, bytes, sizeof(word));
	return LITTLE_ENDIAN_64(word);
}

static inline void
store_le64(void *bytes, uint64_t word)
{
	uint64_t little = LITTLE_ENDIAN_64(word);

	memcpy(bytes, &little, sizeof(little));
}

/*
 * The steps of RFC 1321, 3.4.  The digest is one long chain of dependent
 * operations, so what counts is how many of them follow the newest word (b):
 * the functions are written so that the rest is done beforehand.  In G both
 * halves have no bit in common, so they can be added one after the other.
 */
#define ROTATE(x, n) (((x) << (n)) | ((x) >> (32 - (n))))

#define STEP_F(a, b, c, d, i, k, s)            \
	do                                         \
	{                                          \
		a += load_le32(block + 4 * (i)) + (k); \
		a += (((c) ^ (d)) & (b)) ^ (d);        \
		a = ROTATE(a, s) + (b);                \
	} while (0)

#define STEP_G(a, b, c, d, i, k, s)            \
	do                                         \
	{                                          \
		a += load_le32(block + 4 * (i)) + (k); \
		a += (c) & ~(d);                       \
		a += (b) & (d);                        \
		a = ROTATE(a, s) + (b);                \
	} while (0)

#define STEP_H(a, b, c, d, i, k, s)            \
	do                                         \
	{                                          \
		a += load_le32(block + 4 * (i)) + (k); \
		a += ((c) ^ (d)) ^ (b);                \
		a = ROTATE(a, s) + (b);                \
	} while (0)

#define STEP_I(a, b, c, d, i, k, s)            \
	do                                         \
	{                                          \
		a += load_le32(block + 4 * (i)) + (k); \
		a += ((b) | ~(d)) ^ (c);               \
		a = ROTATE(a, s) + (b);                \
	} while (0)

/* One block of 64 bytes; result and initial may be the same. */
static inline void
md5_block(const uint8_t *block, const Md5State *initial, Md5State *result)
{
	uint32_t a = initial->a;
	uint32_t b = initial->b;
	uint32_t c = initial->c;
	uint32_t d = initial->d;

	STEP_F(a, b, c, d, 0, 0xd76aa478, 7);
	STEP_F(d, a, b, c, 1, 0xe8c7b756, 12);
	STEP_F(c, d, a, b, 2, 0x242070db, 17);
	STEP_F(b, c, d, a, 3, 0xc1bdceee, 22);
	STEP_F(a, b, c, d, 4, 0xf57c0faf, 7);
	STEP_F(d, a, b, c, 5, 0x4787c62a, 12);
	STEP_F(c, d, a, b, 6, 0xa8304613, 17);
	STEP_F(b, c, d, a, 7, 0xfd469501, 22);
	STEP_F(a, b, c, d, 8, 0x698098d8, 7);
	STEP_F(d, a, b, c, 9, 0x8b44f7af, 12);
	STEP_F(c, d, a, b, 10, 0xffff5bb1, 17);
	STEP_F(b, c, d, a, 11, 0x895cd7be, 22);
	STEP_F(a, b, c, d, 12, 0x6b901122, 7);
	STEP_F(d, a, b, c, 13, 0xfd987193, 12);
	STEP_F(c, d, a, b, 14, 0xa679438e, 17);
	STEP_F(b, c, d, a, 15, 0x49b40821, 22);

	STEP_G(a, b, c, d, 1, 0xf61e2562, 5);
	STEP_G(d, a, b, c, 6, 0xc040b340, 9);
	STEP_G(c, d, a, b, 11, 0x265e5a51, 14);
	STEP_G(b, c, d, a, 0, 0xe9b6c7aa, 20);
	STEP_G(a, b, c, d, 5, 0xd62f105d, 5);
	STEP_G(d, a, b, c, 10, 0x02441453, 9);
	STEP_G(c, d, a, b, 15, 0xd8a1e681, 14);
	STEP_G(b, c, d, a, 4, 0xe7d3fbc8, 20);
	STEP_G(a, b, c, d, 9, 0x21e1cde6, 5);
	STEP_G(d, a, b, c, 14, 0xc33707d6, 9);
	STEP_G(c, d, a, b, 3, 0xf4d50d87, 14);
	STEP_G(b, c, d, a, 8, 0x455a14ed, 20);
	STEP_G(a, b, c, d, 13, 0xa9e3e905, 5);
	STEP_G(d, a, b, c, 2, 0xfcefa3f8, 9);
	STEP_G(c, d, a, b, 7, 0x676f02d9, 14);
	STEP_G(b, c, d, a, 12, 0x8d2a4c8a, 20);

	STEP_H(a, b, c, d, 5, 0xfffa3942, 4);
	STEP_H(d, a, b, c, 8, 0x8771f681, 11);
	STEP_H(c, d, a, b, 11, 0x6d9d6122, 16);
	STEP_H(b, c, d, a, 14, 0xfde5380c, 23);
	STEP_H(a, b, c, d, 1, 0xa4beea44, 4);
	STEP_H(d, a, b, c, 4, 0x4bdecfa9, 11);
	STEP_H(c, d, a, b, 7, 0xf6bb4b60, 16);
	STEP_H(b, c, d, a, 10, 0xbebfbc70, 23);
	STEP_H(a, b, c, d, 13, 0x289b7ec6, 4);
	STEP_H(d, a, b, c, 0, 0xeaa127fa, 11);
	STEP_H(c, d, a, b, 3, 0xd4ef3085, 16);
	STEP_H(b, c, d, a, 6, 0x04881d05, 23);
	STEP_H(a, b, c, d, 9, 0xd9d4d039, 4);
	STEP_H(d, a, b, c, 12, 0xe6db99e5, 11);
	STEP_H(c, d, a, b, 15, 0x1fa27cf8, 16);
	STEP_H(b, c, d, a, 2, 0xc4ac5665, 23);

	STEP_I(a, b, c, d, 0, 0xf4292244, 6);
	STEP_I(d, a, b, c, 7, 0x432aff97, 10);
	STEP_I(c, d, a, b, 14, 0xab9423a7, 15);
	STEP_I(b, c, d, a, 5, 0xfc93a039, 21);
	STEP_I(a, b, c, d, 12, 0x655b59c3, 6);
	STEP_I(d, a, b, c, 3, 0x8f0ccc92, 10);
	STEP_I(c, d, a, b, 10, 0xffeff47d, 15);
	STEP_I(b, c, d, a, 1, 0x85845dd1, 21);
	STEP_I(a, b, c, d, 8, 0x6fa87e4f, 6);
	STEP_I(d, a, b, c, 15, 0xfe2ce6e0, 10);
	STEP_I(c, d, a, b, 6, 0xa3014314, 15);
	STEP_I(b, c, d, a, 13, 0x4e0811a1, 21);
	STEP_I(a, b, c, d, 4, 0xf7537e82, 6);
	STEP_I(d, a, b, c, 11, 0xbd3af235, 10);
	STEP_I(c, d, a, b, 2, 0x2ad7d2bb, 15);
	STEP_I(b, c, d, a, 9, 0xeb86d391, 21);

	result->a = initial->a + a;
	result->b = initial->b + b;
	result->c = initial->c + c;
	result->d = initial->d + d;
}

/*
 * The highest bit of each of the eight bytes that is 0xF0 or above, as the
 * first byte of a character beyond U+FFFF is.
 */
static inline uint64_t
four_byte_leads(uint64_t word)
{
	return word & word << 1 & word << 2 & word << 3 &
		   UINT64_C(0x8080808080808080);
}

/*
 * Fills block with a whole text of at most 55 bytes, the mark and the length
 * in bits; false if the text has characters beyond U+FFFF, whose bytes have
 * to be changed first.
 *
 * The processor passes what was just stored on to a load only if one store
 * covers it, so everything is put together in words of eight bytes.
 */
static inline bool
md5_fill_block(uint8_t *block, const char *text, size_t length)
{
	size_t part = length % 8;
	size_t whole = length - part;
	uint64_t word = 0;
	uint64_t leads = 0;

	memset(block, 0, MD5_BLOCK);
	for (size_t i = 0; i < whole; i += 8)
	{
		word = load_le64(text + i);
		leads |= four_byte_leads(word);
		store_le64(block + i, word);
	}

	/* what is left, without reading beyond the text */
	if (part == 0)
		word = 0;
	else if (length >= 8)
		word = load_le64(text + length - 8) >> (64 - 8 * part);
	else if (part >= 4)
		word = (uint64_t) load_le32(text + part - 4) << (8 * part - 32) |
			   load_le32(text);
	else
	{
		word = (uint8_t) text[0];
		word |= (uint64_t) (uint8_t) text[part / 2] << (8 * (part / 2));
		word |= (uint64_t) (uint8_t) text[part - 1] << (8 * (part - 1));
	}
	leads |= four_byte_leads(word);
	store_le64(block + whole, word | UINT64_C(0x80) << (8 * part));
	store_le64(block + 56, (uint64_t) length << 3);

	return leads == 0;
}

static void
md5_stream_init(Md5Stream *stream)
{
	stream->state = md5_initial;
	stream->length = 0;
}

static void
md5_stream_add(Md5Stream *stream, const void *data, size_t length)
{
	const uint8_t *next = data;
	size_t used = stream->length % MD5_BLOCK;

	stream->length += length;
	if (used > 0)
	{
		size_t room = MD5_BLOCK - used;

		if (length < room)
		{
			memcpy(stream->block + used, next, length);
			return;
		}
		memcpy(stream->block + used, next, room);
		md5_block(stream->block, &stream->state, &stream->state);
		next += room;
		length -= room;
	}
	for (; length >= MD5_BLOCK; next += MD5_BLOCK, length -= MD5_BLOCK)
		md5_block(next, &stream->state, &stream->state);
	if (length > 0)
		memcpy(stream->block, next, length);
}

static void
md5_stream_end(Md5Stream *stream, Md5State *result)
{
	uint64_t bits = stream->length << 3;
	size_t used = stream->length % MD5_BLOCK;

	stream->block[used++] = 0x80;
	if (used > MD5_BLOCK - 8)
	{
		memset(stream->block + used, 0, MD5_BLOCK - used);
		md5_block(stream->block, &stream->state, &stream->state);
		used = 0;
	}
	memset(stream->block + used, 0, MD5_BLOCK - 8 - used);
	store_le32(stream->block + 56, (uint32_t) bits);
	store_le32(stream->block + 60, (uint32_t) (bits >> 32));
	md5_block(stream->block, &stream->state, result);
}

/* The bytes of a digest. */
static inline void
md5_store(const Md5State *state, uint8_t digest[16])
{
	store_le32(digest, state->a);
	store_le32(digest + 4, state->b);
	store_le32(digest + 8, state->c);
	store_le32(digest + 12, state->d);
}

/* The MD5 of any bytes (RFC 1321). */
void
md5_digest(const void *data, size_t length, uint8_t digest[16])
{
	Md5Stream stream;
	Md5State state;

	md5_stream_init(&stream);
	md5_stream_add(&stream, data, length);
	md5_stream_end(&stream, &state);
	md5_store(&state, digest);
}

/* MurmurHash3, x86 32-bit variant (protocol 3, "Assigner"). */
uint32_t
murmur3_32(const void *data, size_t length, uint32_t seed)
{
	const uint8_t *next = data;
	size_t left = length;
	uint32_t hash = seed;

	for (; left >= 4; next += 4, left -= 4)
		hash = murmur3_word(hash, load_le32(next));
	if (left > 0)
	{
		uint32_t word = next[0];

		if (left > 1)
			word |= (uint32_t) next[1] << 8;
		if (left > 2)
			word |= (uint32_t) next[2] << 16;
		hash = murmur3_tail(hash, word);
	}
	return murmur3_finish(hash, (uint32_t) length);
}

/* base64url without padding, of any bytes. */
size_t
base64url_encode(const void *data, size_t length, char *result)
{
	const uint8_t *next = data;
	char *out = result;

	for (; length >= 3; next += 3, length -= 3)
	{
		*out++ = base64url_digits[next[0] >> 2];
		*out++ = base64url_digits[(next[0] & 0x03) << 4 | next[1] >> 4];
		*out++ = base64url_digits[(next[1] & 0x0f) << 2 | next[2] >> 6];
		*out++ = base64url_digits[next[2] & 0x3f];
	}
	if (length > 0)
	{
		*out++ = base64url_digits[next[0] >> 2];
		if (length == 1)
			*out++ = base64url_digits[(next[0] & 0x03) << 4];
		else
		{
			*out++ = base64url_digits[(next[0] & 0x03) << 4 | next[1] >> 4];
			*out++ = base64url_digits[(next[1] & 0x0f) << 2];
		}
	}
	return (size_t) (out - result);
}

/*
 * The four digits of 24 bits, the first one in the lowest byte: the word that
 * murmur3 sees.
 */
static inline uint32_t
base64url_word(uint32_t bits)
{
	return (uint32_t) (uint8_t) base64url_digits[bits >> 18 & 0x3f] |
		   (uint32_t) (uint8_t) base64url_digits[bits >> 12 & 0x3f] << 8 |
		   (uint32_t) (uint8_t) base64url_digits[bits >> 6 & 0x3f] << 16 |
		   (uint32_t) (uint8_t) base64url_digits[bits & 0x3f] << 24;
}

/* The text of a digest and its murmur3. */
static inline void
unit_hash_finish(const Md5State *state, UnitHash *hash)
{
	/* the digest's bytes in their order, the first in the highest bits */
	uint64_t high = (uint64_t) __builtin_bswap32(state->a) << 32 |
					__builtin_bswap32(state->b);
	uint64_t low = (uint64_t) __builtin_bswap32(state->c) << 32 |
				   __builtin_bswap32(state->d);
	uint32_t words[5];
	uint32_t tail;
	uint32_t murmur = 0;

	words[0] = base64url_word((uint32_t) (high >> 40));
	words[1] = base64url_word((uint32_t) (high >> 16));
	words[2] = base64url_word((uint32_t) (high << 8 | low >> 56));
	words[3] = base64url_word((uint32_t) (low >> 32));
	words[4] = base64url_word((uint32_t) (low >> 8));
	tail = (uint32_t) (uint8_t) base64url_digits[low >> 2 & 0x3f] |
		   (uint32_t) (uint8_t) base64url_digits[(low & 0x03) << 4] << 8;

	for (int i = 0; i < 5; i++)
	{
		store_le32(hash->text + 4 * i, words[i]);
		murmur = murmur3_word(murmur, words[i]);
	}
	hash->text[20] = (char) tail;
	hash->text[21] = (char) (tail >> 8);
	murmur = murmur3_tail(murmur, tail);
	hash->murmur = murmur3_finish(murmur, UNIT_HASH_LENGTH);
}

/*
 * The code point of a character of four bytes at text; 0 if there is none, or
 * if it is not valid.
 */
static inline uint32_t
four_byte_character(const char *text, size_t length)
{
	const uint8_t *bytes = (const uint8_t *) text;
	uint32_t code;

	if (length < 4 || bytes[0] < 0xf0 || bytes[0] > 0xf4 ||
		(bytes[1] & 0xc0) != 0x80 || (bytes[2] & 0xc0) != 0x80 ||
		(bytes[3] & 0xc0) != 0x80)
		return 0;
	code = (uint32_t) (bytes[0] & 0x07) << 18 |
		   (uint32_t) (bytes[1] & 0x3f) << 12 |
		   (uint32_t) (bytes[2] & 0x3f) << 6 | (uint32_t) (bytes[3] & 0x3f);
	return code >= 0x10000 && code <= 0x10ffff ? code : 0;
}

/* The three bytes that stand for one UTF-16 surrogate. */
static inline void
store_surrogate(char *result, uint32_t unit)
{
	result[0] = (char) (0xe0 | unit >> 12);
	result[1] = (char) (0x80 | (unit >> 6 & 0x3f));
	result[2] = (char) (0x80 | (unit & 0x3f));
}

/* The bytes that are hashed for a text (protocol 3, "Bytes"). */
size_t
utf16_unit_bytes(const char *text, size_t length, char *result)
{
	char *out = result;
	size_t i = 0;

	while (i < length)
	{
		uint32_t code = 0;

		if ((uint8_t) text[i] >= 0xf0)
			code = four_byte_character(text + i, length - i);
		if (code == 0)
			*out++ = text[i++];
		else
		{
			code -= 0x10000;
			store_surrogate(out, 0xd800 | code >> 10);
			store_surrogate(out + 3, 0xdc00 | (code & 0x3ff));
			out += 6;
			i += 4;
		}
	}
	return (size_t) (out - result);
}

/* At most limit bytes of a text, without cutting a character. */
size_t
utf8_piece(const char *text, size_t length, size_t limit)
{
	size_t piece = limit;

	if (length <= limit)
		return length;
	while (piece > limit - 4 && (text[piece] & 0xc0) == 0x80)
		piece--;
	return piece;
}

/*
 * The way for all texts that the fast one does not take: longer than a block,
 * or with characters beyond U+FFFF.  What has none of these is hashed where
 * it stands, the rest goes through a small buffer.
 */
static void
unit_md5_add(Md5Stream *stream, const char *text, size_t length)
{
	size_t done = 0;

	while (done < length)
	{
		char buffer[6];
		size_t plain = done;

		while (length - plain >= 8 &&
			   four_byte_leads(load_le64(text + plain)) == 0)
			plain += 8;
		while (plain < length &&
			   four_byte_character(text + plain, length - plain) == 0)
			plain++;
		md5_stream_add(stream, text + done, plain - done);
		done = plain;
		if (done < length)
		{
			size_t size = utf16_unit_bytes(text + done, 4, buffer);

			md5_stream_add(stream, buffer, size);
			done += 4;
		}
	}
}

static void
unit_md5_long(const char *text, size_t length, Md5State *state)
{
	Md5Stream stream;

	md5_stream_init(&stream);
	unit_md5_add(&stream, text, length);
	md5_stream_end(&stream, state);
}

/* The MD5 of a unit; in line, so that what follows has it in registers. */
static inline __attribute__((always_inline)) void
unit_md5(const char *text, size_t length, Md5State *state)
{
	uint8_t block[MD5_BLOCK];

	if (ENGINE_LIKELY(length <= MD5_ONE_BLOCK &&
					  md5_fill_block(block, text, length)))
		md5_block(block, &md5_initial, state);
	else
		unit_md5_long(text, length, state);
}

/* The hash of a unit (protocol 3, "Unit hash"). */
void
unit_hash(const char *text, size_t length, UnitHash *hash)
{
	Md5State state;

	unit_md5(text, length, &state);
	unit_hash_finish(&state, hash);
}

/* The same in pieces. */
bool
unit_hash_long(const char *text, size_t length, UnitHash *hash, Work *work)
{
	Md5Stream stream;
	Md5State state;

	md5_stream_init(&stream);
	while (length > 0)
	{
		size_t piece = utf8_piece(text, length, WORK_PIECE);

		if (!work_goes_on(work, 2 * piece))
			return false;
		unit_md5_add(&stream, text, piece);
		text += piece;
		length -= piece;
	}
	md5_stream_end(&stream, &state);
	unit_hash_finish(&state, hash);
	return true;
}

/* The same without base64url and murmur3. */
void
unit_digest(const char *text, size_t length, uint8_t digest[16])
{
	Md5State state;

	unit_md5(text, length, &state);
	md5_store(&state, digest);
}

/* Both. */
void
unit_hash_and_digest(const char *text, size_t length, UnitHash *hash,
					 uint8_t digest[16])
{
	Md5State state;

	unit_md5(text, length, &state);
	md5_store(&state, digest);
	unit_hash_finish(&state, hash);
}

/* The UnitHash of a text that is a hash already. */
void
unit_hash_from_text(const char *text, size_t length, UnitHash *hash)
{
	size_t kept = length < UNIT_HASH_LENGTH ? length : UNIT_HASH_LENGTH;

	memset(hash->text, 0, UNIT_HASH_LENGTH);
	if (kept > 0)
		memcpy(hash->text, text, kept);
	hash->murmur = murmur3_32(text, length, 0);
}

/* The hash of a unit given as a number (protocol 3, "Unit value"). */
void
unit_hash_number(double number, UnitHash *hash)
{
	char text[64];
	size_t length = number_to_fixed(number, 0, text);

	unit_hash(text, length, hash);
}
