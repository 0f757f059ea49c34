// Rows [begin, end) of one part of a plan. Compiled once a SIMD level; see each_simd_level.h.

#include "mixed_row.h"

// out = in * factor for so many neighbours.
template <class S>
inline void scale(S* out, const S* in, std::int64_t count, typename Lanes<S>::Scalar factor) {
  using L = Lanes<S>;
  const auto by = L::broadcast(factor);
  std::int64_t d = 0;
  for (; d + L::columns <= count; d += L::columns) L::store(out + d, L::bits(by * L::load(in + d)));
  if (d < count) store_some(out + d, L::bits(by * load_some(in + d, count - d)), count - d);
}

// Rows of as few elements as a LoRA's B has, each a register or less: a call of memcpy for each would cost
// more than the copy.
template <int kBytes>
inline void copy_rows(char* out, std::int64_t out_step, const char* in, std::int64_t in_step,
                      std::int64_t rows) {
  for (std::int64_t i = 0; i < rows; ++i) std::memcpy(out + i * out_step, in + i * in_step, kBytes);
}

inline void copy_rows(char* out, std::int64_t out_step, const char* in, std::int64_t in_step,
                      std::int64_t rows, std::int64_t bytes) {
  switch (bytes) {
    case 8:
      return copy_rows<8>(out, out_step, in, in_step, rows);
    case 16:
      return copy_rows<16>(out, out_step, in, in_step, rows);
    case 32:
      return copy_rows<32>(out, out_step, in, in_step, rows);
    case 64:
      return copy_rows<64>(out, out_step, in, in_step, rows);
    case 128:
      return copy_rows<128>(out, out_step, in, in_step, rows);
    default:
      for (std::int64_t i = 0; i < rows; ++i) copy_streaming(out + i * out_step, in + i * in_step, bytes);
  }
}

// A matrix of a row that is a mixture, its rows `step` elements apart there and one after the other in `out`.
template <class S>
void mix_matrix(const RowMixture& row, std::int64_t first, std::int64_t rows, std::int64_t columns,
                std::int64_t step, S* out) {
  if (step == columns) columns = step = rows * columns, rows = 1;
  for (std::int64_t i = 0; i < rows; ++i)
    mix_columns(row, first + i * step, first + i * step + columns, out + i * columns);
}

// A mixture to the engine's side, a buffer at a time: whole rows of it, or pieces of one.
template <class S>
void load_mixed_rows(const CopyPart& part, const RowMixture& row, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kBuffer = 4096 / sizeof(S);
  alignas(64) S buffer[kBuffer];
  const auto factor = static_cast<typename Lanes<S>::Scalar>(part.scaling);
  if (factor == 1 && part.columns == part.stride && part.columns == part.step) {
    const std::int64_t first = begin * part.columns, last = end * part.columns;
    S* out = static_cast<S*>(part.place) + first;
    if (aligned(out, 0)) return mix_columns<S, true>(row, part.offset + first, part.offset + last, out);
    return mix_columns<S>(row, part.offset + first, part.offset + last, out);
  }
  const std::int64_t columns = std::min(part.columns, kBuffer), rows = kBuffer / columns;
  for (std::int64_t i = begin; i < end; i += rows) {
    const std::int64_t some = std::min(rows, end - i);
    for (std::int64_t d = 0; d < part.columns; d += columns) {
      const std::int64_t width = std::min(columns, part.columns - d);
      mix_matrix(row, part.offset + i * part.step + d, some, width, part.step, buffer);
      if (factor != 1) scale(buffer, buffer, some * width, factor);
      S* place = static_cast<S*>(part.place) + i * part.stride + d;
      const auto bytes = [](std::int64_t count) { return count * static_cast<std::int64_t>(sizeof(S)); };
      copy_rows(reinterpret_cast<char*>(place), bytes(part.stride), reinterpret_cast<const char*>(buffer),
                bytes(width), some, bytes(width));
    }
  }
}

