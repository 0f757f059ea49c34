#include "mix.h"

#include <type_traits>
#include <utility>

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

void mix(const Mix& given) {
  Mix args = given;
  MS_CHECK(args.particles >= 0 && args.count >= 0 && args.size >= 0,
           "particles, count and size must not be negative");
  const std::int64_t row = itemsize(args.dtype);
  const std::int64_t moved = times(times(plus(args.particles, args.count), args.size), row);
  args.stream = worth_streaming(args.particles * args.size * row) &&
                aligned(args.out, args.particles > 1 ? times(args.out_stride, row) : 0);
  const MixColumns columns = MS_PICK(mix_columns_of)(args);
  MS_CHECK(columns != nullptr, "unknown dtype code");
  for_sections(args.size, moved, [&](std::int64_t begin, std::int64_t end) { columns(args, begin, end); });
}

}  // namespace modelswarms
