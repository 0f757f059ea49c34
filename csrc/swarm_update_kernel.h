// The columns [begin, end) of the swarm update for every particle. Compiled once a SIMD level; see
// each_simd_level.h.

#include "noise.h"

template <class S>
struct Coefficients {
  typename Lanes<S>::Reg inertia, cognitive, social, repel, step_length;

  Coefficients(const float* c, double step)
      : inertia(cast(c[0])),
        cognitive(cast(c[1])),
        social(cast(c[2])),
        repel(cast(c[3])),
        step_length(cast(step)) {}

  template <class T>
  static inline typename Lanes<S>::Reg cast(T a) {
    return Lanes<S>::broadcast(static_cast<typename Lanes<S>::Scalar>(a));
  }
};

// The same number in every column, or one for each.
template <class A, class Pair>
inline Pair weighted_sum(const A& inertia, const A& cognitive, const A& social, const A& repel, const Pair& x,
                         const Pair& v, const Pair& p, const Pair& g, const Pair& w) {
  return inertia * v + cognitive * (p - x) + social * (g - x) + repel * (x - w);
}

// One pair of columns: v' and x' in storage bits.
template <class S, bool kStochastic, bool kCoordinate>
struct Step {
  using L = Lanes<S>;
  using Pair = typename L::Pair;
  struct Moved {
    typename L::Stored velocity, position;
  };
  const Coefficients<S> c;
  const Stream rounding, coordinate;

