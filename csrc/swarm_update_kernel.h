// The columns [begin, end) of the swarm update for every particle. Compiled once a SIMD level; see
// each_simd_level.h.

#include "noise.h"

// Numbers, not registers: four particles at a time leave no room for more, and an instruction takes such a
// number from memory to all its lanes for free.
template <class S>
struct Coefficients {
  typename Lanes<S>::Scalar inertia, cognitive, social, repel, step_length;

  Coefficients(const float* c, double step)
      : inertia(c[0]),
        cognitive(c[1]),
        social(c[2]),
        repel(c[3]),
        step_length(static_cast<typename Lanes<S>::Scalar>(step)) {}
};

// The same number in every column, or one for each.
template <class A, class Pair>
inline Pair weighted_sum(const A& inertia, const A& cognitive, const A& social, const A& repel, const Pair& x,
                         const Pair& v, const Pair& p, const Pair& g, const Pair& w) {
  return inertia * v + cognitive * (p - x) + social * (g - x) + repel * (x - w);
}

// The same, every difference, product and sum rounded to storage.
template <class S, class A, class Pair>
inline Pair weighted_sum_in_storage(const A& inertia, const A& cognitive, const A& social, const A& repel,
                                    const Pair& x, const Pair& v, const Pair& p, const Pair& g,
                                    const Pair& w) {
  const auto stored = [](const Pair& a) __attribute__((always_inline)) { return Lanes<S>::in_storage(a); };
  const Pair one = stored(stored(inertia * v) + stored(cognitive * stored(p - x)));
  const Pair two = stored(one + stored(social * stored(g - x)));
  return stored(two + stored(repel * stored(x - w)));
}

// One pair of columns: v' and x' in storage bits.
template <class S, Rounding kRounding, bool kCoordinate>
struct Step {
  using L = Lanes<S>;
  using Pair = typename L::Pair;
  struct Moved {
    typename L::Stored velocity, position;
  };
  const Coefficients<S> c;
  const Stream rounding, coordinate;

  inline __attribute__((always_inline)) Moved operator()(const Pair& x, const Pair& v, const Pair& p,
                                                         const Pair& g, const Pair& w,
                                                         std::int64_t column) const {
    const auto inertia = L::broadcast(c.inertia), cognitive = L::broadcast(c.cognitive);
    const auto social = L::broadcast(c.social), repel = L::broadcast(c.repel);
    Pair velocity;
    if constexpr (kRounding == Rounding::published) {
      velocity = weighted_sum_in_storage<S>(inertia, cognitive, social, repel, x, v, p, g, w);
      const Pair step = L::in_storage(L::broadcast(c.step_length) * velocity);
      return {L::bits(velocity), L::bits(x + step)};
    }
    if constexpr (kCoordinate) {
      const Uniforms<S> draws = uniforms<S>(coordinate, column);
      const Pair a = inertia * draws.r[0], b = cognitive * draws.r[1];
      const Pair c = social * draws.r[2], d = repel * draws.r[3];
      velocity = weighted_sum(a, b, c, d, x, v, p, g, w) / (a + b + c + d);
    } else {
      velocity = weighted_sum(inertia, cognitive, social, repel, x, v, p, g, w);
    }
    const Pair position = x + L::broadcast(c.step_length) * velocity;
    if constexpr (kRounding == Rounding::stochastic) {
      const Two<Word> noise = rounding_noise<S>(rounding, column);
      return {stochastic_bits<S>(velocity, {noise.a & 0xffff, noise.b & 0xffff}),
              stochastic_bits<S>(position, {noise.a >> 16, noise.b >> 16})};
    } else {
      return {L::bits(velocity), L::bits(position)};
    }
  }
};

// Where one particle's rows are, from column `begin` on.
template <class S>
struct Addresses {
  const S *x, *v, *p;  // v null: the velocity is 0
  S *x_out, *v_out;
  bool stream_x, stream_v;  // a line that is not read must not be read in order to be written

  Addresses(const SwarmUpdate& args, std::int64_t particle, std::int64_t begin) {
    const Rows rows = rows_of(args, particle);
    S* position = static_cast<S*>(args.position) + begin;
    S* velocity = static_cast<S*>(args.velocity) + begin;
    x = position + rows.x_in * args.position_stride;
    x_out = position + rows.x_out * args.position_stride;
    v = rows.v_in < 0 ? nullptr : velocity + rows.v_in * args.velocity_stride;
    v_out = velocity + rows.v_out * args.velocity_stride;
    p = static_cast<const S*>(args.personal_best) + begin + rows.p * args.personal_best_stride;
    stream_x = args.stream && rows.x_out != rows.x_in;
    stream_v = args.stream && rows.v_in < 0;
  }
};

template <class L, class S>
inline void put(S* address, const typename L::Stored& bits, bool past_caches) {
  if (past_caches) {
    L::stream(address, bits);
  } else {
    L::store(address, bits);
  }
}

