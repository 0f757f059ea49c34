// n-ary combination of expert rows on the CPU: out[i] = sum over j of mixture[i, j] * experts[j].
//
// The sum starts at 0 and runs over j in order, every operation rounded on its own, as in the reference.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace modelswarms {

// Pointers to the first element of a row; strides in elements; the last dimension is contiguous.
struct Mix {
  void* out;  // [particles, size], written
  std::int64_t out_stride;
  const void* experts;  // [count, size]
  std::int64_t experts_stride;
  const void* mixture;  // [particles, count], contiguous; float64 for float64 rows, else float32
  std::int64_t particles;
  std::int64_t count;
  std::int64_t size;
  DType dtype;
  bool stream = false;  // the result goes past the caches; decided by mix
};

// Needs no allocation and no Python. Throws std::invalid_argument for sizes or dtypes that make no sense.
void mix(const Mix& args);

}  // namespace modelswarms
