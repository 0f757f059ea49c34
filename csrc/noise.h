// Random numbers inside the swarm update: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011) of column,
// particle, iteration and seed, the same numbers as modelswarms_fast/ops/reference.py draws. Included after
// lanes.h, once for every SIMD level, in that level's namespace.
//
// A Wide holds one counter a 64-bit lane. Only the low half of a lane counts; the upper one holds what a
// product left there.

#if MS_SIMD == 0
using Wide = std::uint64_t;
using Word = std::uint32_t;
constexpr int kWide = 1;
inline Wide product(Wide a, std::uint32_t b) { return (a & 0xffffffff) * b; }
#elif MS_SIMD == 1
typedef std::uint64_t Wide __attribute__((vector_size(32)));
typedef std::uint32_t Word __attribute__((vector_size(32)));
constexpr int kWide = 4;
inline Wide product(Wide a, std::uint32_t b) {
  return (Wide)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
}
#else
typedef std::uint64_t Wide __attribute__((vector_size(64)));
typedef std::uint32_t Word __attribute__((vector_size(64)));
constexpr int kWide = 8;
inline Wide product(Wide a, std::uint32_t b) {
  return (Wide)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
}
#endif

struct Draws {
  Wide word[4];
};

// What all draws of one particle share.
struct Stream {
  std::uint32_t key[10][2];
  std::uint64_t particle, last;

  Stream(const SwarmUpdate& args, std::int64_t particle_number, int purpose)
      : particle(static_cast<std::uint64_t>(particle_number)),
        last(2 * static_cast<std::uint64_t>(args.iteration) + static_cast<std::uint64_t>(purpose)) {
    std::uint32_t k0 = static_cast<std::uint32_t>(args.seed),
                  k1 = static_cast<std::uint32_t>(args.seed >> 32);
    for (auto& round : key) {
      round[0] = k0, round[1] = k1;
      k0 += 0x9e3779b9, k1 += 0xbb67ae85;
    }
  }

  inline Draws operator()(Wide index) const {
    Wide c0 = index, c1 = index >> 32, c2 = particle + Wide{}, c3 = last + Wide{};
    for (const auto& round : key) {
      const Wide one = product(c0, 0xd2511f53), two = product(c2, 0xcd9e8d57);
      c0 = (two >> 32) ^ c1 ^ std::uint64_t{round[0]};
      c1 = two;
      c2 = (one >> 32) ^ c3 ^ std::uint64_t{round[1]};
      c3 = one;
    }
    return {{c0, c1, c2, c3}};
  }
};

// `even` and `odd` 32-bit lanes, one after the other.
inline Wide interleaved(Wide even, Wide odd) { return (even & 0xffffffff) | (odd << 32); }

// Lane i of a Wide: first + step * order(i).
inline Wide ramp(std::int64_t first, std::int64_t step, bool halves_apart = false) {
  const std::uint64_t begin = static_cast<std::uint64_t>(first);
#if MS_SIMD == 0
  (void)step, (void)halves_apart;
  return begin;
#else
  Wide lanes{};
  for (int i = 0; i < kWide; ++i) {
    const int order = halves_apart ? i / 2 + i % 2 * (kWide / 2) : i;
    lanes[i] = begin + static_cast<std::uint64_t>(step * order);
  }
  return lanes;
#endif
}

// ---- Stochastic rounding ----

// Noise for the pair of columns at `column`, a multiple of 4 (of 2 in portable code): one draw is for four
// columns.
template <class S>
inline Two<Word> rounding_noise(const Stream& stream, std::int64_t column) {
#if MS_SIMD == 0
  const Draws draws = stream(static_cast<std::uint64_t>(column) / 4);
  return {static_cast<Word>(draws.word[column % 4]), static_cast<Word>(draws.word[column % 4 + 1])};
#else
  if constexpr (std::is_same_v<S, BFloat16>) {
    const auto& word = stream(ramp(column / 4, 1)).word;
    return {(Word)interleaved(word[0], word[2]), (Word)interleaved(word[1], word[3])};
  } else {
    // Unpacking takes every other lane of 64 bits: the counters lie so that the columns come out in order.
    const auto& word = stream(ramp(column / 4, 1, true)).word;
    const Wide low = interleaved(word[0], word[1]), high = interleaved(word[2], word[3]);
#if MS_SIMD == 1
    return {(Word)_mm256_unpacklo_epi64((__m256i)low, (__m256i)high),
            (Word)_mm256_unpackhi_epi64((__m256i)low, (__m256i)high)};
#else
    return {(Word)_mm512_unpacklo_epi64((__m512i)low, (__m512i)high),
            (Word)_mm512_unpackhi_epi64((__m512i)low, (__m512i)high)};
#endif
  }
#endif
}

