// LoRA for tokens of several particles in one batch, on the CPU: y[t] += scaling * B A x[t], where A and B
// are those of the particle that token t belongs to. They are sums of blocks, mixed where they are needed: a
// slot's are one block, a mixture's all of them, each with its coefficient.
#pragma once

#include <cstdint>
#include <vector>

#include "dtype.h"

namespace modelswarms {

// One of the layers that are fused in a linear layer.
struct LowRankPart {
  const void* a;  // of each block [rank, inputs], rows a_row elements apart
  std::int64_t a_block, a_row;
  const void* b;  // of each block [outputs, rank], contiguous
  std::int64_t b_block;
  std::int64_t rank, outputs;
  std::int64_t column;  // of y, at which its outputs begin
  double scaling;
};

// So many tokens, whose weights are sum over j of coefficients[j] * block (first + j), rounded as mix()
// rounds.
struct TokenGroup {
  std::int64_t tokens, first;
  std::vector<float> coefficients;
};

// Tokens of a step, by their row in x and y, those of a group one after the other. No token twice.
struct TokenGroups {
  std::vector<std::int64_t> order;
  std::vector<TokenGroup> groups;
  // Throws std::invalid_argument unless the groups have all of the tokens.
  TokenGroups(std::vector<std::int64_t> order, std::vector<TokenGroup> groups);
};

// Where a step's activations are; nullptr for what is not to be done.
struct LowRankStep {
  const void* x;  // [more than any token, inputs]
  std::int64_t x_stride;
  float* low;  // [tokens, width], in the order of the groups: scaling * A x
  void* y;     // [more than any token, outputs]
  std::int64_t y_stride;
};

// Sums are float32 and fused, those over the inputs in their order, whatever the SIMD level and the threads;
// y is rounded once.
class LowRank {
 public:
  // Throws std::invalid_argument for parts that make no sense.
  LowRank(std::vector<LowRankPart> parts, std::int64_t inputs, std::int64_t blocks, DType dtype);
  // low from x, unless that is nullptr; then y += B low, unless y is.
  void add(const TokenGroups& groups, const LowRankStep& step) const;
  // Ranks of all parts together.
  std::int64_t width() const { return static_cast<std::int64_t>(scalings_.size()); }

 private:
  std::vector<LowRankPart> parts_;
  std::int64_t inputs_, padded_ = 0, blocks_, mixed_bytes_ = 0;
  DType dtype_;
  std::vector<float> scalings_;  // of each row of A
};

}  // namespace modelswarms
