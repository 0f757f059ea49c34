// Low-rank products for some tokens of one group. Compiled once a SIMD level; see each_simd_level.h.

#include "mixed_row.h"

template <class S>
RowMixture blocks_of(const Run& run, const void* first, std::int64_t step) {
  return {static_cast<const S*>(first) + run.first_block * step, step, run.blocks, run.coefficients};
}

// Columns [first, first + count) of the group's A, mixed, as rows: [count, width].
template <class S>
void turned_a(const Run& run, std::int64_t first, std::int64_t count) {
  const std::int64_t width = run.width;
  S* mixed = reinterpret_cast<S*>(run.mixed);
  float* a = run.a;
  std::int64_t left = width;
  for (const LowRankPart* part = run.parts; part != run.parts_end; ++part) {
    const RowMixture blocks = blocks_of<S>(run, part->a, part->a_block);
    for (std::int64_t r = 0; r < part->rank; ++r, ++a, --left) {
      mix_columns(blocks, r * part->a_row + first, r * part->a_row + first + count, mixed);
      for (std::int64_t k = 0; k < count; ++k) a[k * width] = widened(mixed[k]);
    }
  }
  for (; left > 0; ++a, --left)
    for (std::int64_t k = 0; k < count; ++k) a[k * width] = 0.0f;
}

// low[i] (+)= sum over so many inputs of x[i, k] * a[k], for R tokens and a register of columns; at the last
// inputs times their scaling.
template <int R>
inline void shrink_tile(const Run& run, std::int64_t inputs, bool first, bool last, std::int64_t column,
                        float* low) {
  using L = Lanes<float>;
  using Reg = typename L::Reg;
  const std::int64_t width = run.width, step = run.inputs_at_once;
  const float* a = run.a + column;
  const float* x = run.x;
  Reg sums[R];
  each<R>([&](auto i) {
    sums[i] = first ? L::broadcast(0) : *reinterpret_cast<const Reg*>(low + i * width + column);
  });
  for (std::int64_t k = 0; k < inputs; ++k, a += width) {
    const Reg row = *reinterpret_cast<const Reg*>(a);
    each<R>([&](auto i) { sums[i] = sums[i] + L::broadcast(x[i * step + k]) * row; });
  }
  const float* scalings = run.scalings + column;
  each<R>([&](auto i) {
    float* out = low + i * width + column;
    if (last) {
      for (std::int64_t lane = 0; lane < static_cast<std::int64_t>(sizeof(Reg) / sizeof(float)); ++lane)
        out[lane] = scalings[lane] * reinterpret_cast<const float*>(&sums[i])[lane];
    } else {
      *reinterpret_cast<Reg*>(out) = sums[i];
    }
  });
}

template <class S, int R>
inline void shrink_tokens(const Run& run, std::int64_t from, std::int64_t first, std::int64_t count) {
  constexpr auto kLane = static_cast<std::int64_t>(sizeof(typename Lanes<float>::Reg) / sizeof(float));
  for (int i = 0; i < R; ++i) {
    const S* in = static_cast<const S*>(run.step.x) + run.order[from + i] * run.step.x_stride + first;
    float* out = run.x + i * run.inputs_at_once;
    for (std::int64_t k = 0; k < count; ++k) out[k] = widened(in[k]);
  }
  const bool last = first + count == run.inputs;
  for (std::int64_t column = 0; column < run.width; column += kLane)
    shrink_tile<R>(run, count, first == 0, last, column, run.step.low + from * run.width);
}

template <class S>
void shrink(const Run& run) {
  const std::int64_t inputs = run.inputs;
  for (std::int64_t first = 0, count; first < inputs; first += count) {
    count = std::min(run.inputs_at_once, inputs - first);
    turned_a<S>(run, first, count);
    std::int64_t i = 0;
    for (; i + 8 <= run.count; i += 8) shrink_tokens<S, 8>(run, i, first, count);
    if (i + 4 <= run.count) shrink_tokens<S, 4>(run, i, first, count), i += 4;
    if (i + 2 <= run.count) shrink_tokens<S, 2>(run, i, first, count), i += 2;
    if (i < run.count) shrink_tokens<S, 1>(run, i, first, count);
  }
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
      Tile<S, R, kPairs> tile;
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
      for (std::int64_t k = 0; k < part.rank; ++k)
        sum = sum + L::broadcast(low[i * width + k]) * load_some(b + k * part.outputs + d, some);
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
    mix_columns(blocks_of<S>(run, part.b, part.b_block), 0, part.outputs * part.rank, mixed);
    for (std::int64_t o = 0; o < part.outputs; ++o)
      for (std::int64_t k = 0; k < part.rank; ++k) b[k * part.outputs + o] = mixed[o * part.rank + k];
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
