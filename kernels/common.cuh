// What both kernels share: packs of 16 bytes, conversions, arithmetic that is never contracted, the launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include <type_traits>

#include "philox.cuh"

namespace modelswarms {

// COUNT numbers that move in one instruction: 16 bytes on the fast path, one number on the other.
template <typename T, int COUNT>
struct alignas(sizeof(T) * COUNT) Pack {
  T at[COUNT];
};

template <typename T>
constexpr int kPack = 16 / sizeof(T);

__device__ __forceinline__ float to_float(float a) { return a; }
__device__ __forceinline__ float to_float(__nv_bfloat16 a) { return __bfloat162float(a); }
__device__ __forceinline__ float to_float(__half a) { return __half2float(a); }

template <typename T>
__device__ __forceinline__ T rounded(float a);
template <>
__device__ __forceinline__ float rounded<float>(float a) {
  return a;
}
template <>
__device__ __forceinline__ __nv_bfloat16 rounded<__nv_bfloat16>(float a) {
  return __float2bfloat16_rn(a);
}
template <>
__device__ __forceinline__ __half rounded<__half>(float a) {
  return __float2half_rn(a);
}

// Up or down, as the lower 16 bits of `noise` say. float32 rows are kept whole and never come here.
template <typename T>
__device__ __forceinline__ T rounded_stochastically(float a, uint32_t noise) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return stochastic_bfloat16(a, noise);
  else
    return stochastic_float16(a, noise);
}

// The compiler may not fuse these into a multiply-add, so that the bits are those of the reference.
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float subtract(float a, float b) { return __fsub_rn(a, b); }
__device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float divide(float a, float b) { return __fdiv_rn(a, b); }

// What an instruction loads. A pack that may come from two places is chosen as such, before it is taken
// apart.
template <typename T, int COUNT>
using Raw = std::conditional_t<sizeof(T) * COUNT == 16, uint4, T>;

// Rows that are read or written once pass through the caches as streams; `load` keeps what is read again.
template <typename T, int COUNT>
__device__ __forceinline__ Raw<T, COUNT> load(const T* address) {
  return *reinterpret_cast<const Raw<T, COUNT>*>(address);
}

template <typename T, int COUNT>
__device__ __forceinline__ Raw<T, COUNT> load_once(const T* address) {
  if constexpr (sizeof(T) * COUNT == 16)
    return __ldcs(reinterpret_cast<const uint4*>(address));
  else
    return load<T, COUNT>(address);
}

// Number k of a pack, known when the kernel is compiled. bfloat16 is the upper half of a float32: one
// instruction, where the conversion of each number on its own takes two for every second one.
template <typename T, int COUNT>
__device__ __forceinline__ float number(const Raw<T, COUNT>& raw, int k) {
  if constexpr (COUNT > 1 && std::is_same_v<T, __nv_bfloat16>) {
    const uint32_t word = reinterpret_cast<const uint32_t*>(&raw)[k / 2];
    return __uint_as_float(k % 2 == 0 ? word << 16 : word & 0xFFFF0000);
  } else {
    return to_float(reinterpret_cast<const T*>(&raw)[k]);
  }
}

template <typename T, int COUNT>
__device__ __forceinline__ void store_once(T* address, const Pack<T, COUNT>& pack) {
  if constexpr (sizeof(T) * COUNT == 16) {
    __stcs(reinterpret_cast<uint4*>(address), *reinterpret_cast<const uint4*>(&pack));
  } else {
    *reinterpret_cast<Pack<T, COUNT>*>(address) = pack;
  }
}

// A row matrix starts and continues at multiples of 16 bytes. A single row needs no stride.
inline bool aligned(const void* rows, int64_t stride, int64_t count, int64_t itemsize) {
  return reinterpret_cast<uintptr_t>(rows) % 16 == 0 && (count <= 1 || stride * itemsize % 16 == 0);
}

constexpr int kThreads = 256;

// Run a kernel on `packs` packs of columns from `begin` on: one thread a pack, past 2^20 blocks several.
template <typename Args>
void launch_on_packs(void (*kernel)(Args, int64_t, int64_t), const Args& args, int64_t begin, int64_t packs,
                     cudaStream_t stream) {
  if (packs == 0) return;
  const int64_t blocks = (packs + kThreads - 1) / kThreads;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks < (1 << 20) ? blocks : (1 << 20)));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  cudaLaunchKernelEx(&config, kernel, args, begin, packs);
}

}  // namespace modelswarms
