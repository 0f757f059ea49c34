// Throwing checks with file and line. Never exits: pybind11 turns the exception into a Python ValueError.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#define MS_CHECK(condition, message)                                                              \
  do {                                                                                            \
    if (!(condition))                                                                             \
      throw std::invalid_argument(std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " + \
                                  (message));                                                     \
  } while (0)

namespace modelswarms {

// Sizes that come from outside are multiplied and added by these: a product that would wrap around passes for
// a small one in every check of bounds after it.
inline std::int64_t times(std::int64_t a, std::int64_t b) {
  std::int64_t product;
  MS_CHECK(!__builtin_mul_overflow(a, b, &product), "sizes whose product is more than 2**63 - 1");
  return product;
}

inline std::int64_t plus(std::int64_t a, std::int64_t b) {
  std::int64_t sum;
  MS_CHECK(!__builtin_add_overflow(a, b, &sum), "sizes whose sum is more than 2**63 - 1");
  return sum;
}

}  // namespace modelswarms
