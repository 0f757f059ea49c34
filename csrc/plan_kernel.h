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

// Between the flat side and the engine's, whose rows may both have gaps.
template <class S, bool kLoad>
void move_rows(const CopyPart& part, const void* row, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kBuffer = 4096 / sizeof(S);
  using Scalar = typename Lanes<S>::Scalar;
  // A store writes to the row: CopyPlan::store was given one that may be written.
  S* flat = static_cast<S*>(const_cast<void*>(row)) + part.offset + begin * part.step;
  S* place = static_cast<S*>(part.place) + begin * part.stride;
  std::int64_t rows = end - begin, columns = part.columns, step = part.step, stride = part.stride;
  if (columns == stride && columns == step) columns = stride = step = rows * columns, rows = 1;
  const Scalar factor = static_cast<Scalar>(kLoad ? part.scaling : 1.0 / part.scaling);
  const auto bytes = [](std::int64_t count) { return count * static_cast<std::int64_t>(sizeof(S)); };
  if (factor == Scalar(1)) {
    char* out = reinterpret_cast<char*>(kLoad ? place : flat);
    const char* in = reinterpret_cast<const char*>(kLoad ? flat : place);
    copy_rows(out, bytes(kLoad ? stride : step), in, bytes(kLoad ? step : stride), rows, bytes(columns));
    return;
  }
  if (columns >= kBuffer || columns != step) {
    for (std::int64_t i = 0; i < rows; ++i) {
      S *one = flat + i * step, *other = place + i * stride;
      scale(kLoad ? other : one, kLoad ? one : other, columns, factor);
    }
    return;
  }
  alignas(64) S buffer[kBuffer];
  const std::int64_t at_once = kBuffer / columns;
  for (std::int64_t i = 0; i < rows; i += at_once) {
    const std::int64_t count = std::min(at_once, rows - i);
    S *one = flat + i * columns, *other = place + i * stride;
    char *middle = reinterpret_cast<char*>(buffer), *far = reinterpret_cast<char*>(other);
    if constexpr (kLoad) {
      scale(buffer, one, count * columns, factor);
      copy_rows(far, bytes(stride), middle, bytes(columns), count, bytes(columns));
    } else {
      copy_rows(middle, bytes(columns), far, bytes(stride), count, bytes(columns));
      scale(one, buffer, count * columns, factor);
    }
  }
}

// Rows of live weights that share every load of A.
constexpr std::int64_t kMergeRows = 5;

// Up to this rank memory is what is waited for, and rows go one after the other, as it gives them fastest.
// Measured in docs/log.md.
constexpr std::int64_t kRowByRowRank = 4;

// R rows of live weights, T pairs of columns: sums over the rank stay in registers, base is read and live
// written once. `b` are the R rows of scaling * B.
template <class S, int R, int T, bool kStream>
inline void merge_tile(const MergePart& part, const S* a, std::int64_t step,
                       const typename Lanes<S>::Scalar* b, const S* base, S* live) {
  using L = Lanes<S>;
  // Of several rows at once, each is too short for the processor to find out where the next ones go on.
  if constexpr (R > 1) each<R>([&](auto r) { prefetch<S, T>(base + (R + r) * part.columns); });
  Tile<S, R, T> tile;
  for (std::int64_t k = 0; k < part.rank; ++k, a += step) tile.add(a, b + k, part.rank);
  each<R>([&](auto r) {
    each<T>([&](auto t) {
      const std::int64_t d = t * L::columns;
      put<S, kStream>(live + r * part.stride + d,
                      L::bits(L::load(base + r * part.columns + d) + tile.sum(r, t)));
    });
  });
}

template <class S, int R, bool kStream>
void merge_some_rows(const MergePart& part, const S* a, std::int64_t step, const typename Lanes<S>::Scalar* b,
                     const S* base, S* live) {
  using L = Lanes<S>;
  std::int64_t d = 0;
  for (; d + 2 * L::columns <= part.columns; d += 2 * L::columns)
    merge_tile<S, R, 2, kStream>(part, a + d, step, b, base + d, live + d);
  for (; d + L::columns <= part.columns; d += L::columns)
    merge_tile<S, R, 1, kStream>(part, a + d, step, b, base + d, live + d);
  if (const std::int64_t some = part.columns - d) {
    for (int r = 0; r < R; ++r) {
      typename L::Pair sum{L::broadcast(0), L::broadcast(0)};
      for (std::int64_t k = 0; k < part.rank; ++k)
        sum = sum + L::broadcast(b[r * part.rank + k]) * load_some(a + k * step + d, some);
      store_some(live + r * part.stride + d, L::bits(load_some(base + r * part.columns + d, some) + sum),
                 some);
    }
  }
}

// Rows of A are `step` elements apart; `b` is row `begin` of B, and the rows after it.
template <class S, bool kStream>
void merge_rows(const MergePart& part, const S* a, std::int64_t step, const S* b, std::int64_t begin,
                std::int64_t end) {
  using Scalar = typename Lanes<S>::Scalar;
  const S* base = static_cast<const S*>(part.base) + begin * part.columns;
  S* live = static_cast<S*>(part.live) + begin * part.stride;
  alignas(64) Scalar scaled[kMergeRows * MergePlan::kMaxRank];
  const std::int64_t together = part.rank <= kRowByRowRank ? 1 : kMergeRows;
  for (std::int64_t left = end - begin; left > 0; left -= together) {
    const std::int64_t rows = std::min(together, left);
    for (std::int64_t k = 0; k < rows * part.rank; ++k)
      scaled[k] = static_cast<Scalar>(part.scaling) * widened(b[k]);
    if (rows == 5) merge_some_rows<S, 5, kStream>(part, a, step, scaled, base, live);
    if (rows == 4) merge_some_rows<S, 4, kStream>(part, a, step, scaled, base, live);
    if (rows == 3) merge_some_rows<S, 3, kStream>(part, a, step, scaled, base, live);
    if (rows == 2) merge_some_rows<S, 2, kStream>(part, a, step, scaled, base, live);
    if (rows == 1) merge_some_rows<S, 1, kStream>(part, a, step, scaled, base, live);
    b += rows * part.rank, base += rows * part.columns, live += rows * part.stride;
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
  // As many rows of B as there is room for: a few, of a low rank, would be less than a register.
  alignas(64) S b[kMergeRows * MergePlan::kMaxRank];
  const std::int64_t together = MergePlan::kMaxRank / part.rank * kMergeRows;
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
  return by_dtype(dtype, [](auto s) -> CopyRows { return move_rows<decltype(s), true>; });
}

CopyRows store_rows_of(DType dtype) {
  return by_dtype(dtype, [](auto s) -> CopyRows { return move_rows<decltype(s), false>; });
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
