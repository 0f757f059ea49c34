// A row into the places where an engine keeps its tensors, or merged into the base weights: one launch for
// all tensors of the row. What is done, and the order of rounding, is that of csrc/plan.h.
#include "common.cuh"
#include "launchers.h"

namespace modelswarms {
namespace {

// As modelswarms_fast/weights/weight_loader.py writes them, eight bytes a field. `wide`: every row of the
// part and of its place begins at a multiple of 16 bytes of the row and has a multiple of 16 bytes.
struct CopyPart {
  int64_t offset, rows, columns, step;
  void* place;
  int64_t stride;
  double scaling;
  int64_t wide;
};

struct MergePart {
  int64_t a, b, rank, rows, columns, step;
  const void* base;
  void* live;
  int64_t stride;
  double scaling;
  int64_t wide;
};

// What a block does: from an element of a part on, or from a row of it on.
struct Tile {
  int64_t part, begin;
};

struct Args {
  const void* row;
  const void* parts;
  const Tile* tiles;
  bool wide;  // the row itself begins at a multiple of 16 bytes
};

constexpr int64_t kCopyElements = 8192, kMergeRows = 16;  // of a tile; weight_loader.py cuts them
constexpr int kTogether = 4;                              // rows of live weights that share every load of A

template <typename T, int COUNT>
__device__ __forceinline__ void copy_tile(const CopyPart& part, const T* row, uint32_t begin, uint32_t end) {
  const T* flat = row + part.offset;
  T* place = static_cast<T*>(part.place);
  const float factor = static_cast<float>(part.scaling);
  const auto columns = static_cast<uint32_t>(part.columns);
  for (uint32_t i = begin + threadIdx.x * COUNT; i < end; i += blockDim.x * COUNT) {
    const uint32_t r = i / columns, d = i - r * columns;
    const Raw<T, COUNT> raw = load_once<T, COUNT>(flat + r * part.step + d);
    Pack<T, COUNT> pack = reinterpret_cast<const Pack<T, COUNT>&>(raw);
    if (factor != 1.0f) {
#pragma unroll
      for (int k = 0; k < COUNT; ++k) pack.at[k] = rounded<T>(multiply(factor, number<T, COUNT>(raw, k)));
    }
    store_once(place + r * part.stride + d, pack);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) copy_kernel(const Args args) {
  const Tile tile = args.tiles[blockIdx.x];
  const CopyPart& part = static_cast<const CopyPart*>(args.parts)[tile.part];
  const int64_t last = tile.begin + kCopyElements, count = part.rows * part.columns;
  const auto begin = static_cast<uint32_t>(tile.begin),
             end = static_cast<uint32_t>(last < count ? last : count);
  const T* row = static_cast<const T*>(args.row);
  if (args.wide && part.wide)
    copy_tile<T, kPack<T>>(part, row, begin, end);
  else
    copy_tile<T, 1>(part, row, begin, end);
}

// COUNT columns from d on of ROWS rows from i on.
template <typename T, int COUNT, int ROWS>
__device__ __forceinline__ void merge_some(const MergePart& part, const T* row, int64_t i, int64_t d) {
  float sums[ROWS][COUNT] = {};
  const T *a = row + part.a + d, *b = row + part.b + i * part.rank;
  const auto scaling = static_cast<float>(part.scaling);
#pragma unroll 2
  for (int64_t k = 0; k < part.rank; ++k, a += part.step) {
    const auto raw = load<T, COUNT>(a);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const float by = multiply(scaling, to_float(__ldg(b + r * part.rank + k)));
#pragma unroll
      for (int n = 0; n < COUNT; ++n) sums[r][n] = add(sums[r][n], multiply(by, number<T, COUNT>(raw, n)));
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const auto base = load_once<T, COUNT>(static_cast<const T*>(part.base) + (i + r) * part.columns + d);
    Pack<T, COUNT> pack;
#pragma unroll
    for (int n = 0; n < COUNT; ++n) pack.at[n] = rounded<T>(add(number<T, COUNT>(base, n), sums[r][n]));
    store_once(static_cast<T*>(part.live) + (i + r) * part.stride + d, pack);
  }
}

template <typename T, int COUNT>
__device__ __forceinline__ void merge_tile(const MergePart& part, const T* row, int64_t begin, int64_t end) {
  const auto packs = static_cast<uint32_t>(part.columns / COUNT);
  const auto groups = static_cast<uint32_t>((end - begin + kTogether - 1) / kTogether);
  for (uint32_t n = threadIdx.x; n < groups * packs; n += blockDim.x) {
    const uint32_t group = n / packs;
    const int64_t d = int64_t{n - group * packs} * COUNT;
    int64_t i = begin + int64_t{group} * kTogether;
    if (i + kTogether <= end) {
      merge_some<T, COUNT, kTogether>(part, row, i, d);
    } else {
      for (; i < end; ++i) merge_some<T, COUNT, 1>(part, row, i, d);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) merge_kernel(const Args args) {
  const Tile tile = args.tiles[blockIdx.x];
  const MergePart& part = static_cast<const MergePart*>(args.parts)[tile.part];
  const int64_t last = tile.begin + kMergeRows, end = last < part.rows ? last : part.rows;
  const T* row = static_cast<const T*>(args.row);
  if (args.wide && part.wide)
    merge_tile<T, kPack<T>>(part, row, tile.begin, end);
  else
    merge_tile<T, 1>(part, row, tile.begin, end);
}

int launch(void (*kernel)(Args), const void* row, const void* parts, const void* tiles, int64_t count,
           int device, cudaStream_t stream) {
  const cudaError_t chosen = cudaSetDevice(device);
  if (chosen != cudaSuccess) return chosen;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(count));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  const Args args{row, parts, static_cast<const Tile*>(tiles), reinterpret_cast<uintptr_t>(row) % 16 == 0};
  cudaLaunchKernelEx(&config, kernel, args);
  return cudaGetLastError();
}

}  // namespace
}  // namespace modelswarms

extern "C" int modelswarms_copy_plan_cuda(const void* row, const void* parts, const void* tiles,
                                          int64_t count, int dtype, int device, cudaStream_t stream) {
  using namespace modelswarms;
  void (*const kernels[3])(Args) = {copy_kernel<float>, copy_kernel<__nv_bfloat16>, copy_kernel<__half>};
  if (dtype < 0 || dtype > 2) return cudaErrorInvalidValue;
  return launch(kernels[dtype], row, parts, tiles, count, device, stream);
}

extern "C" int modelswarms_merge_plan_cuda(const void* row, const void* parts, const void* tiles,
                                           int64_t count, int dtype, int device, cudaStream_t stream) {
  using namespace modelswarms;
  void (*const kernels[3])(Args) = {merge_kernel<float>, merge_kernel<__nv_bfloat16>, merge_kernel<__half>};
  if (dtype < 0 || dtype > 2) return cudaErrorInvalidValue;
  return launch(kernels[dtype], row, parts, tiles, count, device, stream);
}
