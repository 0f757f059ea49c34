// The Python module modelswarms_fast.ops._C. Pointers come in as integers, checked in Python.
#include <omp.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <system_error>

#include "arena.h"
#include "check.h"
#include "low_rank.h"
#include "mix.h"
#include "plan.h"
#include "row_name.h"
#include "simd.h"
#include "swarm_update.h"
#include "swiglu.h"
#include "tensor.h"
#include "tensor_update.h"
#include "view.h"

#ifdef MODELSWARMS_CUDA
#include "../kernels/launchers.h"
#endif

namespace py = pybind11;
using namespace modelswarms;
using Address = std::uintptr_t;
using Int = std::int64_t;

namespace {

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void swarm_update_cpu(Address position, Int position_stride, Address velocity, Int velocity_stride,
                      Address personal_best, Int personal_best_stride, Address global_best,
                      Address global_worst, Address table, Address coefficients, double step_length,
                      Int particles, Int size, int dtype, int rounding, bool coordinate, std::uint64_t seed,
                      Int iteration, Int first_column) {
  swarm_update({at(position), position_stride, at(velocity), velocity_stride, at(personal_best),
                personal_best_stride, at(global_best), at(global_worst), at<Int>(table),
                at<float>(coefficients), step_length, particles, size, static_cast<DType>(dtype),
                static_cast<Rounding>(rounding), coordinate, seed, iteration, first_column});
}

// Whether it was done: false leaves everything as it is, for Python to say why.
template <class Tensors>
bool update_if_right(const Tensors& tensors, py::handle step_length, int rounding, bool coordinate,
                     std::uint64_t seed, Int iteration, Int first_column) {
  SwarmUpdate args{};
  if (!PyFloat_CheckExact(step_length.ptr()) || !plainly_right(tensors, args)) return false;
  args.step_length = PyFloat_AS_DOUBLE(step_length.ptr());
  if (!std::isfinite(args.step_length)) return false;
  args.rounding = static_cast<Rounding>(rounding), args.coordinate = coordinate;
  if (args.rounding == Rounding::stochastic && itemsize(args.dtype) != 2) return false;
  args.seed = seed, args.iteration = iteration, args.first_column = first_column;
  const py::gil_scoped_release no_gil;
  swarm_update(args);
  return true;
}

bool swarm_update_tensors(py::handle position, py::handle velocity, py::handle personal_best,
                          py::handle global_best, py::handle global_worst, py::handle coefficients,
                          py::handle step_length, int rounding, bool coordinate, std::uint64_t seed,
                          Int iteration, Int first_column) {
  const UpdateTensors tensors{position.ptr(),    velocity.ptr(),     personal_best.ptr(),
                              global_best.ptr(), global_worst.ptr(), coefficients.ptr()};
  return update_if_right(tensors, step_length, rounding, coordinate, seed, iteration, first_column);
}

bool swarm_update_rows(py::handle rows, py::handle table, Int global_best, Int global_worst,
                       py::handle coefficients, py::handle step_length, int rounding, bool coordinate,
                       std::uint64_t seed, Int iteration, Int first_column) {
  const UpdateRows tensors{rows.ptr(), table.ptr(), global_best, global_worst, coefficients.ptr()};
  return update_if_right(tensors, step_length, rounding, coordinate, seed, iteration, first_column);
}

void mix_cpu(Address out, Int out_stride, Address experts, Int experts_stride, Address mixture, Int particles,
             Int count, Int size, int dtype) {
  mix({at(out), out_stride, at(experts), experts_stride, at(mixture), particles, count, size,
       static_cast<DType>(dtype)});
}

void swiglu_cpu(Address out, Address in, Int rows, Int width, int dtype) {
  swiglu({at(out), at(in), rows, width, static_cast<DType>(dtype)});
}

using LowRankTuple = std::tuple<Address, Int, Int, Address, Int, Int, Int, Int, double>;
using TokenTuple = std::tuple<Int, Int, std::vector<float>>;

LowRank low_rank(const std::vector<LowRankTuple>& parts, Int inputs, Int blocks, int dtype) {
  std::vector<LowRankPart> given;
  for (const auto& [a, a_block, a_row, b, b_block, rank, outputs, column, scaling] : parts)
    given.push_back({at(a), a_block, a_row, at(b), b_block, rank, outputs, column, scaling});
  return {std::move(given), inputs, blocks, static_cast<DType>(dtype)};
}

TokenGroups token_groups(Address order, Int count, const std::vector<TokenTuple>& groups) {
  std::vector<TokenGroup> given;
  for (const auto& [tokens, first, coefficients] : groups) given.push_back({tokens, first, coefficients});
  return {std::vector<Int>(at<Int>(order), at<Int>(order) + count), std::move(given)};
}

void add_low_rank(const LowRank& linear, const TokenGroups& groups, Address x, Int x_stride, Address low,
                  Address y, Int y_stride) {
  linear.add(groups, {at(x), x_stride, at<float>(low), at(y), y_stride});
}

using CopyTuple = std::tuple<Int, Int, Int, Int, Address, Int, double>;
using MergeTuple = std::tuple<Int, Int, Int, Int, Int, Int, Address, Address, Int, double>;

WeightCopier copy_plan(const std::vector<CopyTuple>& parts, int dtype) {
  std::vector<CopyPart> given;
  for (const auto& [offset, rows, columns, step, place, stride, scaling] : parts)
    given.push_back({offset, rows, columns, step, at(place), stride, scaling});
  return {std::move(given), static_cast<DType>(dtype)};
}

LoraMerger merge_plan(const std::vector<MergeTuple>& parts, int dtype) {
  std::vector<MergePart> given;
  for (const auto& [a, b, rank, rows, columns, step, base, live, stride, scaling] : parts)
    given.push_back({a, b, rank, rows, columns, step, at(base), at(live), stride, scaling});
  return {std::move(given), static_cast<DType>(dtype)};
}

// Whether it was done: false leaves everything as it is, for Python to convert the row or to say why.
template <class Plan>
bool load_tensor(const Plan& plan, py::handle row) {
  TensorRows tensor;
  DType dtype{};
  if (!tensor.read(row.ptr(), 1) || !tensor.dtype(dtype)) return false;
  if (dtype != plan.dtype() || tensor.size < plan.end()) return false;
  const py::gil_scoped_release no_gil;
  plan.load(tensor.data);
  return true;
}

Int row_number(PyObject* rows, PyObject* row) {
  TensorRows all, one;
  if (!all.look(rows, 2) || !one.look(row, 1)) return -1;
  if (!one.like(all) || one.size != all.size || one.data < all.data) return -1;
  if (all.count == 1) return one.data == all.data ? 0 : -1;  // its stride may be any number
  const Int before = one.data - all.data, apart = all.stride * (all.bits / 8);
  return before % apart == 0 && before / apart < all.count ? before / apart : -1;
}

// A slot's load is little more than this call. Once an engine's step has emptied the caches of its code,
// pybind11's dispatch alone took 12 us, and the load takes some 30 without it (docs/log.md).
PyObject* row_number_of(PyObject*, PyObject* const* given, Py_ssize_t count) {
  if (count == 2) return PyLong_FromLongLong(row_number(given[0], given[1]));
  PyErr_SetString(PyExc_TypeError, "row_number(rows, row) takes two arguments");
  return nullptr;
}

PyMethodDef without_dispatch[] = {
    {"row_number", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&row_number_of)), METH_FASTCALL,
     "row_number(rows, row): which of the rows [R, D] this row [D] is; -1 of any other tensor."},
    {nullptr, nullptr, 0, nullptr}};

