// The swarm update on the CPU: one fused pass, in place.
//
//   v' = c0 v + c1 (p - x) + c2 (g - x) + c3 (x - w)        x' = x + step_length v'
//
// Half types are rounded once, x' from the unrounded v', unless the rounding is `published`: then every
// difference, product and sum goes to storage, as it does where each of them is a tensor of its own.
//
// The sums are taken from left to right, every operation rounded on its own (no fused multiply-add), so that
// every SIMD level, every thread count and the reference give the same bits.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace modelswarms {

// The codes of modelswarms_fast/ops/reference.py.
enum class Rounding : int { nearest = 0, stochastic = 1, published = 2 };

// Pointers to the first element of a row; strides in elements; the last dimension is contiguous.
struct SwarmUpdate {
  void* position;  // [particles, size], written
  std::int64_t position_stride;
  void* velocity;  // [particles, size], written
  std::int64_t velocity_stride;
  const void* personal_best;  // [particles, size]
  std::int64_t personal_best_stride;
  const void* global_best;   // [size]
  const void* global_worst;  // [size]
  const std::int64_t*
      table;  // [particles, 5] x_in, x_out, v_in, v_out, p; null: particle i has row i of each
  const float* coefficients;  // [particles, 4], contiguous: inertia, cognitive, social, repel
  double step_length;
  std::int64_t particles;
  std::int64_t size;
  DType dtype;
  Rounding rounding;  // stochastic: of half types only
  bool coordinate;    // draw the four coefficients for every coordinate; not with published rounding
  std::uint64_t seed;
  std::int64_t iteration;
  std::int64_t first_column;  // of these columns in the whole rows, a multiple of 4
  bool one_by_one = false;    // particles, not side by side; decided by swarm_update
  bool stream = false;  // rows that are written and not read go past the caches; decided by swarm_update
};

// Needs no allocation and no Python. Throws std::invalid_argument for sizes or dtypes that make no sense.
void swarm_update(const SwarmUpdate& args);

}  // namespace modelswarms
