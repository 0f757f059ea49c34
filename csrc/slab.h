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
  // A file in a folder with its room on the disk; it loses its name at once, so that no end of the process
  // leaves it behind. Throws std::system_error: a full disk does here, and not where rows are written.
  // The first `near` bytes lie in memory instead, page-locked if `pin`, and the file has only the rest: to
  // the byte, since CUDA copies nothing of which a part alone is page-locked. Throws std::system_error,
  // OutOfMemory, or std::runtime_error as `pinned` does.
  static Shared file(const std::string& folder, std::size_t bytes, const std::string& what,
                     std::size_t near = 0, bool pin = false);
  // Memory that `owner` keeps alive, on any device.
  static Shared given(void* address, std::size_t bytes, Device device, std::shared_ptr<void> owner);

  ~Slab();
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;

  char* address() const { return static_cast<char*>(address_); }
  std::size_t bytes() const { return bytes_; }
  Device device() const { return device_; }

 private:
  Slab() = default;
  // The first `near` bytes anonymous, the rest with these flags from the descriptor.
  void map(int flags, const std::string& what, std::size_t near = 0);
  void pin(std::size_t bytes, const std::string& what);

  void* address_ = nullptr;
  std::size_t bytes_ = 0;
  Device device_;
  int descriptor_ = -1;
  void* mapping_ = nullptr;  // whole pages; what is pinned begins there too
  std::size_t mapped_ = 0;
  bool pinned_ = false;
  std::shared_ptr<void> owner_;
};

}  // namespace modelswarms
