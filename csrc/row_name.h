// Names the content of a row: 16 bytes, the same for the same bytes, on every machine and on any number of
// threads.
//
// It is a fingerprint and no cryptography: whoever knows the keys can make two rows of one name. The keys are
// fixed; rows of a search do not depend on them. For two such rows of different bytes, names are equal with a
// probability of about 2^-123 (NH, a universal hash: Black, Halevi, Krawczyk, Krovetz and Rogaway, "UMAC",
// CRYPTO 1999; four times with independent keys, and a tree over it). Among a million rows some two have one
// name with a probability of about 2^-84.
//
// A chunk of 1 KiB becomes four sums of 64 bits, NH of its 32-bit words m with the keys k of its level:
// sum over j of (m[2j] + k[2j] mod 2^32) * (m[2j+1] + k[2j+1] mod 2^32). The sums of all chunks are the bytes
// of the next level, until one chunk is left, but at least two levels. The last chunk of a level is filled up
// with zeros. Then each of the four sums y gives 32 bits: (a y + b bytes + c mod 2^128) >> 96.
#pragma once

#include <array>
#include <cstdint>

namespace modelswarms {

using RowName = std::array<std::uint32_t, 4>;

// Of `bytes` bytes from any address on. Throws std::invalid_argument for a negative number of them.
RowName row_name(const void* row, std::int64_t bytes);

}  // namespace modelswarms
