#include "swarm_update.h"

#include "bits.h"
#include "check.h"
#include "columns.h"
#include "simd.h"

namespace modelswarms {
namespace {

using SwarmUpdateColumns = void (*)(const SwarmUpdate&, std::int64_t begin, std::int64_t end);

#define MS_KERNEL "swarm_update_kernel.h"
#include "each_simd_level.h"

}  // namespace

void swarm_update(const SwarmUpdate& args) {
  MS_CHECK(args.particles >= 0 && args.size >= 0, "particles and size must not be negative");
  const SwarmUpdateColumns columns = MS_PICK(swarm_update_columns_of)(args.dtype);
  MS_CHECK(columns != nullptr, "unknown dtype code");
  for_column_blocks(args.size, itemsize(args.dtype), 3 * args.particles,
                    [&](std::int64_t begin, std::int64_t end) { columns(args, begin, end); });
}

}  // namespace modelswarms
