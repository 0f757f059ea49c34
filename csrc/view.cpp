#include "view.h"

#include "tensor.h"

namespace modelswarms {
namespace {

constexpr std::uint8_t kUnsigned = 1;
const char* const kName = "dltensor";

// Laid out as DLManagedTensor in DLPack's header, with what the tensor points to behind it.
struct Managed {
  dlpack::Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
  std::int64_t shape[2], strides[2];
  Slab::Shared slab;
};

void unused(PyObject* capsule) {
  if (!PyCapsule_IsValid(capsule, kName)) return;  // taken: who has it calls the deleter
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule, kName));
  managed->deleter(managed);
}

}  // namespace

PyObject* dlpack_capsule(const View& view) {
  auto* managed = new Managed{};
  managed->slab = view.slab;
  managed->shape[0] = view.rows;
  managed->shape[1] = view.columns;
  managed->strides[0] = view.stride;
  managed->strides[1] = 1;
  const Device device = view.slab->device();
  managed->tensor = {view.data, device.type,    device.index,     2, kUnsigned, 8,
                     1,         managed->shape, managed->strides, 0};
  managed->deleter = [](Managed* it) { delete it; };
  PyObject* capsule = PyCapsule_New(managed, kName, &unused);
  if (capsule == nullptr) delete managed;
  return capsule;
}

}  // namespace modelswarms