// `count` columns of some particles, a few lines of each in turn: so many rows at a time keep more lines
// under way than one after the other, and what is read of g and w stays in the first cache for all of them.
// Every particle has its own loop, since the processor tells the rows that it reads ahead by the instructions
// that read them.
template <class S, class Step, std::size_t... k>
void move_together(const Step* given, const SwarmUpdate& args, std::int64_t particle, const S* g, const S* w,
                   std::int64_t begin, std::int64_t count, std::index_sequence<k...>) {
  using L = Lanes<S>;
  using Pair = typename L::Pair;
  // 512 bytes of each row in turn in half types, 256 in others: measured in docs/log.md.
  constexpr std::int64_t kTurn = sizeof(S) == 2 ? 256 : 256 / sizeof(S);
  static_assert(kTurn % L::columns == 0, "a turn is of whole steps");
  // Copies: a store could change what is reached through a reference, and it would be loaded again every
  // time.
  const Step steps[] = {given[k]...};
  const Addresses<S> rows[] = {Addresses<S>(args, particle + static_cast<std::int64_t>(k), begin)...};
  const Pair zero{L::broadcast(0), L::broadcast(0)};
  const std::int64_t first = args.first_column + begin, whole = count / L::columns * L::columns;
  for (std::int64_t turn = 0, stop; turn < whole; turn = stop) {
    stop = std::min(whole, turn + kTurn);
    const auto move = [&](const Step& step, const Addresses<S> at) __attribute__((always_inline)) {
      for (std::int64_t d = turn; d < stop; d += L::columns) {
        const auto moved = step(L::load(at.x + d), at.v == nullptr ? zero : L::load(at.v + d),
                                L::load(at.p + d), L::load(g + d), L::load(w + d), first + d);
        put<L>(at.v_out + d, moved.velocity, at.stream_v);
        put<L>(at.x_out + d, moved.position, at.stream_x);
      }
    };
    (move(steps[k], rows[k]), ...);
  }
  if (const std::int64_t n = count - whole) {
    const std::int64_t d = whole;
    const auto move = [&](const Step& step, const Addresses<S>& at) {
      const auto moved = step(load_some(at.x + d, n), at.v == nullptr ? zero : load_some(at.v + d, n),
                              load_some(at.p + d, n), load_some(g + d, n), load_some(w + d, n), first + d);
      store_some(at.v_out + d, moved.velocity, n);
      store_some(at.x_out + d, moved.position, n);
    };
    (move(steps[k], rows[k]), ...);
  }
}

// At a multiple of 512: the hardware tells streams apart by some bits of the addresses of the instructions
// that read them. Wherever bit 8 of this function's address was set, the float32 loops of a group took 0.86
// instead of 0.94 of the limit (docs/log.md).
template <class S, Rounding kRounding, bool kCoordinate>
__attribute__((aligned(512))) void swarm_update_columns(const SwarmUpdate& args, std::int64_t begin,
                                                        std::int64_t end) {
  // Random numbers and roundings are arithmetic, which one particle has enough of.
  constexpr bool kPlain = kRounding == Rounding::nearest && !kCoordinate;
  constexpr std::int64_t kTogether = kPlain ? kParticlesTogether : 1;
  constexpr std::int64_t kColumns = kBlockBytes / static_cast<std::int64_t>(sizeof(S));
  using Step = Step<S, kRounding, kCoordinate>;
  // As even as can be: ten particles are 4, 3 and 3, not 4, 4 and 2.
  const std::int64_t groups = args.one_by_one ? args.particles : (args.particles + kTogether - 1) / kTogether;
  for (std::int64_t stop; begin < end; begin = stop) {
    stop = std::min(end, begin + kColumns);
    const S* g = static_cast<const S*>(args.global_best) + begin;
    const S* w = static_cast<const S*>(args.global_worst) + begin;
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t i = args.particles * group / groups;
      const std::int64_t together = args.particles * (group + 1) / groups - i;
      const auto step = [&](std::int64_t k) -> Step {
        return {{args.coefficients + 4 * (i + k), args.step_length}, {args, i + k, 0}, {args, i + k, 1}};
      };
      const auto move = [&](auto... k) {
        const Step steps[] = {step(k)...};
        move_together(steps, args, i, g, w, begin, stop - begin, std::make_index_sequence<sizeof...(k)>());
      };
      if (together == 1) move(0);
      if constexpr (kTogether > 1) {
        if (together == 2) move(0, 1);
        if (together == 3) move(0, 1, 2);
        if (together == 4) move(0, 1, 2, 3);
      }
    }
  }
  if (args.stream) end_streaming();
}

template <class S>
SwarmUpdateColumns swarm_update_columns_as(Rounding rounding, bool coordinate) {
  if constexpr (sizeof(S) == 2) {  // of the others storage is the arithmetic's type
    if (rounding == Rounding::published) return swarm_update_columns<S, Rounding::published, false>;
    if (rounding == Rounding::stochastic) {
      return coordinate ? swarm_update_columns<S, Rounding::stochastic, true>
                        : swarm_update_columns<S, Rounding::stochastic, false>;
    }
  }
  return coordinate ? swarm_update_columns<S, Rounding::nearest, true>
                    : swarm_update_columns<S, Rounding::nearest, false>;
}

SwarmUpdateColumns swarm_update_columns_of(const SwarmUpdate& args) {
  switch (args.dtype) {
    case DType::float32:
      return swarm_update_columns_as<float>(args.rounding, args.coordinate);
    case DType::bfloat16:
      return swarm_update_columns_as<BFloat16>(args.rounding, args.coordinate);
    case DType::float16:
      return swarm_update_columns_as<Float16>(args.rounding, args.coordinate);
    case DType::float64:
      return swarm_update_columns_as<double>(args.rounding, args.coordinate);
  }
  return nullptr;
}
