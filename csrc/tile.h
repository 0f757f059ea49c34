// Sums of rows times numbers that stay in registers: the inner loop of a mix and of a merge. Included once
// for every SIMD level, like lanes.h.

// f(0), f(1), ... with constants: registers in an array stay registers only if no index is a variable.
template <int... i, class F>
inline __attribute__((always_inline)) void each(std::integer_sequence<int, i...>, const F& f) {
  (f(std::integral_constant<int, i>()), ...);
}
template <int count, class F>
inline __attribute__((always_inline)) void each(const F& f) {
  each(std::make_integer_sequence<int, count>(), f);
}

// R sums of T pairs of columns, kFused or each product and sum rounded. Every register of `row` that is
// loaded serves all R.
template <class S, int R, int T, bool kFused = false>
struct Tile {
  using L = Lanes<S>;
  using Reg = typename L::Reg;
  Reg sums[R * 2 * T];

  inline __attribute__((always_inline)) Tile() {
    each<R * 2 * T>([&](auto i) { sums[i] = L::broadcast(0); });
  }

  // sum r += numbers[r * step] * row
  inline __attribute__((always_inline)) void add(const S* row, const typename L::Scalar* numbers,
                                                 std::int64_t step) {
    Reg loaded[2 * T];
    each<T>([&](auto t) {
      const auto pair = L::load(row + t * L::columns);
      loaded[2 * t] = pair.a, loaded[2 * t + 1] = pair.b;
    });
    each<R>([&](auto r) {
      const Reg number = L::broadcast(numbers[r * step]);
      each<2 * T>([&](auto t) {
        Reg& sum = sums[r * 2 * T + t];
        if constexpr (kFused) {
          sum = fused(number, loaded[t], sum);
        } else {
          sum = sum + number * loaded[t];
        }
      });
    });
  }

  template <int r, int t>
  inline __attribute__((always_inline)) typename L::Pair sum(std::integral_constant<int, r>,
                                                             std::integral_constant<int, t>) const {
    return {sums[(r * T + t) * 2], sums[(r * T + t) * 2 + 1]};
  }
};
