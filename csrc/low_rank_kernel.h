// Low-rank products for some tokens of one group. Compiled once a SIMD level; see each_simd_level.h.

#include "mixed_row.h"

template <class S>
RowMixture blocks_of(const Run& run, const void* first, std::int64_t step) {
  return {static_cast<const S*>(first) + run.first_block * step, step, run.blocks, run.coefficients};
}

// Whether the weights are a block as it is.
inline bool one_of(const Run& run) { return run.blocks == 1 && run.coefficients[0] == 1.0f; }

// A sum over the inputs is one of each 16th of them, and then of these.
constexpr int kLane = sizeof(typename Lanes<float>::Reg) / sizeof(float), kRegs = kPartial / kLane;

// Tokens and rows of A whose sums the registers have room for.
constexpr int kTile = MS_SIMD >= 2 ? kTokens : kTokens / 2;

// Numbers as float32, and zeros behind them.
template <class S>
inline void widen(const S* in, std::int64_t count, std::int64_t padded, float* out) {
  for (std::int64_t k = 0; k < count; ++k) out[k] = widened(in[k]);
  for (std::int64_t k = count; k < padded; ++k) out[k] = 0.0f;
}

template <class S>
void mix_a(const Run& run) {
  S* mixed = reinterpret_cast<S*>(run.mixed);
  float* a = run.a;
  for (const LowRankPart* part = run.parts; part != run.parts_end; ++part) {
    const RowMixture blocks = blocks_of<S>(run, part->a, part->a_block);
    for (std::int64_t r = 0; r < part->rank; ++r, a += run.padded) {
      const std::int64_t first = r * part->a_row;
      if (!one_of(run)) mix_columns(blocks, first, first + run.inputs, mixed);
      widen(one_of(run) ? static_cast<const S*>(blocks.experts) + first : mixed, run.inputs, run.padded, a);
    }
  }
}

// The sum of all: of the first and the second half, until one is left.
inline float total(const typename Lanes<float>::Reg* sums) {
#if MS_SIMD == 0
  float halves[kPartial / 2];
  for (int lane = 0; lane < kPartial / 2; ++lane) halves[lane] = sums[lane] + sums[lane + kPartial / 2];
  for (int half = kPartial / 4; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) halves[lane] += halves[lane + half];
  return halves[0];
#else
#if MS_SIMD == 1
  const __m256 eight = sums[0] + sums[1];
#else
  const __m256 eight = _mm512_castps512_ps256(sums[0]) + _mm512_extractf32x8_ps(sums[0], 1);
#endif
  const __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
  const __m128 two = four + _mm_movehl_ps(four, four);
  return _mm_cvtss_f32(two + _mm_movehdup_ps(two));
#endif
}

// low[i, r] = scalings[r] * sum over k of x[i, k] * a[r, k], for T tokens and R rows of A.
template <int T, int R>
inline void shrink_tile(const Run& run, const float* a, const float* scalings, float* low) {
  using L = Lanes<float>;
  using Reg = typename L::Reg;
  Reg sums[T * R * kRegs];
  each<T * R * kRegs>([&](auto i) { sums[i] = L::broadcast(0); });
  for (std::int64_t k = 0; k < run.padded; k += kPartial) {
    each<kRegs>([&](auto part) {
      Reg rows[R];
      each<R>(
          [&](auto r) { rows[r] = *reinterpret_cast<const Reg*>(a + r * run.padded + k + part * kLane); });
      each<T>([&](auto i) {
        const Reg token = *reinterpret_cast<const Reg*>(run.x + i * run.padded + k + part * kLane);
        each<R>([&](auto r) {
          constexpr int at = (i * R + r) * kRegs + part;
          sums[at] = fused(token, rows[r], sums[at]);
        });
      });
    });
  }
  each<T * R>([&](auto i) { low[i / R * run.width + i % R] = scalings[i % R] * total(sums + i * kRegs); });
}

template <class S, int T>
inline void shrink_tokens(const Run& run, std::int64_t from) {
  for (int i = 0; i < T; ++i) {
    const S* in = static_cast<const S*>(run.step.x) + run.order[from + i] * run.step.x_stride;
    widen(in, run.inputs, run.padded, run.x + i * run.padded);
  }
  float* low = run.step.low + from * run.width;
  std::int64_t r = 0;
  for (; r + kTile <= run.width; r += kTile)
    shrink_tile<T, kTile>(run, run.a + r * run.padded, run.scalings + r, low + r);
  for (; r < run.width; ++r) shrink_tile<T, 1>(run, run.a + r * run.padded, run.scalings + r, low + r);
}

template <class S>
void shrink(const Run& run) {
  mix_a<S>(run);
  std::int64_t i = 0;
  for (; i + kTile <= run.count; i += kTile) shrink_tokens<S, kTile>(run, i);
  for (; i < run.count; ++i) shrink_tokens<S, 1>(run, i);
}