// The 16 stored bits of a float32 (its bits, and 16 bits of noise), in the upper half for bfloat16 and the
// lower half for float16. See round_stochastically in modelswarms_fast/ops/reference.py.
inline Word up_or_down(BFloat16, Word u, Word noise) {
  const Word nan = (u & 0x7fffffff) > 0x7f800000 ? (u & 0) + 0xffffffff : (u & 0);
  return ((u + noise) & ~nan) | ((u | 0x400000) & nan);
}

inline Word up_or_down(Float16, Word u, Word noise) {
  const Word zero = u & 0, sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff, exponent = magnitude >> 23;
  const Word mantissa = (magnitude & 0x7fffff) | (exponent > 0 ? zero + 0x800000 : zero);
  const Word lowered = exponent < 113 ? exponent : zero + 113;
  const Word dropped = 126 - lowered;  // 13 bits, and more below the smallest normal number
  const Word shift = dropped < 31 ? dropped : zero + 31;
  const Word scaled =
      shift < 16 ? noise >> (shift < 16 ? 16 - shift : zero) : noise << (shift < 16 ? zero : shift - 16);
  Word kept = ((exponent - lowered) << 10) + ((mantissa + scaled) >> shift);
  kept = kept < 0x7c00 ? kept : zero + 0x7c00;
  kept = dropped > 31 ? zero : kept;
  kept = magnitude > 0x7f800000 ? (0x7e00 | ((magnitude >> 13) & 0x3ff)) : kept;
  return sign | kept;
}

// The stored bits of a pair, rounded by the lower (x' : upper) 16 bits of the noise.
template <class S>
inline typename Lanes<S>::Stored stochastic_bits(const typename Lanes<S>::Pair& x, const Two<Word>& noise) {
#if MS_SIMD == 0
  const Word a = up_or_down(S{}, as_bits(x.a), noise.a), b = up_or_down(S{}, as_bits(x.b), noise.b);
  constexpr int shift = std::is_same_v<S, BFloat16> ? 16 : 0;
  return {S{static_cast<std::uint16_t>(a >> shift)}, S{static_cast<std::uint16_t>(b >> shift)}};
#else
  using Bits = typename Lanes<S>::Stored;
  return Lanes<S>::joined((Bits)up_or_down(S{}, (Word)x.a, noise.a),
                          (Bits)up_or_down(S{}, (Word)x.b, noise.b));
#endif
}

// ---- A random number for every coordinate ----

// r of the four terms for a pair of columns, each an odd multiple of 2^-24 in (0, 1).
template <class S>
struct Uniforms {
  typename Lanes<S>::Pair r[4];
};

#if MS_SIMD == 0
template <class S>
inline Uniforms<S> uniforms(const Stream& stream, std::int64_t column) {
  using T = typename Lanes<S>::Reg;
  Uniforms<S> all;
  const Draws a = stream(static_cast<std::uint64_t>(column)),
              b = stream(static_cast<std::uint64_t>(column) + 1);
  for (int k = 0; k < 4; ++k) {
    all.r[k].a = static_cast<T>((a.word[k] & 0xffffffff) >> 8 | 1) * T(0x1p-24);
    all.r[k].b = static_cast<T>((b.word[k] & 0xffffffff) >> 8 | 1) * T(0x1p-24);
  }
  return all;
}
#else
// Columns of one register: every `step`-th from `first` on.
template <class S>
inline void uniform_register(const Stream& stream, std::int64_t first, std::int64_t step,
                             typename Lanes<S>::Reg Lanes<S>::Pair::* member, Uniforms<S>& all) {
  using Reg = typename Lanes<S>::Reg;
  if constexpr (std::is_same_v<S, double>) {
    const Draws draws = stream(ramp(first, step));
    for (int k = 0; k < 4; ++k)
      all.r[k].*member = __builtin_convertvector(((draws.word[k] & 0xffffffff) >> 8) | 1, Reg) * 0x1p-24;
  } else {
    typedef std::int32_t Signed __attribute__((vector_size(sizeof(Word))));
    const Draws even = stream(ramp(first, 2 * step)), odd = stream(ramp(first + step, 2 * step));
    for (int k = 0; k < 4; ++k) {
      const Word word = (Word)interleaved(even.word[k], odd.word[k]);
      all.r[k].*member = (Reg) __builtin_convertvector((Signed)((word >> 8) | 1), Reg) * 0x1p-24f;
    }
  }
}

template <class S>
inline Uniforms<S> uniforms(const Stream& stream, std::int64_t column) {
  using Pair = typename Lanes<S>::Pair;
  constexpr bool apart = std::is_same_v<S, BFloat16>;
  Uniforms<S> all;
  uniform_register<S>(stream, column, apart ? 2 : 1, &Pair::a, all);
  uniform_register<S>(stream, column + (apart ? 1 : Lanes<S>::columns / 2), apart ? 2 : 1, &Pair::b, all);
  return all;
}
#endif
