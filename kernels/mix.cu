// Combination of experts into particles. Equation, order of rounding and bytes: kernels/README.md.
#include "common.cuh"
#include "launchers.h"

namespace modelswarms {
namespace {

// Particles whose sums a thread keeps in registers while it walks over the experts once.
constexpr int kTile = 4;

struct Args {
  void* out;
  int64_t out_stride;
  const void* experts;
  int64_t experts_stride;
  const float* mixture;
  int64_t particles;
  int64_t count;
};

// COUNT columns from d on of TILE particles from `first` on. Four experts are loaded before the first is
// added.
template <typename T, int COUNT, int TILE>
__device__ __forceinline__ void mix_tile(const Args& args, int64_t d, int64_t first) {
  float sums[TILE][COUNT] = {};
  const T* address = static_cast<const T*>(args.experts) + d;
  const float* shares = args.mixture + first * args.count;
#pragma unroll 4
  for (int64_t j = 0; j < args.count; ++j, address += args.experts_stride) {
    const auto expert = load<T, COUNT>(address);
#pragma unroll
    for (int r = 0; r < TILE; ++r) {
      const float m = __ldg(shares + r * args.count + j);
#pragma unroll
      for (int k = 0; k < COUNT; ++k) sums[r][k] = add(sums[r][k], multiply(m, number<T, COUNT>(expert, k)));
    }
  }
#pragma unroll
  for (int r = 0; r < TILE; ++r) {
    Pack<T, COUNT> pack;
#pragma unroll
    for (int k = 0; k < COUNT; ++k) pack.at[k] = rounded<T>(sums[r][k]);
    store_once(static_cast<T*>(args.out) + (first + r) * args.out_stride + d, pack);
  }
}

// A thread owns COUNT columns. A second tile of particles reads the experts again, out of the first cache.
template <typename T, int COUNT>
__global__ void __launch_bounds__(kThreads, 2) mix_kernel(const Args args, int64_t begin, int64_t packs) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < packs; i += step) {
    const int64_t d = begin + i * COUNT;
    int64_t first = 0;
    for (; first + kTile <= args.particles; first += kTile) mix_tile<T, COUNT, kTile>(args, d, first);
    if (args.particles & 2) mix_tile<T, COUNT, 2>(args, d, first);
    first += args.particles & 2;
    if (args.particles & 1) mix_tile<T, COUNT, 1>(args, d, first);
  }
}

template <typename T>
void launch(const Args& args, int64_t size, cudaStream_t stream) {
  const int64_t bytes = sizeof(T);
  const bool vector = aligned(args.out, args.out_stride, args.particles, bytes) &&
                      aligned(args.experts, args.experts_stride, args.count, bytes);
  const int64_t packs = vector ? size / kPack<T> : 0;
  const int64_t rest = size - packs * kPack<T>;
  launch_on_packs(mix_kernel<T, kPack<T>>, args, 0, packs, stream);
  launch_on_packs(mix_kernel<T, 1>, args, size - rest, rest, stream);
}

}  // namespace
}  // namespace modelswarms

extern "C" int modelswarms_mix_cuda(void* out, int64_t out_stride, const void* experts,
                                    int64_t experts_stride, const float* mixture, int64_t particles,
                                    int64_t count, int64_t size, int dtype, int device, cudaStream_t stream) {
  using namespace modelswarms;
  if (particles <= 0 || size <= 0) return cudaSuccess;
  const cudaError_t chosen = cudaSetDevice(device);
  if (chosen != cudaSuccess) return chosen;
  const Args args{out, out_stride, experts, experts_stride, mixture, particles, count};
  if (dtype == 0)
    launch<float>(args, size, stream);
  else if (dtype == 1)
    launch<__nv_bfloat16>(args, size, stream);
  else if (dtype == 2)
    launch<__half>(args, size, stream);
  else
    return cudaErrorInvalidValue;
  return cudaGetLastError();
}
