// The columns [begin, end) of the mix for every particle. Compiled once a SIMD level; see each_simd_level.h.

// R particles share every expert register that is loaded, two registers of columns at a time.
template <class S, int R>
void mix_rows(const Mix& args, std::int64_t first, std::int64_t begin, std::int64_t end) {
  using L = Lanes<S>;
  using Reg = typename L::Reg;
  using Scalar = typename L::Scalar;
  const S* __restrict experts = static_cast<const S*>(args.experts);
  const Scalar* __restrict mixture = static_cast<const Scalar*>(args.mixture) + first * args.count;
  S* __restrict out = static_cast<S*>(args.out) + first * args.out_stride;
  std::int64_t d = begin;
  for (; d + 2 * L::width <= end; d += 2 * L::width) {
    Reg low[R], high[R];
    for (int r = 0; r < R; ++r) low[r] = high[r] = L::broadcast(0);
    for (std::int64_t j = 0; j < args.count; ++j) {
      const S* e = experts + j * args.experts_stride + d;
      const Reg e_low = L::load(e), e_high = L::load(e + L::width);
      for (int r = 0; r < R; ++r) {
        const Reg m = L::broadcast(mixture[r * args.count + j]);
        low[r] = low[r] + m * e_low;
        high[r] = high[r] + m * e_high;
      }
    }
    for (int r = 0; r < R; ++r) {
      L::store(out + r * args.out_stride + d, low[r]);
      L::store(out + r * args.out_stride + d + L::width, high[r]);
    }
  }
  while (d < end) {
    const std::int64_t some = end - d < L::width ? end - d : L::width;
    for (int r = 0; r < R; ++r) {
      Reg sum = L::broadcast(0);
      for (std::int64_t j = 0; j < args.count; ++j)
        sum = sum + L::broadcast(mixture[r * args.count + j]) *
                        load_some(experts + j * args.experts_stride + d, some);
      store_some(out + r * args.out_stride + d, sum, some);
    }
    d += some;
  }
}

template <class S>
void mix_columns(const Mix& args, std::int64_t begin, std::int64_t end) {
  std::int64_t i = 0;
  for (; i + 4 <= args.particles; i += 4) mix_rows<S, 4>(args, i, begin, end);
  for (; i + 2 <= args.particles; i += 2) mix_rows<S, 2>(args, i, begin, end);
  if (i < args.particles) mix_rows<S, 1>(args, i, begin, end);
}

MixColumns mix_columns_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return mix_columns<float>;
    case DType::bfloat16:
      return mix_columns<BFloat16>;
    case DType::float16:
      return mix_columns<Float16>;
    case DType::float64:
      return mix_columns<double>;
  }
  return nullptr;
}
