// Memory for rows on one tier: mapped when it is made, unmapped when the last who holds it lets go. Its
// address never changes in between.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <string>

namespace modelswarms {

// More was asked for than there is; the sentence names what it was for and how many bytes.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::string sentence) : sentence_(std::move(sentence)) {}
  const char* what() const noexcept override { return sentence_.c_str(); }

 private:
  std::string sentence_;
};

// Where memory is, in DLPack's numbers.
struct Device {
  int type = 1;  // a CPU
  int index = 0;
};

class Slab {
 public:
  using Shared = std::shared_ptr<Slab>;

  // Anonymous memory in huge pages where the system has any. `what` stands in the sentence of every error.
  // Throws OutOfMemory.
  static Shared host(std::size_t bytes, const std::string& what);
  // The same, page-locked for copies by a GPU. Throws std::runtime_error without CUDA or if CUDA declines.
  static Shared pinned(std::size_t bytes, const std::string& what);
  // A memory file without a name, all of it there: whoever is given its descriptor maps the same memory, and
  // nothing is left behind by a process that is killed. Throws OutOfMemory, std::system_error.
  static Shared shared(std::size_t bytes, const std::string& what);
  // A file in a folder with its room on the disk; it loses its name at once, so that no end of the process
  // leaves it behind. Throws std::system_error: a full disk does here, and not where rows are written.
  // The first `near` bytes, rounded down to whole pages, lie in memory instead, page-locked if `pin`, and the
  // file has only the rest. Throws std::system_error, OutOfMemory, or std::runtime_error as `pinned` does.
  static Shared file(const std::string& folder, std::size_t bytes, const std::string& what,
                     std::size_t near = 0, bool pin = false);
  // Another's memory file or file, by descriptor (which stays the caller's) or by path. Throws
  // std::system_error, or std::invalid_argument if it has another size.
  static Shared attach(int descriptor, std::size_t bytes, const std::string& what);
  static Shared attach(const std::string& path, std::size_t bytes, const std::string& what);
  // Memory that `owner` keeps alive, on any device.
  static Shared given(void* address, std::size_t bytes, Device device, std::shared_ptr<void> owner);

  ~Slab();
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;

  char* address() const { return static_cast<char*>(address_); }
  std::size_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  // Of a shared or attached slab or a file, also where that is only a part of the slab; -1 of others.
  int descriptor() const { return descriptor_; }

 private:
  Slab() = default;
  // The first `near` bytes anonymous, the rest with these flags from the descriptor.
  void map(int flags, const std::string& what, std::size_t near = 0);
  void pin(std::size_t bytes, const std::string& what);

  void* address_ = nullptr;
  std::size_t bytes_ = 0;
  Device device_;
  int descriptor_ = -1;
  bool mapped_ = false;
  bool pinned_ = false;
  std::shared_ptr<void> owner_;
};

}  // namespace modelswarms
