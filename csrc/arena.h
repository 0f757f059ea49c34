// Equal rows in one slab, handed out by number and counted: a row is free again when everyone who holds it
// has let go. Numbers and addresses of rows never change.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "slab.h"

namespace modelswarms {

// Rows of `used` bytes, `stride` bytes apart: an odd multiple of 64, so that the same columns of many rows do
// not share a few lines of the caches (docs/log.md has what they cost).
struct RowShape {
  std::int64_t rows, used, stride;

  // Throws std::invalid_argument for what makes no sense, OutOfMemory for more bytes than can be counted.
  void check() const;
  std::size_t bytes() const { return static_cast<std::size_t>(rows) * static_cast<std::size_t>(stride); }
  std::string in_words() const;
};

// Every function may be called from any thread. Errors name the row and its bytes and change nothing:
// OutOfMemory if all rows are held, std::invalid_argument for a row that is not there or is free.
class Arena {
 public:
  Arena(RowShape shape, Slab::Shared slab);

  const RowShape& shape() const { return shape_; }
  const Slab::Shared& slab() const { return slab_; }
  std::int64_t free() const;
  std::int64_t count(std::int64_t row) const;

  // A free row, which then is held once: the one that was let go last, at first in order.
  std::int64_t acquire();
  void retain(std::int64_t row);
  void release(std::int64_t row);

 private:
  // Both with the mutex held.
  std::int64_t& held(std::int64_t row);
  std::int64_t take();

  std::string name(std::int64_t row) const;

  const RowShape shape_;
  const Slab::Shared slab_;
  mutable std::mutex mutex_;
  std::vector<std::int64_t> counts_;
  std::vector<std::int64_t> free_;  // the next one last
};

}  // namespace modelswarms
