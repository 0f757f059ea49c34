// Columns of some rows of a gated activation. Compiled once a SIMD level; see each_simd_level.h.

#if MS_SIMD == 0
using Bits32 = std::uint32_t;
inline Bits32 bits_of(float x) { return as_bits(x); }
inline float float_of(Bits32 x) { return as_float(x); }
inline float at_most(float x, float most) { return x > most ? most : x; }
inline float at_least(float x, float least) { return x < least ? least : x; }
#elif MS_SIMD == 1
typedef std::uint32_t Bits32 __attribute__((vector_size(32)));
inline Bits32 bits_of(__m256 x) { return (Bits32)x; }
inline __m256 float_of(Bits32 x) { return (__m256)x; }
// A NaN stays one: it is the second operand.
inline __m256 at_most(__m256 x, __m256 most) { return _mm256_min_ps(most, x); }
inline __m256 at_least(__m256 x, __m256 least) { return _mm256_max_ps(least, x); }
#else
typedef std::uint32_t Bits32 __attribute__((vector_size(64)));
inline Bits32 bits_of(__m512 x) { return (Bits32)x; }
inline __m512 float_of(Bits32 x) { return (__m512)x; }
inline __m512 at_most(__m512 x, __m512 most) { return _mm512_min_ps(most, x); }
inline __m512 at_least(__m512 x, __m512 least) { return _mm512_max_ps(least, x); }
#endif

// e^x to 3e-7 of it, infinite from where float32 ends, and e^-80 for less: 2^n * e^r, where n is x / ln 2
// rounded and |r| <= ln 2 / 2, e^r by its series. Half of it, as 2^128 has no exponent, and that twice.
template <class L>
inline typename L::Reg exponential(const typename L::Reg& given) {
  using Reg = typename L::Reg;
  const Reg x = at_least(at_most(given, L::broadcast(89.0f)), L::broadcast(-80.0f));
  // Adding 1.5 * 2^23 leaves the rounded number in the last bits.
  const Reg big = L::broadcast(12582912.0f), shifted = x * L::broadcast(1.44269504f) + big, n = shifted - big;
  // ln 2 in two parts, the first of so few bits that its product with n is exact.
  const Reg r = x - n * L::broadcast(0.693359375f) - n * L::broadcast(-2.12194440e-4f);
  Reg sum = L::broadcast(0.5f / 720);
  for (const float term : {0.5f / 120, 0.5f / 24, 0.5f / 6, 0.25f, 0.5f, 0.5f})
    sum = sum * r + L::broadcast(term);
  const Reg half = float_of(bits_of(sum) + (bits_of(shifted) << 23));
  return half + half;
}

template <class L>
inline typename L::Reg gated(const typename L::Reg& gate, const typename L::Reg& up) {
  const typename L::Reg one = L::broadcast(1.0f), zero = L::broadcast(0.0f);
  return gate / (one + exponential<L>(zero - gate)) * up;
}

template <class S>
inline typename Lanes<S>::Pair gated_pair(const typename Lanes<S>::Pair& gate,
                                          const typename Lanes<S>::Pair& up) {
  return {gated<Lanes<S>>(gate.a, up.a), gated<Lanes<S>>(gate.b, up.b)};
}

// Columns [begin, end) of all rows, counted one row after the other.
template <class S>
void swiglu_columns(const Swiglu& args, std::int64_t begin, std::int64_t end) {
  using L = Lanes<S>;
  while (begin < end) {
    const std::int64_t row = begin / args.width, first = begin % args.width;
    const std::int64_t last = std::min(args.width, first + end - begin);
    const S* gate = static_cast<const S*>(args.in) + row * 2 * args.width;
    const S* up = gate + args.width;
    S* out = static_cast<S*>(args.out) + row * args.width;
    std::int64_t d = first;
    for (; d + L::columns <= last; d += L::columns)
      L::store(out + d, L::bits(gated_pair<S>(L::load(gate + d), L::load(up + d))));
    if (const std::int64_t some = last - d; some > 0)
      store_some(out + d, L::bits(gated_pair<S>(load_some(gate + d, some), load_some(up + d, some))), some);
    begin += last - first;
  }
}

SwigluColumns swiglu_columns_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return swiglu_columns<float>;
    case DType::bfloat16:
      return swiglu_columns<BFloat16>;
    case DType::float16:
      return swiglu_columns<Float16>;
    case DType::float64:
      break;
  }
  return nullptr;
}
