// What a torch tensor says of itself through DLPack's C interface (DLPack 1.3, DLPackExchangeAPI): an address
// and a shape in some nanoseconds, without a header of torch and without a call into Python. Only for what is
// plainly right; whoever gets `false` asks again in Python, where there are words for what is wrong.
#pragma once

#include <Python.h>

#include <cstdint>

#include "dtype.h"

namespace modelswarms {

// The parts of DLPack's interface that are needed, laid out as its header says.
namespace dlpack {
struct Tensor {
  void* data;
  std::int32_t device_type, device_id;
  std::int32_t dimensions;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  std::int64_t *shape, *strides;
  std::uint64_t byte_offset;
};
struct ExchangeApi {
  std::uint32_t major, minor;
  ExchangeApi* previous;
  void *allocate, *managed_from_object, *managed_to_object;
  int (*from_object)(void* object, Tensor* out);
  void* current_stream;
};
constexpr std::int32_t kCpu = 1;
constexpr std::uint8_t kInt = 0, kFloat = 2, kBFloat = 4;
}  // namespace dlpack

// The one tensor type that is looked at, and how: set when the package is imported, under the GIL.
struct TensorType {
  PyTypeObject* type = nullptr;
  int (*from_object)(void*, dlpack::Tensor*) = nullptr;
  PyObject* requires_grad = nullptr;
  PyObject* is_neg = nullptr;
};

inline TensorType& tensor_type() {
  static TensorType known;
  return known;
}

// False where this torch has no such interface: then every call takes the way through Python.
inline bool know_tensors(PyObject* type, PyObject* capsule) {
  if (!PyType_Check(type) || !PyCapsule_IsValid(capsule, "dlpack_exchange_api")) return false;
  const auto* api =
      static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  while (api != nullptr && api->major != 1) api = api->previous;
  if (api == nullptr || api->from_object == nullptr) return false;
  PyObject* grad = PyUnicode_InternFromString("requires_grad");
  PyObject* neg = PyUnicode_InternFromString("is_neg");
  if (grad == nullptr || neg == nullptr) return false;
  Py_INCREF(type);
  tensor_type() = {reinterpret_cast<PyTypeObject*>(type), api->from_object, grad, neg};
  return true;
}

// A CPU tensor, contiguous in its last dimension.
struct TensorRows {
  char* data = nullptr;
  std::int64_t count = 0, size = 0, stride = 0;  // of one dimension: count 1
  std::uint8_t code = 0, bits = 0;

  // Looks, and asks that there is no gradient, and no view of numbers whose memory has the other sign, of
  // which DLPack does not tell. Both only matter to what writes or computes.
  bool read(PyObject* object, int dimensions) {
    return look(object, dimensions) && is_false(PyObject_GetAttr(object, tensor_type().requires_grad)) &&
           is_false(PyObject_CallMethodNoArgs(object, tensor_type().is_neg));
  }

  static bool is_false(PyObject* answer) {
    if (answer == nullptr) PyErr_Clear();
    Py_XDECREF(answer);
    return answer == Py_False;
  }

  bool look(PyObject* object, int dimensions) {
    const TensorType& known = tensor_type();
    if (known.from_object == nullptr || Py_TYPE(object) != known.type) return false;
    dlpack::Tensor tensor;
    if (known.from_object(object, &tensor) != 0) {
      PyErr_Clear();
      return false;
    }
    if (tensor.device_type != dlpack::kCpu || tensor.dimensions != dimensions || tensor.lanes != 1)
      return false;
    if (tensor.data == nullptr || tensor.strides == nullptr || tensor.strides[dimensions - 1] != 1)
      return false;
    data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    code = tensor.code, bits = tensor.bits;
    size = tensor.shape[dimensions - 1];
    count = dimensions == 2 ? tensor.shape[0] : 1;
    stride = dimensions == 2 ? tensor.strides[0] : size;
    return size > 0 && count > 0 && stride >= size;
  }

  std::int64_t bytes() const { return ((count - 1) * stride + size) * (bits / 8); }
  bool is(std::uint8_t wanted_code, std::uint8_t wanted_bits) const {
    return code == wanted_code && bits == wanted_bits;
  }
  bool like(const TensorRows& other) const { return is(other.code, other.bits); }
  bool apart(const TensorRows& other) const {
    return data + bytes() <= other.data || other.data + other.bytes() <= data;
  }
  bool dtype(DType& out) const {
    if (is(dlpack::kFloat, 32)) return out = DType::float32, true;
    if (is(dlpack::kBFloat, 16)) return out = DType::bfloat16, true;
    if (is(dlpack::kFloat, 16)) return out = DType::float16, true;
    if (is(dlpack::kFloat, 64)) return out = DType::float64, true;
    return false;
  }
};

}  // namespace modelswarms
