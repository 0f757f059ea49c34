// Lanes<Storage>: load `width` stored numbers into a register of the arithmetic type, and store them rounded.
// Included once for every SIMD level (see each_simd_level.h), each time in that level's namespace, hence no
// guard. The registers are built-in vector types, so the operators write + - * and the equation stays
// readable.
//
// Rounding to bfloat16 is to nearest even. Adding 0x7fff plus the last kept bit does that for every number,
// infinities included, but could carry a NaN's payload into infinity: a NaN is cut off and made quiet
// instead.

#if MS_SIMD == 0

template <class S>
struct Lanes;

template <class T>
struct PlainLanes {
  using Scalar = T;
  using Reg = T;
  static constexpr int width = 1;
  static inline Reg broadcast(Scalar a) { return a; }
};

template <>
struct Lanes<float> : PlainLanes<float> {
  static inline Reg load(const float* p) { return *p; }
  static inline void store(float* p, Reg a) { *p = a; }
};

template <>
struct Lanes<double> : PlainLanes<double> {
  static inline Reg load(const double* p) { return *p; }
  static inline void store(double* p, Reg a) { *p = a; }
};

template <>
struct Lanes<BFloat16> : PlainLanes<float> {
  static inline Reg load(const BFloat16* p) { return as_float(std::uint32_t{p->bits} << 16); }
  static inline void store(BFloat16* p, Reg a) {
    const std::uint32_t u = as_bits(a);
    const std::uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    p->bits = static_cast<std::uint16_t>((u & 0x7fffffff) > 0x7f800000 ? (u >> 16) | 0x40 : rounded);
  }
};

template <>
struct Lanes<Float16> : PlainLanes<float> {
  // Shift exponent and mantissa into a float32 and rebias by a multiplication with 2^112, which also
  // normalises denormals; infinities and NaN then need the float32 exponent.
  static inline Reg load(const Float16* p) {
    const std::uint32_t magnitude = std::uint32_t{p->bits} & 0x7fff;
    const std::uint32_t sign = (std::uint32_t{p->bits} & 0x8000) << 16;
    const std::uint32_t finite = as_bits(as_float(magnitude << 13) * 0x1p112f);
    const std::uint32_t special = (magnitude << 13) | 0x7f800000;
    return as_float(sign | (magnitude >= 0x7c00 ? special : finite));
  }
  static inline void store(Float16* p, Reg a) {
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
    p->bits = static_cast<std::uint16_t>(sign | r);
  }
};

#else

template <class S>
struct Lanes;

#if MS_SIMD == 1

template <>
struct Lanes<float> {
  using Scalar = float;
  using Reg = __m256;
  static constexpr int width = 8;
  static inline Reg broadcast(Scalar a) { return _mm256_set1_ps(a); }
  static inline Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static inline void store(float* p, Reg a) { _mm256_storeu_ps(p, a); }
};

template <>
struct Lanes<double> {
  using Scalar = double;
  using Reg = __m256d;
  static constexpr int width = 4;
  static inline Reg broadcast(Scalar a) { return _mm256_set1_pd(a); }
  static inline Reg load(const double* p) { return _mm256_loadu_pd(p); }
  static inline void store(double* p, Reg a) { _mm256_storeu_pd(p, a); }
};

template <>
struct Lanes<BFloat16> : Lanes<float> {
  static inline Reg load(const BFloat16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static inline void store(BFloat16* p, Reg a) {
    const __m256i u = _mm256_castps_si256(a);
    const __m256i last = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    const __m256i r = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1)));
  }
};

template <>
struct Lanes<Float16> : Lanes<float> {
  static inline Reg load(const Float16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static inline void store(Float16* p, Reg a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
};

#else  // AVX-512

template <>
struct Lanes<float> {
  using Scalar = float;
  using Reg = __m512;
  static constexpr int width = 16;
  static inline Reg broadcast(Scalar a) { return _mm512_set1_ps(a); }
  static inline Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static inline void store(float* p, Reg a) { _mm512_storeu_ps(p, a); }
};

template <>
struct Lanes<double> {
  using Scalar = double;
  using Reg = __m512d;
  static constexpr int width = 8;
  static inline Reg broadcast(Scalar a) { return _mm512_set1_pd(a); }
  static inline Reg load(const double* p) { return _mm512_loadu_pd(p); }
  static inline void store(double* p, Reg a) { _mm512_storeu_pd(p, a); }
};

template <>
struct Lanes<BFloat16> : Lanes<float> {
  static inline Reg load(const BFloat16* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static inline __m256i round(Reg a) {
    const __m512i u = _mm512_castps_si512(a);
    const __m512i last = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    const __m512i r = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
  }
  static inline void store(BFloat16* p, Reg a) {
#if MS_SIMD == 3
    // VCVTNEPS2BF16 takes denormals for zero, whatever MXCSR says: only a register with one of them goes the
    // long way.
    constexpr int kDenormal = 0x20;
    const __m256i r = __builtin_expect(_mm512_fpclass_ps_mask(a, kDenormal) == 0, 1)
                          ? reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a))
                          : round(a);
#else
    const __m256i r = round(a);
#endif
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), r);
  }
};

template <>
struct Lanes<Float16> : Lanes<float> {
  static inline Reg load(const Float16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static inline void store(Float16* p, Reg a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
};

#endif
#endif

// The end of a row: fewer than `width` numbers, through a register's worth of stack.
template <class S>
inline typename Lanes<S>::Reg load_some(const S* p, std::int64_t count) {
  S buffer[Lanes<S>::width] = {};
  std::memcpy(buffer, p, static_cast<std::size_t>(count) * sizeof(S));
  return Lanes<S>::load(buffer);
}

template <class S>
inline void store_some(S* p, typename Lanes<S>::Reg a, std::int64_t count) {
  S buffer[Lanes<S>::width];
  Lanes<S>::store(buffer, a);
  std::memcpy(p, buffer, static_cast<std::size_t>(count) * sizeof(S));
}
