// Bit patterns of float32 in portable code, and the intrinsics where there are any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dtype.h"

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

inline float widened(float a) { return a; }

inline double widened(double a) { return a; }

inline float widened(BFloat16 a) { return as_float(std::uint32_t{a.bits} << 16); }

// Shift exponent and mantissa into a float32 and rebias by a multiplication with 2^112, which also normalises
// denormals; infinities and NaN then need the float32 exponent.
inline float widened(Float16 a) {
  const std::uint32_t magnitude = std::uint32_t{a.bits} & 0x7fff;
  const std::uint32_t sign = (std::uint32_t{a.bits} & 0x8000) << 16;
  const std::uint32_t finite = as_bits(as_float(magnitude << 13) * 0x1p112f);
  const std::uint32_t special = (magnitude << 13) | 0x7f800000;
  return as_float(sign | (magnitude >= 0x7c00 ? special : finite));
}

}  // namespace modelswarms
