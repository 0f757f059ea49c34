// Lanes<Storage>: two registers of the arithmetic type and how they come from and go to storage. Included
// once for every SIMD level (see each_simd_level.h), each time in that level's namespace, hence no guard. The
// registers are built-in vector types, so the operators write + - * / and the equation stays readable.
//
// A Pair, two registers, is what one step of an operator works on. Where a column lies in it is the storage
// type's business: bfloat16 keeps even columns in one register and odd ones in the other, since then one
// instruction widens each; the others keep one half of the columns in each. `bits` rounds a pair to what is
// stored; `in_storage` is the numbers that are stored then.
//
// fused(a, b, c) is a * b + c, rounded once, at every level: for whoever does not have to have the bits of a
// product and a sum that are each rounded.
//
// Rounding to bfloat16 is to nearest even. Adding 0x7fff plus the last kept bit does that for every number,
// infinities included, but could carry a NaN's payload into infinity: a NaN is cut off and made quiet
// instead.

template <class Reg>
struct Two {
  Reg a, b;
};
#define MS_TWO(op)                                                    \
  template <class Reg>                                                \
  inline Two<Reg> operator op(const Two<Reg>& x, const Two<Reg>& y) { \
    return {x.a op y.a, x.b op y.b};                                  \
  }                                                                   \
  template <class Reg>                                                \
  inline Two<Reg> operator op(const Reg& x, const Two<Reg>& y) {      \
    return {x op y.a, x op y.b};                                      \
  }
MS_TWO(+)
MS_TWO(-)
MS_TWO(*)
MS_TWO(/)
#undef MS_TWO

template <class S>
struct Lanes;

#if MS_SIMD == 0

// One number a register; a pair is two neighbours.
template <class S, class T>
struct PlainLanes {
  using Scalar = T;
  using Reg = T;
  using Pair = Two<T>;
  using Stored = Two<S>;
  static constexpr int columns = 2;
  static inline Reg broadcast(Scalar a) { return a; }
  static inline Pair load(const S* p) { return {widened(p[0]), widened(p[1])}; }
  static inline Stored bits(const Pair& x) { return {Lanes<S>::rounded(x.a), Lanes<S>::rounded(x.b)}; }
  static inline Pair in_storage(const Pair& x) {
    return {widened(Lanes<S>::rounded(x.a)), widened(Lanes<S>::rounded(x.b))};
  }
  static inline void store(S* p, const Stored& x) {
    p[0] = x.a;
    p[1] = x.b;
  }
  static inline void stream(S* p, const Stored& x) { store(p, x); }
};

template <>
struct Lanes<float> : PlainLanes<float, float> {
  static inline float rounded(float a) { return a; }
};

inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

template <>
struct Lanes<double> : PlainLanes<double, double> {
  static inline double rounded(double a) { return a; }
};

template <>
struct Lanes<BFloat16> : PlainLanes<BFloat16, float> {
  static inline BFloat16 rounded(float a) {
    const std::uint32_t u = as_bits(a);
    const std::uint32_t nearest = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    return {static_cast<std::uint16_t>((u & 0x7fffffff) > 0x7f800000 ? (u >> 16) | 0x40 : nearest)};
  }
};

template <>
struct Lanes<Float16> : PlainLanes<Float16, float> {
  static inline Float16 rounded(float a) {
    const std::uint32_t sign = (as_bits(a) >> 16) & 0x8000;
    const std::uint32_t u = as_bits(a) & 0x7fffffff;
    std::uint32_t r;
    if (u > 0x7f800000) {
      r = 0x7e00 | ((u >> 13) & 0x3ff);
    } else if (u >= 0x477ff000) {  // 65520 and above round to infinity
      r = 0x7c00;
    } else if (u >= 0x38800000) {  // 2^-14 and above: normal
      r = (u + 0xfff + ((u >> 13) & 1) - 0x38000000) >> 13;
    } else {  // adding 0.5 leaves the multiples of 2^-24 in the last bits of the mantissa, rounded by the
              // addition
      r = as_bits(as_float(u) + 0.5f) - 0x3f000000;
    }
    return {static_cast<std::uint16_t>(sign | r)};
  }
};

#elif MS_SIMD == 1

inline __m256 fused(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }

