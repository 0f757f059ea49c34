// The fused swarm update. Equation, order of rounding, row tables and bytes: kernels/README.md.
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
  // [particles, 5]: x_in, x_out, v_in, v_out, p, rows of `position`, which is all three bases; or null: row i
  // of each base.
  const int64_t* table;
  const float* coefficients;
  float step_length;
  int64_t particles;
  RoundKeys keys;
  uint32_t twice_iteration;
  int64_t first_column;
};

// Blocks of 256 threads a multiprocessor must hold. A thread waits for three packs of 16 bytes at a time, so
// four blocks have 48 KiB of reads under way. With a draw for every column arithmetic is the limit, and needs
// the registers.
template <bool COORDINATE>
constexpr int kBlocks = COORDINATE ? 2 : 4;

// A thread owns COUNT columns, reads g and w there once, and walks over the particles. One particle a turn:
// the stores may alias the loads of the next one, so that unrolling brings no load forward, only registers.
template <typename T, int COUNT, bool TABLE, bool STOCHASTIC, bool COORDINATE>
__global__ void __launch_bounds__(kThreads, kBlocks<COORDINATE>)
    swarm_update_kernel(const Args args, int64_t begin, int64_t packs) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < packs; i += step) {
    const int64_t d = begin + i * COUNT;
    const auto g = load_once<T, COUNT>(static_cast<const T*>(args.global_best) + d);
    const auto w = load_once<T, COUNT>(static_cast<const T*>(args.global_worst) + d);
    T* x_address = static_cast<T*>(args.position) + d;
    T* v_address = static_cast<T*>(args.velocity) + d;
    const T* p_address = static_cast<const T*>(args.personal_best) + d;
#pragma unroll 1
    for (int64_t particle = 0; particle < args.particles; ++particle) {
      T *x_out = x_address, *v_out = v_address;
      Raw<T, COUNT> x, v, p;
      if constexpr (TABLE) {
        const int64_t* line = args.table + 5 * particle;
        const int64_t x_row = __ldg(line), v_row = __ldg(line + 2), p_row = __ldg(line + 4);
        x_out = x_address + __ldg(line + 1) * args.position_stride;
        v_out = x_address + __ldg(line + 3) * args.position_stride;
        x = load_once<T, COUNT>(x_address + x_row * args.position_stride);
        v = v_row < 0 ? Raw<T, COUNT>{} : load_once<T, COUNT>(x_address + v_row * args.position_stride);
        p = p_row == x_row ? x : load_once<T, COUNT>(x_address + p_row * args.position_stride);
      } else {
        x = load_once<T, COUNT>(x_address);
        v = load_once<T, COUNT>(v_address);
        p = load_once<T, COUNT>(p_address);
        x_address += args.position_stride;
        v_address += args.velocity_stride;
        p_address += args.personal_best_stride;
      }
      const float4 weights = __ldg(reinterpret_cast<const float4*>(args.coefficients) + particle);
      Pack<T, COUNT> new_x, new_v;
      [[maybe_unused]] Words words;
#pragma unroll
      for (int k = 0; k < COUNT; ++k) {
        [[maybe_unused]] const uint64_t column = args.first_column + d + k;
        float4 c = weights;
        [[maybe_unused]] float total;
        if constexpr (COORDINATE) {
          const Words r = philox(column, particle, args.twice_iteration + kForCoefficients, args.keys);
          c.x = multiply(c.x, uniform(r.at[0]));
          c.y = multiply(c.y, uniform(r.at[1]));
          c.z = multiply(c.z, uniform(r.at[2]));
          c.w = multiply(c.w, uniform(r.at[3]));
          total = add(add(add(c.x, c.y), c.z), c.w);
        }
        const float at = number<T, COUNT>(x, k);
        float velocity = multiply(c.x, number<T, COUNT>(v, k));
        velocity = add(velocity, multiply(c.y, subtract(number<T, COUNT>(p, k), at)));
        velocity = add(velocity, multiply(c.z, subtract(number<T, COUNT>(g, k), at)));
        velocity = add(velocity, multiply(c.w, subtract(at, number<T, COUNT>(w, k))));
        if constexpr (COORDINATE) velocity = divide(velocity, total);
        const float position = add(at, multiply(args.step_length, velocity));
        if constexpr (STOCHASTIC) {
          if (k % 4 == 0)
            words = philox(column / 4, particle, args.twice_iteration + kForRounding, args.keys);
          const uint32_t word = COUNT == 1 ? pick(words, column) : words.at[k % 4];
          new_v.at[k] = rounded_stochastically<T>(velocity, word & 0xFFFF);
          new_x.at[k] = rounded_stochastically<T>(position, word >> 16);
        } else {
          new_v.at[k] = rounded<T>(velocity);
          new_x.at[k] = rounded<T>(position);
        }
      }
      store_once(v_out, new_v);
      store_once(x_out, new_x);
    }
  }
}

