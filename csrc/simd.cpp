#include "simd.h"

#include <atomic>

#include "check.h"

namespace modelswarms {
namespace {

const char* const kNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};

Simd best_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Simd::avx512_bf16;
  if (avx512) return Simd::avx512;
  if (avx2) return Simd::avx2;
#endif
  return Simd::portable;
}

std::atomic<Simd>& level() {
  static std::atomic<Simd> value{best_level()};
  return value;
}

}  // namespace

std::vector<std::string> simd_levels() { return {kNames, kNames + static_cast<int>(best_level()) + 1}; }

Simd simd() { return level().load(std::memory_order_relaxed); }

std::string simd_level() { return kNames[static_cast<int>(simd())]; }

void set_simd_level(const std::string& name) {
  for (int i = 0; i <= static_cast<int>(best_level()); ++i) {
    if (name == kNames[i]) {
      level().store(static_cast<Simd>(i));
      return;
    }
  }
  MS_CHECK(false, "SIMD level '" + name + "' does not exist or cannot run on this machine");
}

}  // namespace modelswarms
