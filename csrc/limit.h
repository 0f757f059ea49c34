// What memory allows, for the benchmarks: plain loops that do nothing but the loads and stores of an
// operator, on as many threads as the operators. Each word that is read decides a word that is written, so
// nothing can be left out.
#pragma once

#include <cstdint>

namespace modelswarms {

// Three read and two write streams of `words` 64-bit words: v' = v + (p - x), x' = x + v'. x_out may be x and
// v_out may be v: then the loop works in place, as the update does.
struct LimitUpdate {
  const std::uint64_t* x;
  const std::uint64_t* v;
  const std::uint64_t* p;
  std::uint64_t* x_out;
  std::uint64_t* v_out;
  std::int64_t words;
  bool stream_x;  // non-temporal stores of x', of v'
  bool stream_v;
};
void limit_update(const LimitUpdate& args);

// `reads` rows of `words` 64-bit words in, `writes` rows out: every word that is written is made of one word
// of each row that is read. Strides count words.
struct LimitMix {
  std::uint64_t* out;
  std::int64_t out_stride;
  const std::uint64_t* in;
  std::int64_t in_stride;
  std::int64_t writes;
  std::int64_t reads;
  std::int64_t words;
  bool stream;  // non-temporal stores
};
void limit_mix(const LimitMix& args);

// memcpy of so many bytes, shared out among so many threads; `stream`: with non-temporal stores instead.
void limit_copy(char* out, const char* in, std::int64_t bytes, int threads, bool stream);

// `rounds` products and as many sums of float32 in each of a few thousand lanes a thread, all in registers;
// returns how many floating-point operations that were, of all threads. The roof of the roofline: a product
// and a sum, not fused.
double limit_arithmetic(std::int64_t rounds);

}  // namespace modelswarms
