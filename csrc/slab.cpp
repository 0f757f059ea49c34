#include "slab.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <stdexcept>
#include <system_error>
#include <vector>

#ifdef MODELSWARMS_CUDA
#include "../kernels/launchers.h"
#endif

namespace modelswarms {
namespace {

constexpr std::size_t kHugePage = 2 * 1024 * 1024;

std::size_t page_bytes() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

std::uintptr_t round_up(std::uintptr_t address, std::size_t unit) {
  return (address + unit - 1) / unit * unit;
}

std::string in_all(const std::string& what, std::size_t bytes) {
  return what + ", " + std::to_string(bytes) + " bytes in all,";
}

[[noreturn]] void fail(int error, const std::string& sentence) {
  throw std::system_error(error, std::generic_category(), sentence);
}

// Room on the disk for all of it: without, a write to the mapping would kill the process.
int reserve(int descriptor, std::size_t bytes) {
  int error;
  do error = posix_fallocate(descriptor, 0, static_cast<off_t>(bytes));
  while (error == EINTR);
  return error;
}

}  // namespace

// What follows the first `near` bytes, or all if there are none of these, begins at a huge page: there a
// whole one fits, of the file as of the memory. So the first row may begin within a page.
void Slab::map(int flags, const std::string& what, std::size_t near) {
  const std::size_t page = page_bytes(), unit = bytes_ >= kHugePage ? kHugePage : page;
  if (bytes_ > SIZE_MAX / 2) throw OutOfMemory(in_all(what, bytes_) + " are more than there can be.");
  void* reserved =
      mmap(nullptr, bytes_ + unit, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) throw OutOfMemory(in_all(what, bytes_) + " do not fit into memory.");
  const auto start = reinterpret_cast<std::uintptr_t>(reserved);
  const std::uintptr_t rest = round_up(start + near, unit), first = rest - near;
  const std::uintptr_t begin = first / page * page, end = round_up(first + bytes_, page);
  const auto part = [](std::uintptr_t at, std::size_t bytes, int how, int descriptor) {
    return !bytes || mmap(reinterpret_cast<void*>(at), bytes, PROT_READ | PROT_WRITE, how | MAP_FIXED,
                          descriptor, 0) != MAP_FAILED;
  };
  if (!part(begin, near ? rest - begin : 0, MAP_PRIVATE | MAP_ANONYMOUS, -1) ||
      !part(rest, bytes_ - near, flags, descriptor_)) {
    munmap(reserved, bytes_ + unit);
    throw OutOfMemory(in_all(what, bytes_) + " do not fit into memory.");
  }
  address_ = reinterpret_cast<void*>(first);
  mapping_ = reinterpret_cast<void*>(begin);
  mapped_ = end - begin;
  const std::uintptr_t reserved_end = round_up(start + bytes_ + unit, page);
  if (begin > start) munmap(reserved, begin - start);
  if (reserved_end > end) munmap(reinterpret_cast<void*>(end), reserved_end - end);
#ifdef MADV_HUGEPAGE
  if (unit == kHugePage)
    madvise(mapping_, mapped_, MADV_HUGEPAGE);  // the system may decline, which costs speed alone
#endif
}

Slab::Shared Slab::host(std::size_t bytes, const std::string& what) {
  Shared slab(new Slab);
  slab->bytes_ = bytes;
  slab->map(MAP_PRIVATE | MAP_ANONYMOUS, what);
  return slab;
}

void Slab::pin(std::size_t bytes, const std::string& what) {
#ifdef MODELSWARMS_CUDA
  const auto before = static_cast<std::size_t>(address() - static_cast<char*>(mapping_));
  const int error = modelswarms_pin_host(mapping_, before + bytes);
  if (error != 0)
    throw std::runtime_error(in_all(what, bytes) +
                             " cannot be page-locked: " + modelswarms_cuda_error(error));
  pinned_ = true;
#else
  throw std::runtime_error(in_all(what, bytes) + " cannot be page-locked: the extension has no CUDA.");
#endif
}

Slab::Shared Slab::pinned(std::size_t bytes, const std::string& what) {
  Shared slab = host(bytes, what);
  slab->pin(bytes, what);
  return slab;
}

Slab::Shared Slab::file(const std::string& folder, std::size_t bytes, const std::string& what,
                        std::size_t near, bool pin) {
  Shared slab(new Slab);
  slab->bytes_ = bytes;
  const std::string pattern = folder + "/modelswarms_fast_rows_XXXXXX";
  std::vector<char> path(pattern.c_str(), pattern.c_str() + pattern.size() + 1);
  slab->descriptor_ = mkostemp(path.data(), O_CLOEXEC);
  if (slab->descriptor_ < 0) fail(errno, in_all(what, bytes) + " get no file in " + folder);
  unlink(path.data());
  if (const int error = reserve(slab->descriptor_, bytes - near))
    fail(error, (near ? what + ", " + std::to_string(bytes - near) + " bytes of them in a file,"
                      : in_all(what, bytes)) +
                    " have no room in " + folder);
  slab->map(MAP_SHARED, what, near);
  if (pin && near) slab->pin(near, what);
  return slab;
}

Slab::Shared Slab::given(void* address, std::size_t bytes, Device device, std::shared_ptr<void> owner) {
  Shared slab(new Slab);
  slab->address_ = address, slab->bytes_ = bytes, slab->device_ = device;
  slab->owner_ = std::move(owner);
  return slab;
}

Slab::~Slab() {
#ifdef MODELSWARMS_CUDA
  if (pinned_) modelswarms_unpin_host(mapping_);
#endif
  if (mapped_) munmap(mapping_, mapped_);
  if (descriptor_ >= 0) close(descriptor_);
}

}  // namespace modelswarms
