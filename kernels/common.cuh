// What both kernels share: packs of 16 bytes, conversions, and arithmetic that is never contracted.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

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

// The compiler may not fuse these into a multiply-add, so that the bits are those of the reference.
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float subtract(float a, float b) { return __fsub_rn(a, b); }
__device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }

// Rows that are read or written once pass through the caches as streams; `load` keeps what is read again.
template <typename T, int COUNT>
__device__ __forceinline__ Pack<T, COUNT> load(const T* address) {
  return *reinterpret_cast<const Pack<T, COUNT>*>(address);
}

template <typename T, int COUNT>
__device__ __forceinline__ Pack<T, COUNT> load_once(const T* address) {
  if constexpr (sizeof(T) * COUNT == 16) {
    const uint4 raw = __ldcs(reinterpret_cast<const uint4*>(address));
    return *reinterpret_cast<const Pack<T, COUNT>*>(&raw);
  } else {
    return load<T, COUNT>(address);
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

// One thread a pack; past this many blocks each thread takes several.
inline unsigned grid(int64_t packs) {
  const int64_t blocks = (packs + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < (1 << 20) ? blocks : (1 << 20));
}

}  // namespace modelswarms
