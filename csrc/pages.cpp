#include "pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace modelswarms {

void use_huge_pages(std::uintptr_t address, std::size_t bytes) {
  const std::uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const std::uintptr_t end = (address + bytes) / kHugePage * kHugePage;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace modelswarms
