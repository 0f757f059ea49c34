// The fused swarm update. Equation, order of rounding and bytes: kernels/README.md.
#include "common.cuh"
#include "launchers.h"

namespace modelswarms {
namespace {

struct Args {
  void* position;
  int64_t position_stride;
  void* velocity;
  int64_t velocity_stride;
  const void* personal_best;
  int64_t personal_best_stride;
  const void* global_best;
  const void* global_worst;
  const float* coefficients;
  float step_length;
  int64_t particles;
};

// A thread owns COUNT columns, reads g and w there once, and walks over the particles.
template <typename T, int COUNT>
__global__ void __launch_bounds__(kThreads, 2)
    swarm_update_kernel(const Args args, int64_t begin, int64_t packs) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < packs; i += step) {
    const int64_t d = begin + i * COUNT;
    const auto g = load_once<T, COUNT>(static_cast<const T*>(args.global_best) + d);
    const auto w = load_once<T, COUNT>(static_cast<const T*>(args.global_worst) + d);
    T* x_address = static_cast<T*>(args.position) + d;
    T* v_address = static_cast<T*>(args.velocity) + d;
    const T* p_address = static_cast<const T*>(args.personal_best) + d;
#pragma unroll 2
    for (int64_t particle = 0; particle < args.particles; ++particle) {
      auto x = load_once<T, COUNT>(x_address);
      auto v = load_once<T, COUNT>(v_address);
      const auto p = load_once<T, COUNT>(p_address);
      const float4 c = __ldg(reinterpret_cast<const float4*>(args.coefficients) + particle);
#pragma unroll
      for (int k = 0; k < COUNT; ++k) {
        const float at = to_float(x.at[k]);
        float velocity = multiply(c.x, to_float(v.at[k]));
        velocity = add(velocity, multiply(c.y, subtract(to_float(p.at[k]), at)));
        velocity = add(velocity, multiply(c.z, subtract(to_float(g.at[k]), at)));
        velocity = add(velocity, multiply(c.w, subtract(at, to_float(w.at[k]))));
        v.at[k] = rounded<T>(velocity);
        x.at[k] = rounded<T>(add(at, multiply(args.step_length, velocity)));
      }
      store_once(v_address, v);
      store_once(x_address, x);
      x_address += args.position_stride;
      v_address += args.velocity_stride;
      p_address += args.personal_best_stride;
    }
  }
}

template <typename T>
void launch(const Args& args, int64_t size, cudaStream_t stream) {
  const int64_t n = args.particles, bytes = sizeof(T);
  const bool vector = aligned(args.position, args.position_stride, n, bytes) &&
                      aligned(args.velocity, args.velocity_stride, n, bytes) &&
                      aligned(args.personal_best, args.personal_best_stride, n, bytes) &&
                      aligned(args.global_best, 0, 1, bytes) && aligned(args.global_worst, 0, 1, bytes);
  const int64_t packs = vector ? size / kPack<T> : 0;
  const int64_t rest = size - packs * kPack<T>;
  if (packs > 0) swarm_update_kernel<T, kPack<T>><<<grid(packs), kThreads, 0, stream>>>(args, 0, packs);
  if (rest > 0) swarm_update_kernel<T, 1><<<grid(rest), kThreads, 0, stream>>>(args, size - rest, rest);
}

}  // namespace
}  // namespace modelswarms

extern "C" int modelswarms_swarm_update_cuda(void* position, int64_t position_stride, void* velocity,
                                             int64_t velocity_stride, const void* personal_best,
                                             int64_t personal_best_stride, const void* global_best,
                                             const void* global_worst, const float* coefficients,
                                             float step_length, int64_t particles, int64_t size, int dtype,
                                             int device, cudaStream_t stream) {
  using namespace modelswarms;
  if (particles <= 0 || size <= 0) return cudaSuccess;
  const cudaError_t chosen = cudaSetDevice(device);
  if (chosen != cudaSuccess) return chosen;
  const Args args{position,      position_stride,      velocity,    velocity_stride,
                  personal_best, personal_best_stride, global_best, global_worst,
                  coefficients,  step_length,          particles};
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

extern "C" const char* modelswarms_cuda_error(int code) {
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}