template <typename T, bool TABLE, bool STOCHASTIC, bool COORDINATE>
void launch(const Args& args, int64_t size, cudaStream_t stream) {
  const int64_t n = TABLE ? 2 : args.particles, bytes = sizeof(T);  // a table's rows are two or more
  const bool vector = aligned(args.position, args.position_stride, n, bytes) &&
                      aligned(args.velocity, args.velocity_stride, n, bytes) &&
                      aligned(args.personal_best, args.personal_best_stride, n, bytes) &&
                      aligned(args.global_best, 0, 1, bytes) && aligned(args.global_worst, 0, 1, bytes);
  const int64_t packs = vector ? size / kPack<T> : 0;
  const int64_t rest = size - packs * kPack<T>;
  launch_on_packs(swarm_update_kernel<T, kPack<T>, TABLE, STOCHASTIC, COORDINATE>, args, 0, packs, stream);
  launch_on_packs(swarm_update_kernel<T, 1, TABLE, STOCHASTIC, COORDINATE>, args, size - rest, rest, stream);
}

template <typename T, bool STOCHASTIC>
void launch(const Args& args, bool coordinate, int64_t size, cudaStream_t stream) {
  if (args.table != nullptr)
    coordinate ? launch<T, true, STOCHASTIC, true>(args, size, stream)
               : launch<T, true, STOCHASTIC, false>(args, size, stream);
  else
    coordinate ? launch<T, false, STOCHASTIC, true>(args, size, stream)
               : launch<T, false, STOCHASTIC, false>(args, size, stream);
}

template <typename T>
void launch_half(const Args& args, bool stochastic, bool coordinate, int64_t size, cudaStream_t stream) {
  stochastic ? launch<T, true>(args, coordinate, size, stream)
             : launch<T, false>(args, coordinate, size, stream);
}

}  // namespace
}  // namespace modelswarms

extern "C" int modelswarms_swarm_update_cuda(void* position, int64_t position_stride, void* velocity,
                                             int64_t velocity_stride, const void* personal_best,
                                             int64_t personal_best_stride, const void* global_best,
                                             const void* global_worst, const int64_t* table,
                                             const float* coefficients, float step_length, int64_t particles,
                                             int64_t size, int dtype, bool stochastic, bool coordinate,
                                             uint64_t seed, uint32_t iteration, int64_t first_column,
                                             int device, cudaStream_t stream) {
  using namespace modelswarms;
  if (particles <= 0 || size <= 0) return cudaSuccess;
  const cudaError_t chosen = cudaSetDevice(device);
  if (chosen != cudaSuccess) return chosen;
  const Args args{
      position,         position_stride, velocity,    velocity_stride, personal_best, personal_best_stride,
      global_best,      global_worst,    table,       coefficients,    step_length,   particles,
      round_keys(seed), 2 * iteration,   first_column};
  if (dtype == 0 && !stochastic)
    launch<float, false>(args, coordinate, size, stream);
  else if (dtype == 1)
    launch_half<__nv_bfloat16>(args, stochastic, coordinate, size, stream);
  else if (dtype == 2)
    launch_half<__half>(args, stochastic, coordinate, size, stream);
  else
    return cudaErrorInvalidValue;
  return cudaGetLastError();
}

extern "C" const char* modelswarms_cuda_error(int code) {
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}
