// Runs an operator over column blocks of its rows, on one thread or several.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "bits.h"

namespace modelswarms {

// Bytes of one row in one block of the update: short enough that g and w stay in the second cache until the
// last particle has used them, long enough for the hardware to see where every row goes. Measured in
// docs/log.md.
constexpr std::int64_t kBlockBytes = 512 * 1024;

// Particles whose rows are read side by side.
constexpr std::int64_t kParticlesTogether = 4;

// Share of the first cache for what every particle reads again.
constexpr std::int64_t kCacheBytes = 16384;

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

// A copy is done by one thread up to here: both would wait for the same memory, and a second one has to wake.
// Measured in docs/log.md.
constexpr std::int64_t kSerialCopyBytes = 1024 * 1024;

// So much is copied past the caches, less with memcpy.
constexpr std::int64_t kStreamPiece = 4096;

// What comes from memory one line after the other is asked for so far ahead, where the processor on its own
// asks for too little: a copy takes a fifth less. Measured in docs/log.md.
constexpr std::int64_t kAheadBytes = 4096;

// memcpy, past the caches where that is worth it. Whoever calls it ends with end_streaming().
inline void copy_streaming(char* out, const char* in, std::int64_t bytes) {
#if defined(__x86_64__)
  if (bytes >= kStreamPiece) {
    const auto head = static_cast<std::int64_t>(-reinterpret_cast<std::uintptr_t>(out) % 64);
    std::memcpy(out, in, static_cast<std::size_t>(head));
    out += head, in += head, bytes -= head;
    for (; bytes >= 64; out += 64, in += 64, bytes -= 64) {
      if (bytes > kAheadBytes) _mm_prefetch(in + kAheadBytes, _MM_HINT_T1);
      const auto* from = reinterpret_cast<const __m128i*>(in);
      auto* to = reinterpret_cast<__m128i*>(out);
      const __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1), c = _mm_loadu_si128(from + 2),
                    d = _mm_loadu_si128(from + 3);
      _mm_stream_si128(to, a), _mm_stream_si128(to + 1, b), _mm_stream_si128(to + 2, c);
      _mm_stream_si128(to + 3, d);
    }
  }
#endif
  std::memcpy(out, in, static_cast<std::size_t>(bytes));
}

// Rows that all start at a multiple of the widest register, as a store past the caches asks for.
inline bool aligned(const void* rows, std::int64_t stride_bytes) {
  return reinterpret_cast<std::uintptr_t>(rows) % 64 == 0 && stride_bytes % 64 == 0;
}

// section(begin, end) for consecutive columns, one for each thread; sections never share a column or a line,
// so the threads' count changes no bit. One thread does fewer than `serial` bytes.
template <class Section>
void for_sections(std::int64_t size, std::int64_t bytes, const Section& section,
                  std::int64_t serial = kSerialBytes) {
  constexpr std::int64_t kColumns = 64;
  const std::int64_t steps = (size + kColumns - 1) / kColumns;
  const int threads =
      bytes < serial ? 1 : static_cast<int>(std::min<std::int64_t>(omp_get_max_threads(), steps));
  if (threads <= 1) {
    section(0, size);
    return;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int thread = 0; thread < threads; ++thread)
    section(steps * thread / threads * kColumns, std::min(size, steps * (thread + 1) / threads * kColumns));
}

}  // namespace modelswarms
