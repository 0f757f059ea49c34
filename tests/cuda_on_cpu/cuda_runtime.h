// As much of CUDA as the kernels use, in plain C++: a launch is a loop over blocks and threads. This runs the
// source of the kernels where there is no GPU; it says nothing about what nvcc makes of it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned count) : x(count) {}
};
inline dim3 gridDim, blockDim, blockIdx, threadIdx;

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

// Rows of 16 bytes a pack are read through this: the tests count what they cost.
inline std::int64_t bytes_read_once = 0;
template <typename T>
T __ldcs(const T* address) {
  bytes_read_once += sizeof(T);
  return *address;
}
template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, T value) {
  *address = value;
}

template <typename To, typename From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline unsigned __float_as_uint(float a) { return bits_as<unsigned>(a); }
inline float __uint_as_float(unsigned a) { return bits_as<float>(a); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((std::uint64_t{high} << 32 | low) >> (shift & 31));
}

// Compiled without contraction these round on their own.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
// Toward zero: a neighbour of the nearest float, where that lies beyond the sum. double holds the sums of the
// kernels exactly.
inline float __fadd_rz(float a, float b) {
  const double sum = static_cast<double>(a) + b;
  const auto nearest = static_cast<float>(sum);
  return std::fabs(nearest) > std::fabs(sum) ? std::nextafterf(nearest, 0.0f) : nearest;
}

struct __half {
  std::uint16_t bits;
};
inline float __half2float(__half a) { return bits_as<_Float16>(a.bits); }
inline __half __float2half_rn(float a) { return {bits_as<std::uint16_t>(static_cast<_Float16>(a))}; }
inline __half __float2half_rz(float a) {
  const __half nearest = __float2half_rn(a);
  const bool beyond = std::fabs(__half2float(nearest)) > std::fabs(a);
  return {static_cast<std::uint16_t>(nearest.bits - beyond)};
}

struct __nv_bfloat16 {
  std::uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 a) { return __uint_as_float(unsigned{a.bits} << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float a) {
  const unsigned bits = __float_as_uint(a);
  const unsigned rounded = bits + 0x7FFF + (bits >> 16 & 1);
  return {static_cast<std::uint16_t>((a == a ? rounded : bits | 0x400000) >> 16)};
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }

using cudaStream_t = struct CUstream_st*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "none"; }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) kernel(arguments...);
  return cudaSuccess;
}
