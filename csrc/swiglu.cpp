#include "swiglu.h"

#include <type_traits>
#include <utility>

#include "bits.h"
#include "check.h"
#include "columns.h"
#include "simd.h"

namespace modelswarms {
namespace {

using SwigluColumns = void (*)(const Swiglu&, std::int64_t begin, std::int64_t end);

#define MS_KERNEL "swiglu_kernel.h"
#include "each_simd_level.h"

}  // namespace

void swiglu(const Swiglu& args) {
  MS_CHECK(args.rows >= 0 && args.width > 0, "rows must not be negative, and the width is at least 1");
  const SwigluColumns columns = MS_PICK(swiglu_columns_of)(args.dtype);
  MS_CHECK(columns != nullptr, "the dtype must be float32, bfloat16 or float16");
  const std::int64_t all = times(args.rows, args.width);
  for_sections(all, times(all, 3 * itemsize(args.dtype)),
               [&](std::int64_t begin, std::int64_t end) { columns(args, begin, end); });
}

}  // namespace modelswarms