// To the engine's side; rows of either side may have gaps.
template <class S>
void load_rows(const CopyPart& part, const void* row, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kBuffer = 4096 / sizeof(S);
  using Scalar = typename Lanes<S>::Scalar;
  const S* flat = static_cast<const S*>(row) + part.offset + begin * part.step;
  S* place = static_cast<S*>(part.place) + begin * part.stride;
  std::int64_t rows = end - begin, columns = part.columns, step = part.step, stride = part.stride;
  if (columns == stride && columns == step) columns = stride = step = rows * columns, rows = 1;
  const auto factor = static_cast<Scalar>(part.scaling);
  const auto bytes = [](std::int64_t count) { return count * static_cast<std::int64_t>(sizeof(S)); };
  if (factor == Scalar(1)) {
    copy_rows(reinterpret_cast<char*>(place), bytes(stride), reinterpret_cast<const char*>(flat), bytes(step),
              rows, bytes(columns));
    return;
  }
  if (columns >= kBuffer || columns != step) {
    for (std::int64_t i = 0; i < rows; ++i) scale(place + i * stride, flat + i * step, columns, factor);
    return;
  }
  alignas(64) S buffer[kBuffer];
  const std::int64_t at_once = kBuffer / columns;
  for (std::int64_t i = 0; i < rows; i += at_once) {
    const std::int64_t count = std::min(at_once, rows - i);
    scale(buffer, flat + i * columns, count * columns, factor);
    copy_rows(reinterpret_cast<char*>(place + i * stride), bytes(stride),
              reinterpret_cast<const char*>(buffer), bytes(columns), count, bytes(columns));
  }
}

// Of A so much is widened at once for all rows of live weights: half of the first cache, but two pairs of
// columns even of a high rank.
constexpr std::int64_t kWideBytes = 16384;

// Rows of live weights that share every load of A, above this rank. Up to it memory is what is waited for,
// and rows go one after the other, as it gives them fastest. Both measured in docs/log.md.
constexpr int kMergeRows = 3;
constexpr std::int64_t kRowByRowRank = 4;

// A piece of a merge: `a` is A of some columns, widened, its rows `step` elements apart. Base weights are
// asked for `ahead` elements before their turn: else memory and the arithmetic are waited for one after the
// other.
template <class S>
struct MergePiece {
  const MergePart& part;
  const typename Lanes<S>::Scalar* a;
  std::int64_t step, columns, ahead;
};

// R rows of live weights, T pairs of columns from d on: sums over the rank stay in registers, base is read
// and live written once. `b` are the R rows of scaling * B.
template <class S, int R, int T>
inline __attribute__((always_inline)) Tile<typename Lanes<S>::Scalar, R, T> products(
    const MergePiece<S>& piece, const typename Lanes<S>::Scalar* b, std::int64_t d) {
  Tile<typename Lanes<S>::Scalar, R, T> tile;
  const auto* a = piece.a + d;
  for (std::int64_t k = 0; k < piece.part.rank; ++k, a += piece.step) tile.add(a, b + k, piece.part.rank);
  return tile;
}

template <class S, int R, int T, bool kStream>
inline void merge_tile(const MergePiece<S>& piece, const typename Lanes<S>::Scalar* b, std::int64_t d,
                       const S* base, S* live) {
  using L = Lanes<S>;
  each<R>([&](auto r) { prefetch<S, T>(base + r * piece.part.columns + d + piece.ahead); });
  const auto tile = products<S, R, T>(piece, b, d);
  each<R>([&](auto r) {
    const S* in = base + r * piece.part.columns + d;
    S* out = live + r * piece.part.stride + d;
    each<T>([&](auto t) {
      put<S, kStream>(out + t * L::columns, L::bits(L::load(in + t * L::columns) + tile.sum(r, t)));
    });
  });
}

template <class S, int R, bool kStream>
void merge_some_rows(const MergePiece<S>& piece, const S* b, const S* base, S* live) {
  using L = Lanes<S>;
  using Scalar = typename L::Scalar;
  const std::int64_t columns = piece.columns;
  alignas(64) Scalar scaled[R * LoraMerger::kMaxRank];
  for (std::int64_t k = 0; k < R * piece.part.rank; ++k)
    scaled[k] = static_cast<Scalar>(piece.part.scaling) * widened(b[k]);
  std::int64_t d = 0;
  for (; d + 2 * L::columns <= columns; d += 2 * L::columns)
    merge_tile<S, R, 2, kStream>(piece, scaled, d, base, live);
  for (; d + L::columns <= columns; d += L::columns)
    merge_tile<S, R, 1, kStream>(piece, scaled, d, base, live);
  if (const std::int64_t some = columns - d) {
    const auto tile = products<S, R, 1>(piece, scaled, d);
    each<R>([&](auto r) {
      const auto old = load_some(base + r * piece.part.columns + d, some);
      const auto sum = tile.sum(r, std::integral_constant<int, 0>());
      store_some(live + r * piece.part.stride + d, L::bits(old + sum), some);
    });
  }
}

