// What memory and arithmetic allow: plain loops that do nothing but the loads and stores of an operator, on
// as many threads as the operators. Each word that is read decides a word that is written, so nothing can be
// left out. benchmarks/limits.py compiles this file and calls the functions at its end.
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

// The loops are left to the compiler, once for each width of registers; the dynamic linker picks.
#if defined(__x86_64__)
#include <immintrin.h>
#define MS_EVERY_WIDTH __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MS_EVERY_WIDTH
#endif

namespace {

using Word = std::uint64_t;
using Int = std::int64_t;

struct LimitUpdate {
  const Word* x;
  const Word* v;
  const Word* p;
  Word* x_out;
  Word* v_out;
  bool stream_x, stream_v;
};

struct LimitMix {
  Word* out;
  Int out_stride;
  const Word* in;
  Int in_stride, writes, reads;
  bool stream;
};

constexpr Int kLine = 8;     // words of one cache line
constexpr Int kBlock = 512;  // words that stay in the first cache between two loops

// A section of whole cache lines for each thread, the same partition as a static schedule.
template <class Section>
void for_sections(Int words, const Section& section) {
  const Int lines = (words + kLine - 1) / kLine;
#pragma omp parallel
  {
    const Int threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const Int begin = lines * thread / threads * kLine;
    section(begin, std::min(words, lines * (thread + 1) / threads * kLine));
  }
}

// out = from + more, stored past the caches, which saves reading a line that is about to be overwritten
// whole.
void stream(Word* out, const Word* from, Word more, Int words) {
  Int i = 0;
#if defined(__x86_64__)
  const __m128i two = _mm_set1_epi64x(static_cast<long long>(more));
  for (; i < words && reinterpret_cast<std::uintptr_t>(out + i) % 16; ++i) out[i] = from[i] + more;
  for (; i + 2 <= words; i += 2) {
    const __m128i words_in = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm_stream_si128(reinterpret_cast<__m128i*>(out + i), _mm_add_epi64(words_in, two));
  }
#endif
  for (; i < words; ++i) out[i] = from[i] + more;
}

void fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

MS_EVERY_WIDTH void move(const Word* x, const Word* v, const Word* p, Word* x_out, Word* v_out, Int words) {
#pragma GCC ivdep
  for (Int i = 0; i < words; ++i) {
    const Word moved = v[i] + (p[i] - x[i]);
    x_out[i] = x[i] + moved;
    v_out[i] = moved;
  }
}

// Line by line through all rows at once: one row after the other, block by block, reads at half of the
// bandwidth, since every block is too short for the hardware to see where the row goes.
MS_EVERY_WIDTH void add_up(Word* sum, const Word* in, Int stride, Int rows, Int words) {
  Int i = 0;
  for (; i + kLine <= words; i += kLine) {
    Word line[kLine] = {};
    for (Int row = 0; row < rows; ++row) {
      for (Int j = 0; j < kLine; ++j) line[j] += in[row * stride + i + j];
    }
    for (Int j = 0; j < kLine; ++j) sum[i + j] = line[j];
  }
  for (; i < words; ++i) {
    sum[i] = 0;
    for (Int row = 0; row < rows; ++row) sum[i] += in[row * stride + i];
  }
}

MS_EVERY_WIDTH void add_to(Word* out, const Word* sum, Word more, Int words) {
#pragma GCC ivdep
  for (Int i = 0; i < words; ++i) out[i] = sum[i] + more;
}

void update_section(const LimitUpdate& a, Int begin, Int end) {
  if (!a.stream_x && !a.stream_v) {
    move(a.x + begin, a.v + begin, a.p + begin, a.x_out + begin, a.v_out + begin, end - begin);
    return;
  }
  alignas(64) Word x_block[kBlock], v_block[kBlock];
  for (Int i = begin; i < end; i += kBlock) {
    const Int words = std::min(kBlock, end - i);
    Word* x_out = a.stream_x ? x_block : a.x_out + i;
    Word* v_out = a.stream_v ? v_block : a.v_out + i;
    move(a.x + i, a.v + i, a.p + i, x_out, v_out, words);
    if (a.stream_x) stream(a.x_out + i, x_block, 0, words);
    if (a.stream_v) stream(a.v_out + i, v_block, 0, words);
  }
  fence();
}

void mix_section(const LimitMix& a, Int begin, Int end) {
  alignas(64) Word sum[kBlock];
  for (Int i = begin; i < end; i += kBlock) {
    const Int words = std::min(kBlock, end - i);
    add_up(sum, a.in + i, a.in_stride, a.reads, words);
    for (Int write = 0; write < a.writes; ++write) {
      Word* out = a.out + write * a.out_stride + i;
      if (a.stream)
        stream(out, sum, static_cast<Word>(write), words);
      else
        add_to(out, sum, static_cast<Word>(write), words);
    }
  }
  fence();
}

// Enough independent chains to fill the latency of every unit, few enough to stay in registers.
constexpr int kLanes = 8 * 16;

MS_EVERY_WIDTH float multiply_and_add(Int rounds) {
  float sums[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = static_cast<float>(lane);
  for (Int round = 0; round < rounds; ++round) {
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] = sums[lane] * 0.999F + 0.001F;
  }
  float total = 0.0F;
  for (const float sum : sums) total += sum;
  return total;
}

}  // namespace

