#include "low_rank.h"

#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include "bits.h"
#include "check.h"
#include "columns.h"
#include "plan.h"
#include "simd.h"

namespace modelswarms {
namespace {

// Sums that a sum over the inputs is made of: as many as the widest register has numbers.
constexpr std::int64_t kPartial = 16;

// Tokens whose sums the most registers have room for.
constexpr int kTokens = 4;

// Of one part: its scaling is kept for each of them.
constexpr std::int64_t kMostRanks = 1 << 20;

// Fewer tokens than that are done before a second thread has woken.
constexpr std::int64_t kTokensOfThread = 16;

// Some tokens of one group, and a thread's room to work in. No containers: nothing of the standard library is
// to be compiled for an instruction set that the machine may lack.
struct Run {
  const LowRankPart* parts;
  const LowRankPart* parts_end;
  const float* scalings;
  std::int64_t inputs, padded, width;
  const float* coefficients;
  std::int64_t blocks, first_block;
  const std::int64_t* order;
  std::int64_t count;
  LowRankStep step;  // low: of the first of them
  float* a;          // [width, padded]
  float* x;          // [kTokens, padded]
  char* mixed;
};

using RunTokens = void (*)(const Run&);

#define MS_KERNEL "low_rank_kernel.h"
#include "each_simd_level.h"

struct Freed {
  void operator()(char* room) const { ::operator delete[](room, std::align_val_t{64}); }
};

}  // namespace

TokenGroups::TokenGroups(std::vector<std::int64_t> given, std::vector<TokenGroup> of)
    : order(std::move(given)), groups(std::move(of)) {
  std::int64_t tokens = 0;
  for (const TokenGroup& group : groups) {
    MS_CHECK(group.tokens > 0 && group.first >= 0 && !group.coefficients.empty(),
             "a group of tokens is empty, or has no weights");
    tokens = plus(tokens, group.tokens);
  }
  MS_CHECK(tokens == static_cast<std::int64_t>(order.size()), "groups must have all of the tokens");
}

LowRank::LowRank(std::vector<LowRankPart> parts, std::int64_t inputs, std::int64_t blocks, DType dtype)
    : parts_(std::move(parts)), inputs_(inputs), blocks_(blocks), dtype_(dtype) {
  MS_CHECK(dtype != DType::float64, "low-rank products are float32, bfloat16 or float16");
  MS_CHECK(inputs > 0 && blocks > 0, "a linear layer has inputs, and low-rank products a block");
  std::int64_t largest = 0;
  for (const LowRankPart& part : parts_) {
    MS_CHECK(part.rank > 0 && part.outputs > 0 && part.column >= 0 && part.a_row >= inputs,
             "a low-rank part has no numbers, or rows that overlap");
    MS_CHECK(part.a != nullptr && part.b != nullptr, "a low-rank part has no place");
    MS_CHECK(part.rank <= kMostRanks, "a low-rank part has a rank above 2**20");
    scalings_.insert(scalings_.end(), static_cast<std::size_t>(part.rank), static_cast<float>(part.scaling));
    largest = std::max(largest, times(part.rank, part.outputs));
  }
  padded_ = plus(inputs, kPartial - 1) / kPartial * kPartial;
  mixed_bytes_ = times(std::max(times(2, largest), inputs), itemsize(dtype));
  MS_CHECK(MS_PICK(run_tokens_of)(dtype_) != nullptr, "unknown dtype code");
}

void LowRank::add(const TokenGroups& groups, const LowRankStep& step) const {
  for (const TokenGroup& group : groups.groups)
    MS_CHECK(plus(group.first, static_cast<std::int64_t>(group.coefficients.size())) <= blocks_,
             "a group of tokens has blocks that there are not");
  const RunTokens run = MS_PICK(run_tokens_of)(dtype_);
  const auto tokens = static_cast<std::int64_t>(groups.order.size());
  const auto threads = static_cast<int>(
      std::clamp<std::int64_t>(tokens / kTokensOfThread, 1, std::max(omp_get_max_threads(), 1)));
  // For each thread, before they begin: memory that is not to be had is an exception here, and the end there.
  const std::int64_t numbers = times(width() + kTokens, padded_);
  const std::int64_t bytes = plus(plus(times(numbers, 4), mixed_bytes_), 63) / 64 * 64;
  const std::unique_ptr<char[], Freed> room(static_cast<char*>(
      ::operator new[](static_cast<std::size_t>(times(bytes, threads)), std::align_val_t{64})));
  const auto work = [&](int thread) {
    char* own = room.get() + thread * bytes;
    auto* a = reinterpret_cast<float*>(own);
    const std::int64_t begin = tokens * thread / threads, end = tokens * (thread + 1) / threads;
    std::int64_t first = 0;
    for (const TokenGroup& group : groups.groups) {
      const std::int64_t from = std::max(begin, first), to = std::min(end, first + group.tokens);
      first += group.tokens;
      if (from >= to) continue;
      LowRankStep some = step;
      some.low += from * width();
      run({parts_.data(), parts_.data() + parts_.size(), scalings_.data(), inputs_, padded_, width(),
           group.coefficients.data(), static_cast<std::int64_t>(group.coefficients.size()), group.first,
           groups.order.data() + from, to - from, some, a, a + width() * padded_, own + numbers * 4});
    }
  };
  if (threads == 1) return work(0);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int thread = 0; thread < threads; ++thread) work(thread);
}

}  // namespace modelswarms
