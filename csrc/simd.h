// Which instruction set the CPU operators use: the best one that this machine has, unless a test asks for
// another.
#pragma once

#include <string>
#include <vector>

namespace modelswarms {

enum class Simd : int { portable = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };

// Names of the levels that this machine can run, slowest first.
std::vector<std::string> simd_levels();

// The level in use, and its name.
Simd simd();
std::string simd_level();

// Use the named level from now on, in every thread. Throws if this machine cannot run it.
void set_simd_level(const std::string& name);

}  // namespace modelswarms
