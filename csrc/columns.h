// Runs an operator over column blocks of its rows, on one thread or several.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "bits.h"

namespace modelswarms {

// Bytes of one row in one block: short enough that what all particles read stays in the first cache, long
// enough that every stream runs for some pages before the next begins. Measured in kernels/README.md.
constexpr std::int64_t kBlockBytes = 8192;

// Share of the first cache for what every particle reads again.
constexpr std::int64_t kCacheBytes = 16384;

// How far ahead of its use a row's line is asked for.
constexpr std::int64_t kAheadBytes = 4096;

// Below this many bytes over all rows a call is done before a second thread has woken.
constexpr std::int64_t kSerialBytes = 256 * 1024;

// A store past the caches pays where the rows would not stay in them anyway.
constexpr std::int64_t kStreamBytes = 16 * 1024 * 1024;

inline bool worth_streaming(std::int64_t bytes) { return bytes >= kStreamBytes; }

// Ends a run of such stores: whoever waits for this thread sees them.
inline void end_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Rows that all start at a multiple of the widest register, as a store past the caches asks for.
inline bool aligned(const void* rows, std::int64_t stride_bytes) {
  return reinterpret_cast<std::uintptr_t>(rows) % 64 == 0 && stride_bytes % 64 == 0;
}

// block(begin, end) for consecutive columns; blocks never share a column, so the threads' count changes no
// bit.
template <class Block>
void for_column_blocks(std::int64_t size, std::int64_t itemsize, std::int64_t rows, const Block& block) {
  const std::int64_t columns = kBlockBytes / itemsize;
  const std::int64_t blocks = (size + columns - 1) / columns;
  const bool serial = rows * size * itemsize < kSerialBytes;
  const int threads = serial ? 1 : static_cast<int>(std::min<std::int64_t>(omp_get_max_threads(), blocks));
  if (threads <= 1) {
    for (std::int64_t b = 0; b < blocks; ++b) block(b * columns, std::min(size, (b + 1) * columns));
    return;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (std::int64_t b = 0; b < blocks; ++b) block(b * columns, std::min(size, (b + 1) * columns));
}

}  // namespace modelswarms