  inline Moved operator()(const Pair& x, const Pair& v, const Pair& p, const Pair& g, const Pair& w,
                          std::int64_t column) const {
    Pair velocity;
    if constexpr (kCoordinate) {
      const Uniforms<S> draws = uniforms<S>(coordinate, column);
      const Pair inertia = c.inertia * draws.r[0], cognitive = c.cognitive * draws.r[1];
      const Pair social = c.social * draws.r[2], repel = c.repel * draws.r[3];
      velocity = weighted_sum(inertia, cognitive, social, repel, x, v, p, g, w) /
                 (inertia + cognitive + social + repel);
    } else {
      velocity = weighted_sum(c.inertia, c.cognitive, c.social, c.repel, x, v, p, g, w);
    }
    const Pair position = x + c.step_length * velocity;
    if constexpr (kStochastic) {
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
  const S *x, *v, *p;
  S *x_out, *v_out;

  Addresses(const SwarmUpdate& args, const Rows& rows, std::int64_t begin) {
    // What a restarted particle's velocity is read from: it stays in the first cache.
    alignas(64) static const S zeros[kBlockBytes / sizeof(S)] = {};
    S* position = static_cast<S*>(args.position) + begin;
    S* velocity = static_cast<S*>(args.velocity) + begin;
    x = position + rows.x_in * args.position_stride;
    x_out = position + rows.x_out * args.position_stride;
    v = rows.v_in < 0 ? zeros : velocity + rows.v_in * args.velocity_stride;
    v_out = velocity + rows.v_out * args.velocity_stride;
    p = static_cast<const S*>(args.personal_best) + begin + rows.p * args.personal_best_stride;
  }
};

// Whole pairs from column d on, up to `stop`; returns where it ended. `ahead` is what will be read later:
// column d of this call belongs to column d of that.
template <class S, bool kStreamX, bool kStreamV, class Step>
inline std::int64_t move_pairs(const Step& given, const Addresses<S>& rows, const S* g, const S* w,
                               const S* x_ahead, const S* v_ahead, const S* p_ahead, std::int64_t d,
                               std::int64_t stop, std::int64_t first) {
  using L = Lanes<S>;
  // Copies: a store could change what is reached through a reference, and it would be loaded again every
  // time.
  const Step step = given;
  const Addresses<S> at = rows;
  for (; d + L::columns <= stop; d += L::columns) {
    prefetch<S, 1>(x_ahead + d);
    prefetch<S, 1>(v_ahead + d);
    prefetch<S, 1>(p_ahead + d);
    const auto moved = step(L::load(at.x + d), L::load(at.v + d), L::load(at.p + d), L::load(g + d),
                            L::load(w + d), first + d);
    if constexpr (kStreamV) {
      L::stream(at.v_out + d, moved.velocity);
    } else {
      L::store(at.v_out + d, moved.velocity);
    }
    if constexpr (kStreamX) {
      L::stream(at.x_out + d, moved.position);
    } else {
      L::store(at.x_out + d, moved.position);
    }
  }
  return d;
}

// The block of one particle. Prefetching runs ahead of it and, at its end, into the block that comes next:
// what the hardware does by itself starts anew with every row.
template <class S, bool kStreamX, bool kStreamV, class Step>
void move_block(const Step& step, Addresses<S> at, const Addresses<S>& next, const S* g, const S* w,
                std::int64_t count, std::int64_t first) {
  constexpr std::int64_t kColumns = Lanes<S>::columns;
  const std::int64_t whole = count / kColumns * kColumns;
  const std::int64_t ahead =
      std::min<std::int64_t>(whole, kAheadBytes / static_cast<std::int64_t>(sizeof(S)));
  std::int64_t d = move_pairs<S, kStreamX, kStreamV>(step, at, g, w, at.x + ahead, at.v + ahead, at.p + ahead,
                                                     0, whole - ahead, first);
  const std::int64_t back = whole - ahead;
  d = move_pairs<S, kStreamX, kStreamV>(step, at, g, w, next.x - back, next.v - back, next.p - back, d, whole,
                                        first);
  if (const std::int64_t n = count - d) {
    const auto moved = step(load_some(at.x + d, n), load_some(at.v + d, n), load_some(at.p + d, n),
                            load_some(g + d, n), load_some(w + d, n), first + d);
    store_some(at.v_out + d, moved.velocity, n);
    store_some(at.x_out + d, moved.position, n);
  }
}

template <class S, bool kStochastic, bool kCoordinate>
void swarm_update_columns(const SwarmUpdate& args, std::int64_t begin, std::int64_t end) {
  const S* g = static_cast<const S*>(args.global_best) + begin;
  const S* w = static_cast<const S*>(args.global_worst) + begin;
  for (std::int64_t i = 0; i < args.particles; ++i) {
    const bool last = i + 1 == args.particles;
    const Rows rows = rows_of(args, i);
    const Addresses<S> at(args, rows, begin), next(args, rows_of(args, last ? 0 : i + 1), last ? end : begin);
    const Step<S, kStochastic, kCoordinate> step{
        {args.coefficients + 4 * i, args.step_length}, {args, i, 0}, {args, i, 1}};
    // A line that is not read must not be read in order to be written.
    const bool stream_x = args.stream && rows.x_out != rows.x_in, stream_v = args.stream && rows.v_in < 0;
    const auto move = stream_x && stream_v ? move_block<S, true, true, decltype(step)>
                      : stream_x           ? move_block<S, true, false, decltype(step)>
                      : stream_v           ? move_block<S, false, true, decltype(step)>
                                           : move_block<S, false, false, decltype(step)>;
    move(step, at, next, g, w, end - begin, args.first_column + begin);
  }
  if (args.stream) end_streaming();
}

template <class S>
SwarmUpdateColumns swarm_update_columns_as(bool stochastic, bool coordinate) {
  if constexpr (sizeof(S) == 2) {
    if (stochastic)
      return coordinate ? swarm_update_columns<S, true, true> : swarm_update_columns<S, true, false>;
  }
  return coordinate ? swarm_update_columns<S, false, true> : swarm_update_columns<S, false, false>;
}

SwarmUpdateColumns swarm_update_columns_of(const SwarmUpdate& args) {
  switch (args.dtype) {
    case DType::float32:
      return swarm_update_columns_as<float>(args.stochastic, args.coordinate);
    case DType::bfloat16:
      return swarm_update_columns_as<BFloat16>(args.stochastic, args.coordinate);
    case DType::float16:
      return swarm_update_columns_as<Float16>(args.stochastic, args.coordinate);
    case DType::float64:
      return swarm_update_columns_as<double>(args.stochastic, args.coordinate);
  }
  return nullptr;
}