// Rows of A are `step` elements apart; `b` is row `begin` of B, and the rows after it.
template <class S, bool kStream>
void merge_rows(const MergePart& part, const S* a, std::int64_t step, const S* b, std::int64_t begin,
                std::int64_t end) {
  using L = Lanes<S>;
  using Wide = Lanes<typename L::Scalar>;  // stores a pair of S's as it is
  constexpr std::int64_t kItem = sizeof(typename L::Scalar), kLeast = 2 * L::columns;
  alignas(64) typename L::Scalar wide[std::max(kWideBytes / kItem, kLeast * LoraMerger::kMaxRank)];
  const std::int64_t rank = part.rank, most = std::max(kWideBytes / kItem / rank / kLeast * kLeast, kLeast);
  for (std::int64_t first = 0; first < part.columns; first += most) {
    const std::int64_t columns = std::min(most, part.columns - first);
    for (std::int64_t k = 0; k < rank; ++k) {
      const S* from = a + k * step + first;
      for (std::int64_t d = 0; d < columns; d += L::columns) {
        const bool whole = d + L::columns <= columns;
        Wide::store(wide + k * most + d, whole ? L::load(from + d) : load_some(from + d, columns - d));
      }
    }
    const std::int64_t bytes = columns * static_cast<std::int64_t>(sizeof(S));
    const std::int64_t rows_ahead = std::max<std::int64_t>(kMergeRows, (kAheadBytes + bytes - 1) / bytes);
    const MergePiece<S> piece{part, wide, most, columns, rows_ahead * part.columns};
    const S* base = static_cast<const S*>(part.base) + first;
    S* live = static_cast<S*>(part.live) + first;
    const auto merge = [&](auto rows, std::int64_t i) {
      merge_some_rows<S, rows, kStream>(piece, b + (i - begin) * rank, base + i * part.columns,
                                        live + i * part.stride);
    };
    std::int64_t i = begin;
    if (rank > kRowByRowRank)
      for (; i + kMergeRows <= end; i += kMergeRows) merge(std::integral_constant<int, kMergeRows>(), i);
    for (; i < end; ++i) merge(std::integral_constant<int, 1>(), i);
  }
}

template <class S>
void merge_aligned_or_not(const MergePart& part, const S* a, std::int64_t step, const S* b,
                          std::int64_t begin, std::int64_t end) {
  const bool stream = aligned(part.live, part.stride * static_cast<std::int64_t>(sizeof(S)));
  stream ? merge_rows<S, true>(part, a, step, b, begin, end)
         : merge_rows<S, false>(part, a, step, b, begin, end);
}

template <class S>
void merge_row(const MergePart& part, const void* row, std::int64_t begin, std::int64_t end) {
  const S* tensors = static_cast<const S*>(row);
  merge_aligned_or_not(part, tensors + part.a, part.step, tensors + part.b + begin * part.rank, begin, end);
}

template <class S>
void merge_mixture(const MergePart& part, const RowMixture& row, void* room, std::int64_t begin,
                   std::int64_t end) {
  S* a = static_cast<S*>(room);
  mix_matrix(row, part.a, part.rank, part.columns, part.step, a);
  // As many rows of B as there is room for: A is widened for all of them.
  constexpr std::int64_t kMixed = 8 * LoraMerger::kMaxRank;
  alignas(64) S b[kMixed];
  const std::int64_t together = kMixed / part.rank;
  for (std::int64_t i = begin; i < end; i += together) {
    const std::int64_t stop = std::min(end, i + together);
    mix_columns(row, part.b + i * part.rank, part.b + stop * part.rank, b);
    merge_aligned_or_not(part, static_cast<const S*>(a), part.columns, static_cast<const S*>(b), i, stop);
  }
}

// pick(one number of the type)
template <class Pick>
auto by_dtype(DType dtype, const Pick& pick) -> decltype(pick(float())) {
  switch (dtype) {
    case DType::float32:
      return pick(float());
    case DType::bfloat16:
      return pick(BFloat16());
    case DType::float16:
      return pick(Float16());
    case DType::float64:
      return pick(double());
  }
  return nullptr;
}

CopyRows load_rows_of(DType dtype) {
  return by_dtype(dtype, [](auto s) -> CopyRows { return load_rows<decltype(s)>; });
}

CopyMixedRows load_mixed_rows_of(DType dtype) {
  return by_dtype(dtype, [](auto s) -> CopyMixedRows { return load_mixed_rows<decltype(s)>; });
}

MergeRows merge_rows_of(DType dtype) {
  return by_dtype(dtype, [](auto s) -> MergeRows { return merge_row<decltype(s)>; });
}

MergeMixedRows merge_mixed_rows_of(DType dtype) {
  return by_dtype(dtype, [](auto s) -> MergeMixedRows { return merge_mixture<decltype(s)>; });
}
