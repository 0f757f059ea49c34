// What Python sees of a slab: bytes that keep it alive, for any library that speaks DLPack.
#pragma once

#include <Python.h>

#include <cstdint>

#include "slab.h"

namespace modelswarms {

// [rows, columns], rows `stride` bytes apart.
struct View {
  Slab::Shared slab;
  char* data;
  std::int64_t rows, columns, stride;
};

// A capsule "dltensor" of unsigned bytes, as Python's array API asks for: a new reference, or null with a
// Python error. Whoever takes it keeps the slab.
PyObject* dlpack_capsule(const View& view);

}  // namespace modelswarms
