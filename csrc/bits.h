// Bit patterns of float32 in portable code, and the intrinsics where there are any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace modelswarms {

inline float as_float(std::uint32_t bits) {
  float a;
  std::memcpy(&a, &bits, sizeof(a));
  return a;
}

inline std::uint32_t as_bits(float a) {
  std::uint32_t bits;
  std::memcpy(&bits, &a, sizeof(bits));
  return bits;
}

}  // namespace modelswarms
