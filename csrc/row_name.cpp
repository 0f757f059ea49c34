#include "row_name.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "bits.h"
#include "check.h"
#include "columns.h"
#include "simd.h"

namespace modelswarms {
namespace {

constexpr std::int64_t kChunk = 1024;                   // bytes that become kSums sums
constexpr int kSums = 4;                                // of 64 bits
constexpr std::int64_t kChunks = kChunk / (8 * kSums);  // whose sums are a chunk of the next level
constexpr std::int64_t kBlock = kChunk * kChunks;       // bytes that are one chunk of the second level
constexpr int kLevels = 8;                              // enough for 2^45 bytes

struct alignas(64) LevelKeys {
  std::uint32_t of[kSums][kChunk / 4];
};

using Wide = unsigned __int128;

struct Keys {
  LevelKeys levels[kLevels];
  Wide last[kSums][3];

  Keys() {
    std::uint64_t counter = 0;
    for (LevelKeys& level : levels)
      for (auto& keys : level.of)
        for (std::int64_t i = 0; i < kChunk / 4; i += 2) {
          const std::uint64_t word = next(counter);
          keys[i] = static_cast<std::uint32_t>(word), keys[i + 1] = static_cast<std::uint32_t>(word >> 32);
        }
    for (auto& factors : last)
      for (Wide& factor : factors) {
        const Wide low = next(counter);
        factor = low | Wide{next(counter)} << 64;
      }
  }

  // SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
  static std::uint64_t next(std::uint64_t& counter) {
    std::uint64_t z = counter += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
};

using NameBlock = void (*)(const char*, std::int64_t, const LevelKeys*, std::uint64_t*);
using NameChunks = void (*)(const char*, std::int64_t, const LevelKeys&, std::uint64_t*);

#define MS_KERNEL "row_name_kernel.h"
#include "each_simd_level.h"

}  // namespace

RowName row_name(const void* row, std::int64_t bytes) {
  static const Keys keys;
  MS_CHECK(bytes >= 0, "the number of bytes must not be negative");
  const NameBlock name_block = MS_PICK(name_block);
  const NameChunks name_chunks = MS_PICK(name_chunks);
  const auto* data = static_cast<const char*>(row);
  const std::int64_t blocks = std::max<std::int64_t>(1, (bytes + kBlock - 1) / kBlock);
  std::vector<std::uint64_t> sums(static_cast<std::size_t>(blocks * kSums)), next;
  std::uint64_t* out = sums.data();
  const int threads =
      bytes < kSerialBytes ? 1 : static_cast<int>(std::min<std::int64_t>(omp_get_max_threads(), blocks));
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t block = 0; block < blocks; ++block)
    name_block(data + block * kBlock, std::min(kBlock, bytes - block * kBlock), keys.levels,
               out + block * kSums);
  for (int level = 2; sums.size() > kSums; ++level) {
    const std::size_t chunks = (sums.size() / kSums + kChunks - 1) / kChunks;
    next.assign(chunks * kSums, 0);
    name_chunks(reinterpret_cast<const char*>(sums.data()), static_cast<std::int64_t>(8 * sums.size()),
                keys.levels[level], next.data());
    sums.swap(next);
  }
  RowName name;
  for (std::size_t p = 0; p < kSums; ++p) {
    const auto& [a, b, c] = keys.last[p];
    name[p] = static_cast<std::uint32_t>((a * sums[p] + b * static_cast<std::uint64_t>(bytes) + c) >> 96);
  }
  return name;
}

}  // namespace modelswarms