// [outputs, rank] as [rank, outputs].
template <class S>
void transpose(const S* in, std::int64_t outputs, std::int64_t rank, S* out) {
  std::int64_t o = 0;
#if MS_SIMD > 0
  if constexpr (sizeof(S) == 2) {  // eight outputs by four of the rank
    for (; rank % 4 == 0 && o + 8 <= outputs; o += 8) {
      for (std::int64_t k = 0; k < rank; k += 4) {
        __m128i rows[8], pairs[4];
        each<8>([&](auto i) {
          rows[i] = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(in + (o + i) * rank + k));
        });
        each<4>([&](auto i) { pairs[i] = _mm_unpacklo_epi16(rows[2 * i], rows[2 * i + 1]); });
        const auto put = [&](std::int64_t row, __m128i first, __m128i second) {
          S* to = out + (k + row) * outputs + o;
          _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_unpacklo_epi64(first, second));
          _mm_storeu_si128(reinterpret_cast<__m128i*>(to + outputs), _mm_unpackhi_epi64(first, second));
        };
        put(0, _mm_unpacklo_epi32(pairs[0], pairs[1]), _mm_unpacklo_epi32(pairs[2], pairs[3]));
        put(2, _mm_unpackhi_epi32(pairs[0], pairs[1]), _mm_unpackhi_epi32(pairs[2], pairs[3]));
      }
    }
  }
#endif
  for (; o < outputs; ++o)
    for (std::int64_t k = 0; k < rank; ++k) out[k * outputs + o] = in[o * rank + k];
}

// y[i] += sum over the rank of low[i, k] * b[k], for R tokens.
template <class S, int R>
inline void expand_tokens(const Run& run, const LowRankPart& part, const S* b, const float* low,
                          std::int64_t from) {
  using L = Lanes<S>;
  const std::int64_t width = run.width;
  low += from * width;
  S* y[R];
  for (int i = 0; i < R; ++i)
    y[i] = static_cast<S*>(run.step.y) + run.order[from + i] * run.step.y_stride + part.column;
  std::int64_t d = 0;
  const auto tiles = [&](auto pairs) {
    constexpr int kPairs = decltype(pairs)::value;
    for (; d + kPairs * L::columns <= part.outputs; d += kPairs * L::columns) {
      Tile<S, R, kPairs, true> tile;
      for (std::int64_t k = 0; k < part.rank; ++k) tile.add(b + k * part.outputs + d, low + k, width);
      each<R>([&](auto i) {
        each<kPairs>([&](auto t) {
          S* out = y[i] + d + t * L::columns;
          L::store(out, L::bits(L::load(out) + tile.sum(i, t)));
        });
      });
    }
  };
  tiles(std::integral_constant<int, 2>());
  tiles(std::integral_constant<int, 1>());
  if (const std::int64_t some = part.outputs - d; some > 0) {
    for (int i = 0; i < R; ++i) {
      typename L::Pair sum{L::broadcast(0), L::broadcast(0)};
      for (std::int64_t k = 0; k < part.rank; ++k) {
        const auto number = L::broadcast(low[i * width + k]);
        const auto row = load_some(b + k * part.outputs + d, some);
        sum = {fused(number, row.a, sum.a), fused(number, row.b, sum.b)};
      }
      store_some(y[i] + d, L::bits(load_some(y[i] + d, some) + sum), some);
    }
  }
}

template <class S>
void expand(const Run& run) {
  const float* low = run.step.low;
  for (const LowRankPart* given = run.parts; given != run.parts_end; ++given) {
    const LowRankPart& part = *given;
    S* mixed = reinterpret_cast<S*>(run.mixed);
    S* b = mixed + part.outputs * part.rank;
    const RowMixture blocks = blocks_of<S>(run, part.b, part.b_block);
    if (!one_of(run)) mix_columns(blocks, 0, part.outputs * part.rank, mixed);
    transpose(one_of(run) ? static_cast<const S*>(blocks.experts) : mixed, part.outputs, part.rank, b);
    std::int64_t i = 0;
    for (; i + 4 <= run.count; i += 4) expand_tokens<S, 4>(run, part, b, low, i);
    if (i + 2 <= run.count) expand_tokens<S, 2>(run, part, b, low, i), i += 2;
    if (i < run.count) expand_tokens<S, 1>(run, part, b, low, i);
    low += part.rank;
  }
}

template <class S>
void run_tokens(const Run& run) {
  if (run.step.x != nullptr) shrink<S>(run);
  if (run.step.y != nullptr) expand<S>(run);
}

RunTokens run_tokens_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return run_tokens<float>;
    case DType::bfloat16:
      return run_tokens<BFloat16>;
    case DType::float16:
      return run_tokens<Float16>;
    case DType::float64:
      break;
  }
  return nullptr;
}
