// The activation of a gated feed-forward layer on the CPU: out[i, d] = silu(in[i, d]) * in[i, width + d],
// where silu(g) = g / (1 + exp(-g)), in one pass, rounded once.
//
// Torch does it in two, each with a tensor of its own, and with the norms they are a sixth of an evaluation's
// time (docs/log.md).
#pragma once

#include <cstdint>

#include "dtype.h"

namespace modelswarms {

// Contiguous.
struct Swiglu {
  void* out;       // [rows, width], written
  const void* in;  // [rows, 2 * width]
  std::int64_t rows;
  std::int64_t width;
  DType dtype;  // float32, bfloat16 or float16
};

// Needs no allocation and no Python. Throws std::invalid_argument for sizes or dtypes that make no sense.
void swiglu(const Swiglu& args);

}  // namespace modelswarms
