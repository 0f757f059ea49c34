// The columns [begin, end) of the swarm update for every particle. Compiled once a SIMD level; see
// each_simd_level.h.

template <class S>
struct SwarmStep {
  using L = Lanes<S>;
  using Reg = typename L::Reg;
  Reg inertia, cognitive, social, repel, step_length;

  inline Reg velocity(Reg x, Reg v, Reg p, Reg g, Reg w) const {
    return inertia * v + cognitive * (p - x) + social * (g - x) + repel * (x - w);
  }
};

template <class S>
void swarm_update_columns(const SwarmUpdate& args, std::int64_t begin, std::int64_t end) {
  using L = Lanes<S>;
  using Scalar = typename L::Scalar;
  const S* __restrict g = static_cast<const S*>(args.global_best);
  const S* __restrict w = static_cast<const S*>(args.global_worst);
  for (std::int64_t i = 0; i < args.particles; ++i) {
    S* __restrict x = static_cast<S*>(args.position) + i * args.position_stride;
    S* __restrict v = static_cast<S*>(args.velocity) + i * args.velocity_stride;
    const S* __restrict p = static_cast<const S*>(args.personal_best) + i * args.personal_best_stride;
    const float* c = args.coefficients + 4 * i;
    const SwarmStep<S> step{L::broadcast(static_cast<Scalar>(c[0])), L::broadcast(static_cast<Scalar>(c[1])),
                            L::broadcast(static_cast<Scalar>(c[2])), L::broadcast(static_cast<Scalar>(c[3])),
                            L::broadcast(static_cast<Scalar>(args.step_length))};
    std::int64_t d = begin;
    for (; d + L::width <= end; d += L::width) {
      const auto position = L::load(x + d);
      const auto velocity =
          step.velocity(position, L::load(v + d), L::load(p + d), L::load(g + d), L::load(w + d));
      L::store(v + d, velocity);
      L::store(x + d, position + step.step_length * velocity);
    }
    if (const std::int64_t rest = end - d) {
      const auto position = load_some(x + d, rest);
      const auto velocity = step.velocity(position, load_some(v + d, rest), load_some(p + d, rest),
                                          load_some(g + d, rest), load_some(w + d, rest));
      store_some(v + d, velocity, rest);
      store_some(x + d, position + step.step_length * velocity, rest);
    }
  }
}

SwarmUpdateColumns swarm_update_columns_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return swarm_update_columns<float>;
    case DType::bfloat16:
      return swarm_update_columns<BFloat16>;
    case DType::float16:
      return swarm_update_columns<Float16>;
    case DType::float64:
      return swarm_update_columns<double>;
  }
  return nullptr;
}
