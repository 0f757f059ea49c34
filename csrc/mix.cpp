#include "mix.h"

#include "bits.h"
#include "check.h"
#include "columns.h"
#include "simd.h"

namespace modelswarms {
namespace {

using MixColumns = void (*)(const Mix&, std::int64_t begin, std::int64_t end);

#define MS_KERNEL "mix_kernel.h"
#include "each_simd_level.h"

}  // namespace

void mix(const Mix& args) {
  MS_CHECK(args.particles >= 0 && args.count >= 0 && args.size >= 0,
           "particles, count and size must not be negative");
  const MixColumns columns = MS_PICK(mix_columns_of)(args.dtype);
  MS_CHECK(columns != nullptr, "unknown dtype code");
  for_column_blocks(args.size, itemsize(args.dtype), args.particles + args.count,
                    [&](std::int64_t begin, std::int64_t end) { columns(args, begin, end); });
}

}  // namespace modelswarms