template <>
struct Lanes<float> {
  using Scalar = float;
  using Reg = __m256;
  using Pair = Two<Reg>;
  using Stored = Pair;
  static constexpr int columns = 16;
  static inline Reg broadcast(Scalar a) { return _mm256_set1_ps(a); }
  static inline Pair load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static inline Stored bits(const Pair& x) { return x; }
  static inline void store(float* p, const Stored& x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
  }
  static inline void stream(float* p, const Stored& x) {
    _mm256_stream_ps(p, x.a);
    _mm256_stream_ps(p + 8, x.b);
  }
};

template <>
struct Lanes<double> {
  using Scalar = double;
  using Reg = __m256d;
  using Pair = Two<Reg>;
  using Stored = Pair;
  static constexpr int columns = 8;
  static inline Reg broadcast(Scalar a) { return _mm256_set1_pd(a); }
  static inline Pair load(const double* p) { return {_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)}; }
  static inline Stored bits(const Pair& x) { return x; }
  static inline void store(double* p, const Stored& x) {
    _mm256_storeu_pd(p, x.a);
    _mm256_storeu_pd(p + 4, x.b);
  }
  static inline void stream(double* p, const Stored& x) {
    _mm256_stream_pd(p, x.a);
    _mm256_stream_pd(p + 4, x.b);
  }
};

template <class S>
struct HalfLanes {
  using Scalar = float;
  using Reg = __m256;
  using Pair = Two<Reg>;
  using Stored = __m256i;
  static constexpr int columns = 16;
  static inline Reg broadcast(Scalar a) { return _mm256_set1_ps(a); }
  static inline void store(S* p, Stored x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
  static inline void stream(S* p, Stored x) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), x); }
};

template <>
struct Lanes<BFloat16> : HalfLanes<BFloat16> {
  static inline Pair load(const BFloat16* p) {
    const __m256i u = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(u, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(u, _mm256_set1_epi32(static_cast<int>(0xffff0000))))};
  }
  // Rounded, in the upper half of each 32 bits.
  static inline __m256i upper(Reg a) {
    const __m256i u = _mm256_castps_si256(a);
    const __m256i last = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
  }
  static inline Reg cut(__m256i upper_halves) {
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    return _mm256_castsi256_ps(_mm256_and_si256(upper_halves, mask));
  }
  static inline Pair in_storage(const Pair& x) { return {cut(upper(x.a)), cut(upper(x.b))}; }
  static inline Stored joined(__m256i even, __m256i odd) {
    return _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa);
  }
  static inline Stored bits(const Pair& x) { return joined(upper(x.a), upper(x.b)); }
};