template <class Plan>
void load_mixture(const Plan& plan, Address experts, Int stride, Int count, Address mixture) {
  plan.load_mixture({at(experts), stride, count, at(mixture)});
}

Slab::Shared new_slab(const RowShape& shape, const std::string& tier, const std::string& folder,
                      Int spilled) {
  shape.check();
  if (spilled < 0 || spilled > shape.rows)
    throw std::invalid_argument(std::to_string(spilled) + " of " + shape.in_words() + " cannot be in a file");
  if (spilled && tier != "host" && tier != "pinned")
    throw std::invalid_argument("rows of tier '" + tier + "' cannot be partly in a file");
  const py::gil_scoped_release no_gil;
  if (spilled) {
    const auto near = static_cast<std::size_t>((shape.rows - spilled) * shape.stride);
    return Slab::file(folder, shape.bytes(), shape.in_words(), near, tier == "pinned");
  }
  if (tier == "host") return Slab::host(shape.bytes(), shape.in_words());
  if (tier == "pinned") return Slab::pinned(shape.bytes(), shape.in_words());
  if (tier == "file") return Slab::file(folder, shape.bytes(), shape.in_words());
  throw std::invalid_argument("tier must be host, pinned or file, got '" + tier + "'");
}

std::unique_ptr<Arena> new_arena(Int rows, Int used, Int stride, const std::string& tier,
                                 const std::string& folder, Int spilled) {
  const RowShape shape{rows, used, stride};
  return std::make_unique<Arena>(shape, new_slab(shape, tier, folder, spilled));
}

