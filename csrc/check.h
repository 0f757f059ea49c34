// Throwing checks with file and line. Never exits: pybind11 turns the exception into a Python ValueError.
#pragma once

#include <stdexcept>
#include <string>

#define MS_CHECK(condition, message)                                                              \
  do {                                                                                            \
    if (!(condition))                                                                             \
      throw std::invalid_argument(std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " + \
                                  (message));                                                     \
  } while (0)