extern "C" {

// Three read and two write streams of `words` 64-bit words: v' = v + (p - x), x' = x + v'. x_out may be x and
// v_out may be v: then the loop works in place, as the update does. `stream_x`, `stream_v`: stores of x' and
// v' go past the caches.
void limit_update(const Word* x, const Word* v, const Word* p, Word* x_out, Word* v_out, Int words,
                  bool stream_x, bool stream_v) {
  const LimitUpdate args{x, v, p, x_out, v_out, stream_x, stream_v};
  for_sections(words, [&](Int begin, Int end) { update_section(args, begin, end); });
}

// `reads` rows of `words` 64-bit words in, `writes` rows out: every word that is written is made of one word
// of each row that is read. Strides count words. `past`: stores go past the caches.
void limit_mix(Word* out, Int out_stride, const Word* in, Int in_stride, Int writes, Int reads, Int words,
               bool past) {
  const LimitMix args{out, out_stride, in, in_stride, writes, reads, past};
  for_sections(words, [&](Int begin, Int end) { mix_section(args, begin, end); });
}

// memcpy of whole cache lines, shared out among so many threads; `past`: with stores past the caches instead.
void limit_copy(char* out, const char* in, Int bytes, int threads, bool past) {
  const auto copy = [&](Int begin, Int end) {
    if (!past) {
      std::memcpy(out + begin, in + begin, static_cast<std::size_t>(end - begin));
      return;
    }
    for (Int i = begin; i < end; i += kLine * 8) {
      // A line that comes from memory is asked for ahead, or some processors copy a fifth slower.
      __builtin_prefetch(in + i + 4096, 0, 2);
      stream(reinterpret_cast<Word*>(out + i), reinterpret_cast<const Word*>(in + i), 0, kLine);
    }
    fence();
  };
  if (threads == 1) return copy(0, bytes);
  const Int lines = bytes / (kLine * 8);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int thread = 0; thread < threads; ++thread)
    copy(lines * thread / threads * kLine * 8, lines * (thread + 1) / threads * kLine * 8);
}

// `rounds` products and as many sums of float32 in each of a few thousand lanes a thread, all in registers;
// returns how many floating-point operations that were, of all threads. A product and a sum are not fused.
double limit_arithmetic(Int rounds) {
  double operations = 0.0;
#pragma omp parallel reduction(+ : operations)
  {
    const float total = multiply_and_add(rounds);
    // The sums are used, or the loop would not have to run.
    operations += total > 0.0F ? 2.0 * kLanes * static_cast<double>(rounds) : 0.0;
  }
  return operations;
}

}  // extern "C"