std::unique_ptr<Arena> given_arena(Address address, Int bytes, Int rows, Int used, Int stride,
                                   std::pair<int, int> device, py::object owner) {
  const std::shared_ptr<void> kept(owner.release().ptr(), [](void* object) {
    if (!Py_IsInitialized()) return;  // the last view may outlive the interpreter, and takes its owner along
    const py::gil_scoped_acquire gil;
    Py_DECREF(static_cast<PyObject*>(object));
  });
  const Device where{device.first, device.second};
  return std::make_unique<Arena>(RowShape{rows, used, stride}, Slab::given(at(address), bytes, where, kept));
}

py::buffer_info buffer_of(View& view) {
  if (view.slab->device().type != Device{}.type)
    throw py::buffer_error("these rows are not in the host's memory: use DLPack");
  const std::string format = py::format_descriptor<std::uint8_t>::format();
  return {view.data, 1, format, 2, {view.rows, view.columns}, {view.stride, Int{1}}};
}

py::object dlpack_of(const View& view, const py::kwargs& asked) {
  // Only what the bytes are, where they are: neither a copy nor another device, and no stream to wait for.
  if (asked.contains("copy") && !asked["copy"].is_none() && asked["copy"].cast<bool>())
    throw py::buffer_error("rows are shared, not copied");
  return py::reinterpret_steal<py::object>(dlpack_capsule(view));
}

void bind_arena(py::module_& m) {
  // Local: else what torch throws would change as well.
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const std::system_error& error) {
      const py::tuple arguments = py::make_tuple(error.code().value(), error.what());
      PyErr_SetObject(PyExc_OSError, arguments.ptr());
    }
  });
  py::class_<View>(m, "View", py::buffer_protocol())
      .def_buffer(&buffer_of)
      .def("__dlpack__", &dlpack_of)
      .def("__dlpack_device__", [](const View& view) {
        return std::make_pair(view.slab->device().type, view.slab->device().index);
      });
  py::class_<Arena>(m, "Arena")
      .def(py::init(&new_arena), py::arg("rows"), py::arg("row_bytes"), py::arg("stride_bytes"),
           py::arg("tier") = "host", py::arg("folder") = ".", py::arg("spilled") = 0)
      .def_static("given", &given_arena)
      .def_property_readonly("rows", [](const Arena& arena) { return arena.shape().rows; })
      .def_property_readonly("row_bytes", [](const Arena& arena) { return arena.shape().used; })
      .def_property_readonly("stride_bytes", [](const Arena& arena) { return arena.shape().stride; })
      .def_property_readonly("free", &Arena::free)
      .def("count", &Arena::count)
      .def("acquire", &Arena::acquire)
      .def("retain", &Arena::retain)
      .def("release", &Arena::release)
      .def("all", [](const Arena& arena) {
        const RowShape& shape = arena.shape();
        return View{arena.slab(), arena.slab()->address(), shape.rows, shape.used, shape.stride};
      });
}

py::bytes row_name_of(Address row, Int bytes) {
  RowName name;
  {
    const py::gil_scoped_release no_gil;
    name = row_name(at(row), bytes);
  }
  return {reinterpret_cast<const char*>(name.data()), sizeof(name)};
}

#ifdef MODELSWARMS_CUDA
void throw_on(int code) {
  if (code != 0) throw std::runtime_error(std::string("CUDA: ") + modelswarms_cuda_error(code));
}

