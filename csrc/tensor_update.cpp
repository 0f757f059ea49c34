#include "tensor_update.h"

#include <vector>

#include "tensor.h"

namespace modelswarms {
namespace {

bool read_coefficients(PyObject* object, std::int64_t particles, TensorRows& out) {
  return out.read(object, 2) && out.is(dlpack::kFloat, 32) && out.count == particles && out.size == 4 &&
         (particles == 1 || out.stride == 4);
}

// Every number is a row's, and what is written is read by nobody but its own particle.
bool table_is_right(const std::int64_t* table, std::int64_t particles, std::int64_t rows, std::int64_t best,
                    std::int64_t worst) {
  const auto inside = [rows](std::int64_t row) { return row >= 0 && row < rows; };
  if (!inside(best) || !inside(worst)) return false;
  // For each row: 1 read, 2 written.
  thread_local std::vector<unsigned char> use;
  use.assign(static_cast<std::size_t>(rows), 0);
  use[best] = use[worst] = 1;
  const auto* end = table + 5 * particles;
  for (const auto* line = table; line != end; line += 5) {
    const std::int64_t x_in = line[0], x_out = line[1], v_in = line[2], v_out = line[3], p = line[4];
    if (!inside(x_in) || !inside(x_out) || !inside(v_out) || !inside(p)) return false;
    if (v_in != -1 && !inside(v_in)) return false;
    if (x_in != x_out) use[x_in] |= 1;
    if (v_in != -1 && v_in != v_out) use[v_in] |= 1;
    use[p] |= 1;
    for (const std::int64_t row : {x_out, v_out}) {
      if (use[row] & 2) return false;
      use[row] |= 2;
    }
  }
  // A row that is written must not be read by another, nor a second time in place.
  for (const auto* line = table; line != end; line += 5) {
    if (use[line[1]] != 2 || use[line[3]] != 2) return false;
    if (line[0] != line[1] && (use[line[0]] & 2)) return false;
    if (line[2] != -1 && line[2] != line[3] && (use[line[2]] & 2)) return false;
  }
  return true;
}

}  // namespace

bool plainly_right(const UpdateTensors& tensors, SwarmUpdate& out) {
  TensorRows x, v, p, g, w, coefficients;
  if (!x.read(tensors.position, 2) || !v.read(tensors.velocity, 2) || !p.read(tensors.personal_best, 2) ||
      !g.read(tensors.global_best, 1) || !w.read(tensors.global_worst, 1))
    return false;
  for (const TensorRows* rows : {&v, &p, &g, &w}) {
    if (!rows->like(x) || rows->size != x.size) return false;
  }
  if (v.count != x.count || p.count != x.count) return false;
  if (!read_coefficients(tensors.coefficients, x.count, coefficients) || !x.dtype(out.dtype)) return false;
  for (const TensorRows* rows : {&p, &g, &w, &coefficients}) {
    if (!x.apart(*rows) || !v.apart(*rows)) return false;
  }
  if (!x.apart(v)) return false;
  out.position = x.data, out.position_stride = x.stride;
  out.velocity = v.data, out.velocity_stride = v.stride;
  out.personal_best = p.data, out.personal_best_stride = p.stride;
  out.global_best = g.data, out.global_worst = w.data;
  out.table = nullptr;
  out.coefficients = reinterpret_cast<const float*>(coefficients.data);
  out.particles = x.count, out.size = x.size;
  return true;
}

bool plainly_right(const UpdateRows& tensors, SwarmUpdate& out) {
  TensorRows rows, table, coefficients;
  if (!rows.read(tensors.rows, 2) || !table.read(tensors.table, 2)) return false;
  if (!table.is(dlpack::kInt, 64) || table.size != 5 || (table.count > 1 && table.stride != 5)) return false;
  if (!read_coefficients(tensors.coefficients, table.count, coefficients) || !rows.dtype(out.dtype))
    return false;
  if (!rows.apart(table) || !rows.apart(coefficients)) return false;
  const auto* lines = reinterpret_cast<const std::int64_t*>(table.data);
  if (!table_is_right(lines, table.count, rows.count, tensors.global_best, tensors.global_worst))
    return false;
  const auto row = [&](std::int64_t number) { return rows.data + number * rows.stride * (rows.bits / 8); };
  out.position = out.velocity = rows.data, out.personal_best = rows.data;
  out.position_stride = out.velocity_stride = out.personal_best_stride = rows.stride;
  out.global_best = row(tensors.global_best), out.global_worst = row(tensors.global_worst);
  out.table = lines;
  out.coefficients = reinterpret_cast<const float*>(coefficients.data);
  out.particles = table.count, out.size = rows.size;
  return true;
}

}  // namespace modelswarms
