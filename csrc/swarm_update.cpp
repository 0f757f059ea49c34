#include "swarm_update.h"

#include <type_traits>
#include <utility>

#include "bits.h"
#include "check.h"
#include "columns.h"
#include "simd.h"

namespace modelswarms {
namespace {

using SwarmUpdateColumns = void (*)(const SwarmUpdate&, std::int64_t begin, std::int64_t end);

// Row numbers of one particle, each counted from its own base. v_in below 0: the velocity is 0.
struct Rows {
  std::int64_t x_in, x_out, v_in, v_out, p;
};

inline Rows rows_of(const SwarmUpdate& args, std::int64_t i) {
  if (args.table == nullptr) return {i, i, i, i, i};
  const std::int64_t* line = args.table + 5 * i;
  return {line[0], line[1], line[2], line[3], line[4]};
}

#define MS_KERNEL "swarm_update_kernel.h"
#include "each_simd_level.h"

}  // namespace

void swarm_update(const SwarmUpdate& given) {
  SwarmUpdate args = given;
  MS_CHECK(args.particles >= 0 && args.size >= 0, "particles and size must not be negative");
  MS_CHECK(args.rounding >= Rounding::nearest && args.rounding <= Rounding::published,
           "unknown code of a rounding");
  MS_CHECK(args.rounding != Rounding::stochastic || itemsize(args.dtype) == 2,
           "only half types are rounded stochastically");
  MS_CHECK(args.rounding != Rounding::published || !args.coordinate,
           "published rounding draws nothing for a coordinate");
  const SwarmUpdateColumns columns = MS_PICK(swarm_update_columns_of)(args);
  MS_CHECK(columns != nullptr, "unknown dtype code");
  const std::int64_t row = itemsize(args.dtype);
  const std::int64_t moved = times(times(args.particles, args.size), 3 * row);
  args.stream = worth_streaming(moved) && aligned(args.position, args.position_stride * row) &&
                aligned(args.velocity, args.velocity_stride * row);
  // Rows that lie a multiple of a page apart keep each other out of the first cache, the more of them the
  // worse.
  args.one_by_one = args.position_stride * row % 4096 == 0 || args.velocity_stride * row % 4096 == 0;
  for_sections(args.size, moved, [&](std::int64_t begin, std::int64_t end) { columns(args, begin, end); });
}

}  // namespace modelswarms
