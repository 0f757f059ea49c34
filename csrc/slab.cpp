#include "slab.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
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

std::string in_all(const std::string& what, std::size_t bytes) {
  return what + ", " + std::to_string(bytes) + " bytes in all,";
}

[[noreturn]] void fail(int error, const std::string& sentence) {
  throw std::system_error(error, std::generic_category(), sentence);
}

// Where in the file the part begins that follows so many bytes in memory: after a hole of less than a huge
// page, so that huge pages of the file lie at huge pages of the mapping.
std::size_t offset_of(std::size_t near) { return near % kHugePage; }

// Room on the disk for all of it: without, a write to the mapping would kill the process.
int reserve(int descriptor, std::size_t bytes, std::size_t from = 0) {
  int error;
  do error = posix_fallocate(descriptor, static_cast<off_t>(from), static_cast<off_t>(bytes));
  while (error == EINTR);
  return error;
}

}  // namespace

// At a multiple of a huge page: there a whole one fits from the first row on.
void Slab::map(int flags, const std::string& what, std::size_t near) {
  const std::size_t spare = bytes_ >= kHugePage ? kHugePage : 0;
  if (bytes_ > SIZE_MAX / 2) throw OutOfMemory(in_all(what, bytes_) + " are more than there can be.");
  void* reserved =
      mmap(nullptr, bytes_ + spare, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) throw OutOfMemory(in_all(what, bytes_) + " do not fit into memory.");
  const auto start = reinterpret_cast<std::uintptr_t>(reserved);
  const std::size_t before = spare ? (kHugePage - start % kHugePage) % kHugePage : 0;
  address_ = static_cast<char*>(reserved) + before;
  const auto part = [](char* at, std::size_t bytes, int how, int descriptor, std::size_t from) {
    const auto offset = static_cast<off_t>(from);
    return !bytes ||
           mmap(at, bytes, PROT_READ | PROT_WRITE, how | MAP_FIXED, descriptor, offset) != MAP_FAILED;
  };
  if (!part(address(), near, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ||
      !part(address() + near, bytes_ - near, flags, descriptor_, offset_of(near))) {
    munmap(reserved, bytes_ + spare);
    throw OutOfMemory(in_all(what, bytes_) + " do not fit into memory.");
  }
  mapped_ = true;
  const std::size_t page = page_bytes();
  const std::size_t whole = (bytes_ + page - 1) / page * page;
  if (before) munmap(reserved, before);
  if (bytes_ + spare > before + whole) munmap(address() + whole, bytes_ + spare - before - whole);
#ifdef MADV_HUGEPAGE
  if (spare) madvise(address_, bytes_, MADV_HUGEPAGE);  // the system may decline, which costs speed alone
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
  const int error = modelswarms_pin_host(address_, bytes);
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

Slab::Shared Slab::shared(std::size_t bytes, const std::string& what) {
  Shared slab(new Slab);
  slab->bytes_ = bytes;
  slab->descriptor_ = memfd_create("modelswarms_fast rows", MFD_CLOEXEC);
  if (slab->descriptor_ < 0) fail(errno, in_all(what, bytes) + " get no memory file");
  if (ftruncate(slab->descriptor_, static_cast<off_t>(bytes)) != 0)
    fail(errno, in_all(what, bytes) + " get no memory file");
  slab->map(MAP_SHARED, what);
  if (reserve(slab->descriptor_, bytes) != 0)
    throw OutOfMemory(in_all(what, bytes) + " do not fit into shared memory.");
  return slab;
}

Slab::Shared Slab::file(const std::string& folder, std::size_t bytes, const std::string& what,
                        std::size_t near, bool pin) {
  Shared slab(new Slab);
  slab->bytes_ = bytes;
  near -= near % page_bytes();
  const std::string pattern = folder + "/modelswarms_fast_rows_XXXXXX";
  std::vector<char> path(pattern.c_str(), pattern.c_str() + pattern.size() + 1);
  slab->descriptor_ = mkostemp(path.data(), O_CLOEXEC);
  if (slab->descriptor_ < 0) fail(errno, in_all(what, bytes) + " get no file in " + folder);
  unlink(path.data());
  if (const int error = reserve(slab->descriptor_, bytes - near, offset_of(near)))
    fail(error, (near ? what + ", " + std::to_string(bytes - near) + " bytes of them in a file,"
                      : in_all(what, bytes)) +
                    " have no room in " + folder);
  slab->map(MAP_SHARED, what, near);
  if (pin && near) slab->pin(near, what);
  return slab;
}

Slab::Shared Slab::attach(int descriptor, std::size_t bytes, const std::string& what) {
  Shared slab(new Slab);
  slab->bytes_ = bytes;
  slab->descriptor_ = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (slab->descriptor_ < 0)
    fail(errno, in_all(what, bytes) + " have no descriptor " + std::to_string(descriptor));
  struct stat found;
  if (fstat(slab->descriptor_, &found) != 0) fail(errno, in_all(what, bytes) + " cannot be looked at");
  if (static_cast<std::size_t>(found.st_size) != bytes)
    throw std::invalid_argument(in_all(what, bytes) +
                                " are not what is there: " + std::to_string(found.st_size) + " bytes.");
  slab->map(MAP_SHARED, what);
  return slab;
}

Slab::Shared Slab::attach(const std::string& path, std::size_t bytes, const std::string& what) {
  const int descriptor = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (descriptor < 0) fail(errno, in_all(what, bytes) + " cannot be opened at " + path);
  const std::unique_ptr<const int, void (*)(const int*)> closed(&descriptor,
                                                                [](const int* it) { close(*it); });
  return attach(descriptor, bytes, what);
}

Slab::Shared Slab::given(void* address, std::size_t bytes, Device device, std::shared_ptr<void> owner) {
  Shared slab(new Slab);
  slab->address_ = address, slab->bytes_ = bytes, slab->device_ = device;
  slab->owner_ = std::move(owner);
  return slab;
}

Slab::~Slab() {
#ifdef MODELSWARMS_CUDA
  if (pinned_) modelswarms_unpin_host(address_);
#endif
  if (mapped_) munmap(address_, bytes_);
  if (descriptor_ >= 0) close(descriptor_);
}

}  // namespace modelswarms
