// The columns [begin, end) of the mix for every particle. Compiled once a SIMD level; see each_simd_level.h.

#include "tile.h"

// R particles share every expert register that is loaded, T pairs of columns at a time. `ahead` columns
// further on the experts will be needed next; 0: somebody asked for them already.
template <class S, int R, int T, bool kStream>
inline void mix_tile(const Mix& args, std::int64_t first, std::int64_t d, std::int64_t ahead, S* out) {
  using L = Lanes<S>;
  const S* experts = static_cast<const S*>(args.experts) + d;
  const auto* mixture = static_cast<const typename L::Scalar*>(args.mixture) + first * args.count;
  Tile<S, R, T> tile;
  for (std::int64_t j = 0; j < args.count; ++j, experts += args.experts_stride) {
    if (ahead > 0) prefetch<S, T>(experts + ahead);
    tile.add(experts, mixture + j, args.count);
  }
  each<R>([&](auto r) {
    each<T>([&](auto t) {
      S* address = out + r * args.out_stride + t * L::columns;
      const auto stored = L::bits(tile.sum(r, t));
      if constexpr (kStream) {
        L::stream(address, stored);
      } else {
        L::store(address, stored);
      }
    });
  });
}

// Fewer columns than a pair has.
template <class S>
void mix_some(const Mix& args, std::int64_t i, std::int64_t d, std::int64_t some, S* out) {
  using L = Lanes<S>;
  const S* experts = static_cast<const S*>(args.experts) + d;
  const auto* mixture = static_cast<const typename L::Scalar*>(args.mixture) + i * args.count;
  typename L::Pair sum{L::broadcast(0), L::broadcast(0)};
  for (std::int64_t j = 0; j < args.count; ++j)
    sum = sum + L::broadcast(mixture[j]) * load_some(experts + j * args.experts_stride, some);
  store_some(out, L::bits(sum), some);
}

template <class S, int R, bool kStream>
void mix_rows(const Mix& args, std::int64_t first, std::int64_t begin, std::int64_t end, std::int64_t ahead,
              S* out) {
  constexpr std::int64_t kColumns = Lanes<S>::columns;
  out += first * args.out_stride;
  std::int64_t d = begin;
  for (; d + 2 * kColumns <= end; d += 2 * kColumns)
    mix_tile<S, R, 2, kStream>(args, first, d, ahead, out + d - begin);
  for (; d + kColumns <= end; d += kColumns)
    mix_tile<S, R, 1, kStream>(args, first, d, ahead, out + d - begin);
  if (d < end) {
    for (int r = 0; r < R; ++r) mix_some(args, first + r, d, end - d, out + r * args.out_stride + d - begin);
  }
}

// All particles, as many at a time as the registers have room for.
template <class S, bool kStream>
void mix_block(const Mix& args, std::int64_t begin, std::int64_t end, S* out) {
  constexpr int kTile = 5;
  const std::int64_t rest = args.particles % kTile, ahead = end - begin;
  for (std::int64_t i = 0; i + kTile <= args.particles; i += kTile)
    mix_rows<S, kTile, kStream>(args, i, begin, end, i == 0 ? ahead : 0, out);
  const std::int64_t i = args.particles - rest, rest_ahead = i == 0 ? ahead : 0;
  if (rest == 4) mix_rows<S, 4, kStream>(args, i, begin, end, rest_ahead, out);
  if (rest == 3) mix_rows<S, 3, kStream>(args, i, begin, end, rest_ahead, out);
  if (rest == 2) mix_rows<S, 2, kStream>(args, i, begin, end, rest_ahead, out);
  if (rest == 1) mix_rows<S, 1, kStream>(args, i, begin, end, rest_ahead, out);
}

// Columns of one call: few enough for the experts to stay in the first cache until the last particle has used
// them.
template <class S>
inline std::int64_t columns_at_once(const Mix& args) {
  const std::int64_t row =
      kCacheBytes / std::max<std::int64_t>(args.count, 1) / static_cast<std::int64_t>(sizeof(S));
  return std::max<std::int64_t>(row / 64, 2) * 64;
}

template <class S, bool kStream>
void mix_columns(const Mix& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t block = columns_at_once<S>(args);
  for (std::int64_t stop; begin < end; begin = stop) {
    stop = std::min(end, begin + block);
    mix_block<S, kStream>(args, begin, stop, static_cast<S*>(args.out) + begin);
  }
  if constexpr (kStream) end_streaming();
}

template <class S>
MixColumns mix_columns_as(const Mix& args) {
  return args.stream ? mix_columns<S, true> : mix_columns<S, false>;
}

MixColumns mix_columns_of(const Mix& args) {
  switch (args.dtype) {
    case DType::float32:
      return mix_columns_as<float>(args);
    case DType::bfloat16:
      return mix_columns_as<BFloat16>(args);
    case DType::float16:
      return mix_columns_as<Float16>(args);
    case DType::float64:
      return mix_columns_as<double>(args);
  }
  return nullptr;
}
