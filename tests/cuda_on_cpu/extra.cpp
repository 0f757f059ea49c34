// The stochastic rounding of the kernels by itself, for values that an update seldom makes; and what was
// read.
#include "common.cuh"

template <typename T>
void round_all(const float* values, const uint32_t* noise, T* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = modelswarms::rounded_stochastically<T>(values[i], noise[i]);
}

extern "C" void round_bf16(const float* values, const uint32_t* noise, __nv_bfloat16* out, int64_t count) {
  round_all(values, noise, out, count);
}

extern "C" void round_fp16(const float* values, const uint32_t* noise, __half* out, int64_t count) {
  round_all(values, noise, out, count);
}

extern "C" int64_t read_once() { return bytes_read_once; }
