// The arguments of a swarm update, taken from tensors. Both functions say whether nothing can be wrong with
// them; `out` is set then, except for the numbers that are no tensors' business.
#pragma once

#include <Python.h>

#include "swarm_update.h"

namespace modelswarms {

// position, velocity, personal_best [P, D], global_best, global_worst [D], coefficients float32 [P, 4].
struct UpdateTensors {
  PyObject *position, *velocity, *personal_best, *global_best, *global_worst, *coefficients;
};
bool plainly_right(const UpdateTensors& tensors, SwarmUpdate& out);

// rows [R, D], table int64 [P, 5], two row numbers, coefficients float32 [P, 4].
struct UpdateRows {
  PyObject *rows, *table;
  std::int64_t global_best, global_worst;
  PyObject* coefficients;
};
bool plainly_right(const UpdateRows& tensors, SwarmUpdate& out);

}  // namespace modelswarms
