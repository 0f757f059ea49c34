// Page-locking of memory of the host, so that a GPU copies it by itself and while the host goes on.
#include <cuda_runtime.h>

#include "launchers.h"

extern "C" int modelswarms_pin_host(void* address, size_t bytes) {
  return cudaHostRegister(address, bytes, cudaHostRegisterPortable);
}

extern "C" int modelswarms_unpin_host(void* address) { return cudaHostUnregister(address); }
