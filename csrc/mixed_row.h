// Columns of a row that is a mixture of others. Included once for every SIMD level, like lanes.h.

#include "tile.h"

// kStream: past the caches, to a multiple of the widest register.
template <class S, bool kStream>
inline void put(S* out, const typename Lanes<S>::Stored& x) {
  if constexpr (kStream) {
    Lanes<S>::stream(out, x);
  } else {
    Lanes<S>::store(out, x);
  }
}

// Columns [begin, end) of a row that is a mixture.
template <class S, bool kStream = false>
void mix_columns(const RowMixture& row, std::int64_t begin, std::int64_t end, S* out) {
  using L = Lanes<S>;
  const auto* mixture = static_cast<const typename L::Scalar*>(row.mixture);
  const auto tiles = [&](auto pairs) {
    constexpr int kPairs = decltype(pairs)::value;
    for (; begin + kPairs * L::columns <= end; begin += kPairs * L::columns, out += kPairs * L::columns) {
      const S* expert = static_cast<const S*>(row.experts) + begin;
      Tile<S, 1, kPairs> tile;
      for (std::int64_t j = 0; j < row.count; ++j, expert += row.stride) tile.add(expert, mixture + j, 1);
      each<kPairs>([&](auto t) {
        put<S, kStream>(out + t * L::columns, L::bits(tile.sum(std::integral_constant<int, 0>(), t)));
      });
    }
  };
  tiles(std::integral_constant<int, 4>());
  tiles(std::integral_constant<int, 1>());
  if (begin < end) {
    const S* expert = static_cast<const S*>(row.experts) + begin;
    typename L::Pair sum{L::broadcast(0), L::broadcast(0)};
    for (std::int64_t j = 0; j < row.count; ++j, expert += row.stride)
      sum = sum + L::broadcast(mixture[j]) * load_some(expert, end - begin);
    store_some(out, L::bits(sum), end - begin);
  }
}
