// Random numbers that are a function of a counter, and what the update makes of them: Philox4x32-10 (Salmon,
// Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The definition, word for word,
// is modelswarms_fast/ops/reference.py.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace modelswarms {

constexpr int kRounds = 10;

// What a draw is for: the lowest bit of the last word of its counter.
constexpr uint32_t kForRounding = 0, kForCoefficients = 1;

// The keys of all rounds: worked out by the launcher, so that the kernel takes them from constant memory.
struct RoundKeys {
  uint32_t at[kRounds][2];
};

inline RoundKeys round_keys(uint64_t seed) {
  RoundKeys keys;
  uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
  for (auto& key : keys.at) {
    key[0] = low;
    key[1] = high;
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
  return keys;
}

struct Words {
  uint32_t at[4];
};

__device__ __forceinline__ Words philox(uint64_t index, uint32_t particle, uint32_t last,
                                        const RoundKeys& keys) {
  uint32_t a = static_cast<uint32_t>(index), b = static_cast<uint32_t>(index >> 32), c = particle, d = last;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t one = uint64_t{a} * 0xD2511F53u, two = uint64_t{c} * 0xCD9E8D57u;
    a = static_cast<uint32_t>(two >> 32) ^ b ^ keys.at[round][0];
    b = static_cast<uint32_t>(two);
    c = static_cast<uint32_t>(one >> 32) ^ d ^ keys.at[round][1];
    d = static_cast<uint32_t>(one);
  }
  return {{a, b, c, d}};
}

// One of four words by a number that is not known before the kernel runs.
__device__ __forceinline__ uint32_t pick(const Words& words, uint64_t column) {
  const uint32_t even = column & 2 ? words.at[2] : words.at[0];
  const uint32_t odd = column & 2 ? words.at[3] : words.at[1];
  return column & 1 ? odd : even;
}

// (word >> 8 | 1) / 2^24 without a conversion: 1.m, m the upper 23 bits of the word, less 1 - 2^-24, is
// exact.
__device__ __forceinline__ float uniform(uint32_t word) {
  return __fadd_rn(__uint_as_float(__funnelshift_r(word, 0x7F, 9)), -0x1.fffffep-1f);
}

// Up or down with the probability that keeps the mean; the lower 16 bits of `noise` are random, the rest 0.
__device__ __forceinline__ __nv_bfloat16 stochastic_bfloat16(float value, uint32_t noise) {
  const uint32_t bits = __float_as_uint(value);
  // Below a NaN a carry ends at infinity, 0x7F80, and never reaches the sign.
  return __ushort_as_bfloat16(
      static_cast<unsigned short>((value == value ? bits + noise : bits | 0x400000) >> 16));
}

// The same by two operations that cut off: the sum with the noise, then its storage. Cutting off twice is
// cutting off once, so these are the bits of the reference's integers, in fewer instructions.
__device__ __forceinline__ __half stochastic_float16(float value, uint32_t noise) {
  const uint32_t bits = __float_as_uint(value);
  // noise / 2^26: below an exponent of -3 the lowest bit counts 2^-26.
  float share = __fadd_rn(__uint_as_float(0x3E000000 | noise), -0.125f);
  // The reference lets nothing below 2^-32 rise to the smallest number.
  share = fabsf(value) < 0x1p-32f ? 0.0f : share;
  // The power of two that a value's last place counts 2^-10 of, with its sign: none below 2^-14.
  uint32_t power = bits & 0x7F800000;
  power = power < 0x38800000 ? 0x38800000 : power;
  power = power > 0x47800000 ? 0x47800000 : power;
  const float moved = __fadd_rz(value, __fmul_rn(share, __uint_as_float(power | (bits & 0x80000000))));
  // What reaches 2^16 is infinity, which cutting off would avoid.
  return __float2half_rz(fabsf(moved) < 65536.0f ? moved : __fmul_rn(moved, __uint_as_float(0x7F800000)));
}

}  // namespace modelswarms