void swarm_update_cuda(Address position, Int position_stride, Address velocity, Int velocity_stride,
                       Address personal_best, Int personal_best_stride, Address global_best,
                       Address global_worst, Address table, Address coefficients, float step_length,
                       Int particles, Int size, int dtype, bool stochastic, bool coordinate,
                       std::uint64_t seed, std::uint32_t iteration, Int first_column, int device,
                       Address stream) {
  throw_on(modelswarms_swarm_update_cuda(
      at(position), position_stride, at(velocity), velocity_stride, at(personal_best), personal_best_stride,
      at(global_best), at(global_worst), at<Int>(table), at<float>(coefficients), step_length, particles,
      size, dtype, stochastic, coordinate, seed, iteration, first_column, device, at<CUstream_st>(stream)));
}

void mix_cuda(Address out, Int out_stride, Address experts, Int experts_stride, Address mixture,
              Int particles, Int count, Int size, int dtype, int device, Address stream) {
  throw_on(modelswarms_mix_cuda(at(out), out_stride, at(experts), experts_stride, at<float>(mixture),
                                particles, count, size, dtype, device, at<CUstream_st>(stream)));
}

void copy_weights_cuda(Address row, Address parts, Address tiles, Int count, int dtype, int device,
                       Address stream) {
  throw_on(modelswarms_copy_plan_cuda(at(row), at(parts), at(tiles), count, dtype, device,
                                      at<CUstream_st>(stream)));
}

void merge_lora_cuda(Address row, Address parts, Address tiles, Int count, int dtype, int device,
                     Address stream) {
  throw_on(modelswarms_merge_plan_cuda(at(row), at(parts), at(tiles), count, dtype, device,
                                       at<CUstream_st>(stream)));
}

bool has_cuda() { return modelswarms_cuda_is_usable(); }
#else
bool has_cuda() { return false; }
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  using NoGil = py::call_guard<py::gil_scoped_release>;
  m.doc() =
      "CPU and CUDA operators of modelswarms_fast; use modelswarms_fast.ops, which checks its arguments.";

  m.def("know_tensors", [](py::handle type, py::handle api) { return know_tensors(type.ptr(), api.ptr()); });
  if (PyModule_AddFunctions(m.ptr(), without_dispatch) != 0) throw py::error_already_set();
  m.def("swarm_update_tensors", &swarm_update_tensors);
  m.def("swarm_update_rows", &swarm_update_rows);
  m.def("swarm_update", &swarm_update_cpu, NoGil());
  m.def("mix", &mix_cpu, NoGil());
  m.def("swiglu", &swiglu_cpu, NoGil());

  py::class_<TokenGroups>(m, "TokenGroups").def(py::init(&token_groups));
  py::class_<LowRank>(m, "LowRank")
      .def(py::init(&low_rank))
      .def_property_readonly("width", &LowRank::width)
      .def("add", &add_low_rank, NoGil());

  py::class_<WeightCopier>(m, "WeightCopier")
      .def(py::init(&copy_plan))
      .def(
          "load", [](const WeightCopier& plan, Address row) { plan.load(at(row)); }, NoGil())
      .def("load_tensor", &load_tensor<WeightCopier>)
      .def("load_mixture", &load_mixture<WeightCopier>, NoGil());
  py::class_<LoraMerger>(m, "LoraMerger")
      .def(py::init(&merge_plan))
      .def(
          "load", [](const LoraMerger& plan, Address row) { plan.load(at(row)); }, NoGil())
      .def("load_tensor", &load_tensor<LoraMerger>)
      .def("load_mixture", &load_mixture<LoraMerger>, NoGil());

  m.def("row_name", &row_name_of);

  bind_arena(m);

  m.attr("has_cuda") = has_cuda();
#ifdef MODELSWARMS_CUDA
  m.def("swarm_update_cuda", &swarm_update_cuda, NoGil());
  m.def("mix_cuda", &mix_cuda, NoGil());
  m.def("copy_weights_cuda", &copy_weights_cuda, NoGil());
  m.def("merge_lora_cuda", &merge_lora_cuda, NoGil());
#endif

  m.def("simd_levels", &simd_levels);
  m.def("simd_level", &simd_level);
  m.def("set_simd_level", &set_simd_level, py::arg("name"));
  m.def("num_threads", [] { return omp_get_max_threads(); });
  m.def("set_num_threads", [](int count) { omp_set_num_threads(count); }, py::arg("count"));
}
