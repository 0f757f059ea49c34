// Launchers of the CUDA kernels, callable from C and C++ without the CUDA headers. Pointers lie on `device`,
// strides are in elements, dtype is 0 float32, 1 bfloat16, 2 float16. Each returns a cudaError_t as int, 0
// for success, and does not wait for the kernel.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct CUstream_st;

extern "C" {

// `table` is null or [particles, 5] int64 on the device, for which the three bases and strides are the same;
// seed, iteration and first_column are read only if `stochastic` or `coordinate`.
int modelswarms_swarm_update_cuda(void* position, int64_t position_stride, void* velocity,
                                  int64_t velocity_stride, const void* personal_best,
                                  int64_t personal_best_stride, const void* global_best,
                                  const void* global_worst, const int64_t* table, const float* coefficients,
                                  float step_length, int64_t particles, int64_t size, int dtype,
                                  bool stochastic, bool coordinate, uint64_t seed, uint32_t iteration,
                                  int64_t first_column, int device, struct CUstream_st* stream);

int modelswarms_mix_cuda(void* out, int64_t out_stride, const void* experts, int64_t experts_stride,
                         const float* mixture, int64_t particles, int64_t count, int64_t size, int dtype,
                         int device, struct CUstream_st* stream);

// A load of a row (modelswarms_fast/weights/weight_loader.py): `parts` and `tiles` are tables on the device,
// `count` the number of tiles.
int modelswarms_copy_plan_cuda(const void* row, const void* parts, const void* tiles, int64_t count,
                               int dtype, int device, struct CUstream_st* stream);
int modelswarms_merge_plan_cuda(const void* row, const void* parts, const void* tiles, int64_t count,
                                int dtype, int device, struct CUstream_st* stream);

// Lets every GPU copy this memory of the host by itself; to be taken back before the memory goes.
int modelswarms_pin_host(void* address, size_t bytes);
int modelswarms_unpin_host(void* address);

// False if there is a driver and its major version of CUDA is older than the one that was compiled in: then
// every call would fail.
bool modelswarms_cuda_is_usable();

const char* modelswarms_cuda_error(int code);
}
