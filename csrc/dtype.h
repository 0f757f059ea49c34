// Storage types of a row. The codes are shared with modelswarms_fast/ops and kernels/launchers.h.
#pragma once

#include <cstdint>

namespace modelswarms {

enum class DType : int { float32 = 0, bfloat16 = 1, float16 = 2, float64 = 3 };

struct BFloat16 {
  std::uint16_t bits;
};

struct Float16 {
  std::uint16_t bits;
};

inline std::int64_t itemsize(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

}  // namespace modelswarms
