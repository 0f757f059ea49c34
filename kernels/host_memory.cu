// Page-locking of memory of the host, so that a GPU copies it by itself and while the host goes on; and
// whether the driver is new enough for what was compiled.
#include <cuda_runtime.h>

#include "launchers.h"

namespace {

// A failure that was returned must not be found again by the next launch that asks for the last error.
int taken(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace

extern "C" int modelswarms_pin_host(void* address, size_t bytes) {
  return taken(cudaHostRegister(address, bytes, cudaHostRegisterPortable));
}

extern "C" int modelswarms_unpin_host(void* address) { return taken(cudaHostUnregister(address)); }

extern "C" bool modelswarms_cuda_is_usable() {
  int driver = 0, runtime = 0;
  if (taken(cudaDriverGetVersion(&driver)) != cudaSuccess || driver == 0) return true;  // no GPU to be asked
  return taken(cudaRuntimeGetVersion(&runtime)) == cudaSuccess && driver / 1000 >= runtime / 1000;
}
