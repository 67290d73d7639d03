/*
 * hash.h
 *		Hashing of units (protocol 3): MD5, base64url, murmur3.
 *
 * MD5 is here in a few lines of our own because it is the hot path, not a
 * security function: the server's goes through OpenSSL, is slow to set up for
 * each call and fails in FIPS mode (DESIGN 8).  Algorithms: RFC 1321, RFC 4648
 * section 5, MurmurHash3 x86_32.
 */
#ifndef ABSMARTLY_ENGINE_HASH_H
#define ABSMARTLY_ENGINE_HASH_H

#include "engine.h"
#include "work.h"

#define UNIT_HASH_LENGTH 22 /* base64url of 16 bytes, no padding */

/* The hash of a unit: what is published, and what the assigner starts from. */
typedef struct UnitHash
{
	char text[UNIT_HASH_LENGTH]; /* not terminated */
	uint32_t murmur; /* murmur3_32(text, 0) */
} UnitHash;

extern void md5_digest(const void *data, size_t length, uint8_t digest[16]);
extern uint32_t murmur3_32(const void *data, size_t length, uint32_t seed);

/* base64url_length(n) bytes are written, not terminated; returns their number
 */
#define base64url_length(n) (((n) *4 + 2) / 3)
extern size_t base64url_encode(const void *data, size_t length, char *result);

/*
 * Re-encodes UTF-8 so that characters above U+FFFF take six bytes, three for
 * each UTF-16 surrogate.  result has room for length + length / 2 bytes;
 * returns how many were written.  *Invalid* UTF-8 is copied as it is.
 */
extern size_t utf16_unit_bytes(const char *text, size_t length, char *result);

/*
 * At most limit (at least 4) bytes of a text, so cut that no valid character
 * is: the length of the first piece.
 */
extern size_t utf8_piece(const char *text, size_t length, size_t limit);

/*
 * The hash of a unit's text, taken as it is (the caller has trimmed it).
 * Works for any length without allocating.
 */
extern void unit_hash(const char *text, size_t length, UnitHash *hash);

/* The same for a text that may be very long; false: stopped. */
extern bool unit_hash_long(const char *text, size_t length, UnitHash *hash,
						   Work *work);

/*
 * The 16 bytes that the hash is the text of, alone and together with it.
 */
extern void unit_digest(const char *text, size_t length, uint8_t digest[16]);
extern void unit_hash_and_digest(const char *text, size_t length,
								 UnitHash *hash, uint8_t digest[16]);

/*
 * The UnitHash of an already known hash text, of any length: the murmur is that
 * of the whole text; hash->text holds its first 22 bytes, filled up with NULs.
 */
extern void unit_hash_from_text(const char *text, size_t length,
								UnitHash *hash);

/* The hash of a unit given as a double (protocol 3, "Number"). */
extern void unit_hash_number(double number, UnitHash *hash);

/*
 * The steps of murmur3_32, for callers that have the words in registers: one
 * word of four bytes (little endian), the last one to three bytes, the end.
 */
static inline uint32_t
murmur3_scramble(uint32_t word)
{
	word *= 0xcc9e2d51;
	word = (word << 15) | (word >> 17);
	return word * 0x1b873593;
}

static inline uint32_t
murmur3_word(uint32_t hash, uint32_t word)
{
	hash ^= murmur3_scramble(word);
	hash = (hash << 13) | (hash >> 19);
	return hash * 5 + 0xe6546b64;
}

static inline uint32_t
murmur3_tail(uint32_t hash, uint32_t word)
{
	return hash ^ murmur3_scramble(word);
}

static inline uint32_t
murmur3_finish(uint32_t hash, uint32_t length)
{
	hash ^= length;
	hash ^= hash >> 16;
	hash *= 0x85ebca6b;
	hash ^= hash >> 13;
	hash *= 0xc2b2ae35;
	return hash ^ (hash >> 16);
}

#endif /* ABSMARTLY_ENGINE_HASH_H */