template <>
struct Lanes<Float16> : HalfLanes<Float16> {
  static inline Pair load(const Float16* p) {
    const __m128i* q = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
  }
  static inline Stored bits(const Pair& x) {
    return _mm256_set_m128i(_mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT),
                            _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  }
  static inline Reg in_storage(Reg a) {
    return _mm256_cvtph_ps(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  static inline Pair in_storage(const Pair& x) { return {in_storage(x.a), in_storage(x.b)}; }
  static inline Stored joined(__m256i a, __m256i b) {
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
  }
};

#else  // AVX-512

inline __m512 fused(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }

template <>
struct Lanes<float> {
  using Scalar = float;
  using Reg = __m512;
  using Pair = Two<Reg>;
  using Stored = Pair;
  static constexpr int columns = 32;
  static inline Reg broadcast(Scalar a) { return _mm512_set1_ps(a); }
  static inline Pair load(const float* p) { return {_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16)}; }
  static inline Stored bits(const Pair& x) { return x; }
  static inline void store(float* p, const Stored& x) {
    _mm512_storeu_ps(p, x.a);
    _mm512_storeu_ps(p + 16, x.b);
  }
  static inline void stream(float* p, const Stored& x) {
    _mm512_stream_ps(p, x.a);
    _mm512_stream_ps(p + 16, x.b);
  }
};

template <>
struct Lanes<double> {
  using Scalar = double;
  using Reg = __m512d;
  using Pair = Two<Reg>;
  using Stored = Pair;
  static constexpr int columns = 16;
  static inline Reg broadcast(Scalar a) { return _mm512_set1_pd(a); }
  static inline Pair load(const double* p) { return {_mm512_loadu_pd(p), _mm512_loadu_pd(p + 8)}; }
  static inline Stored bits(const Pair& x) { return x; }
  static inline void store(double* p, const Stored& x) {
    _mm512_storeu_pd(p, x.a);
    _mm512_storeu_pd(p + 8, x.b);
  }
  static inline void stream(double* p, const Stored& x) {
    _mm512_stream_pd(p, x.a);
    _mm512_stream_pd(p + 8, x.b);
  }
};

template <class S>
struct HalfLanes {
  using Scalar = float;
  using Reg = __m512;
  using Pair = Two<Reg>;
  using Stored = __m512i;
  static constexpr int columns = 32;
  static inline Reg broadcast(Scalar a) { return _mm512_set1_ps(a); }
  static inline void store(S* p, Stored x) { _mm512_storeu_si512(p, x); }
  static inline void stream(S* p, Stored x) { _mm512_stream_si512(reinterpret_cast<__m512i*>(p), x); }
};

template <>
struct Lanes<BFloat16> : HalfLanes<BFloat16> {
  static constexpr __mmask32 kOdd = 0xaaaaaaaa;
  static inline Pair load(const BFloat16* p) {
    const __m512i u = _mm512_loadu_si512(p);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(u, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32(static_cast<int>(0xffff0000))))};
  }
  // Rounded, in the upper half of each 32 bits.
  static inline __m512i upper(Reg a) {
    const __m512i u = _mm512_castps_si512(a);
    const __m512i last = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
  }
  static inline Reg cut(__m512i upper_halves) {
    const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    return _mm512_castsi512_ps(_mm512_and_si512(upper_halves, mask));
  }
  static inline Pair in_storage(const Pair& x) { return {cut(upper(x.a)), cut(upper(x.b))}; }
  static inline Stored joined(__m512i even, __m512i odd) {
    return _mm512_mask_blend_epi16(kOdd, _mm512_srli_epi32(even, 16), odd);
  }
  static inline Stored bits(const Pair& x) {
#if MS_SIMD == 3
    // VCVTNE2PS2BF16 takes denormals for zero, whatever MXCSR says: only a pair with one of them goes the
    // long way.
    constexpr int kDenormal = 0x20;
    const __mmask16 a = _mm512_fpclass_ps_mask(x.a, kDenormal), b = _mm512_fpclass_ps_mask(x.b, kDenormal);
    if (__builtin_expect(_kortestz_mask16_u8(a, b), 1)) {
      const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23,
                                             7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
      return _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(x.b, x.a)));
    }
#endif
    return joined(upper(x.a), upper(x.b));
  }
};

template <>
struct Lanes<Float16> : HalfLanes<Float16> {
  static inline Pair load(const Float16* p) {
    const __m256i* q = reinterpret_cast<const __m256i*>(p);
    return {_mm512_cvtph_ps(_mm256_loadu_si256(q)), _mm512_cvtph_ps(_mm256_loadu_si256(q + 1))};
  }
  static inline Stored bits(const Pair& x) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT)),
                              _mm512_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT), 1);
  }
  static inline Reg in_storage(Reg a) {
    return _mm512_cvtph_ps(_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  static inline Pair in_storage(const Pair& x) { return {in_storage(x.a), in_storage(x.b)}; }
  static inline Stored joined(__m512i a, __m512i b) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(a)), _mm512_cvtepi32_epi16(b), 1);
  }
};

#endif

// The lines of some pairs into the second cache: the first has no room for what is that far ahead.
template <class S, int kPairs>
inline void prefetch(const S* address) {
#if MS_SIMD > 0
  constexpr std::size_t bytes = kPairs * Lanes<S>::columns * sizeof(S);
  for (std::size_t line = 0; line < bytes; line += 64)
    _mm_prefetch(reinterpret_cast<const char*>(address) + line, _MM_HINT_T1);
#else
  (void)address;
#endif
}

// The end of a row: fewer columns than a pair has, through a pair's worth of stack.
template <class S>
inline typename Lanes<S>::Pair load_some(const S* p, std::int64_t count) {
  S buffer[Lanes<S>::columns] = {};
  std::memcpy(buffer, p, static_cast<std::size_t>(count) * sizeof(S));
  return Lanes<S>::load(buffer);
}

template <class S>
inline void store_some(S* p, const typename Lanes<S>::Stored& x, std::int64_t count) {
  S buffer[Lanes<S>::columns];
  Lanes<S>::store(buffer, x);
  std::memcpy(p, buffer, static_cast<std::size_t>(count) * sizeof(S));
}
