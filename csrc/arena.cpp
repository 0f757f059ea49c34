#include "arena.h"

#include <cstring>
#include <numeric>
#include <stdexcept>

namespace modelswarms {

std::string RowShape::in_words() const {
  return std::to_string(rows) + (rows == 1 ? " row of " : " rows of ") + std::to_string(used) + " bytes";
}

void RowShape::check() const {
  if (rows < 1 || used < 1)
    throw std::invalid_argument("An arena holds at least one row of one byte, not " + in_words() + ".");
  if (stride < used || stride % 64 != 0 || stride / 64 % 2 == 0)
    throw std::invalid_argument(in_words() + " cannot be " + std::to_string(stride) +
                                " bytes apart: it has to be an odd multiple of 64 that holds a row.");
  std::int64_t all;
  if (__builtin_mul_overflow(rows, stride, &all))
    throw OutOfMemory(in_words() + " are more than there can be.");
}

Arena::Arena(RowShape shape, Slab::Shared slab) : shape_(shape), slab_(std::move(slab)) {
  shape_.check();
  if (slab_->bytes() < shape_.bytes())
    throw std::invalid_argument(shape_.in_words() + " take " + std::to_string(shape_.bytes()) +
                                " bytes, but there are " + std::to_string(slab_->bytes()) + ".");
  counts_.assign(shape_.rows, 0);
  free_.resize(shape_.rows);
  std::iota(free_.rbegin(), free_.rend(), 0);
}

std::string Arena::name(std::int64_t row) const {
  return "Row " + std::to_string(row) + " of " + std::to_string(shape_.used) + " bytes";
}

std::int64_t& Arena::held(std::int64_t row) {
  if (row < 0 || row >= shape_.rows)
    throw std::invalid_argument(name(row) + " does not exist: there are " + std::to_string(shape_.rows) +
                                ".");
  if (counts_[row] == 0)
    throw std::invalid_argument(name(row) + " is free: it was released as often as it was acquired.");
  return counts_[row];
}

std::int64_t Arena::take() {
  if (free_.empty())
    throw OutOfMemory("No row is free: " + shape_.in_words() + " are all held; release one or make more.");
  const std::int64_t row = free_.back();
  free_.pop_back();
  counts_[row] = 1;
  return row;
}

std::int64_t Arena::free() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<std::int64_t>(free_.size());
}

std::int64_t Arena::count(std::int64_t row) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (row < 0 || row >= shape_.rows)
    throw std::invalid_argument(name(row) + " does not exist: there are " + std::to_string(shape_.rows) +
                                ".");
  return counts_[row];
}

std::int64_t Arena::acquire() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return take();
}

void Arena::retain(std::int64_t row) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++held(row);
}

void Arena::release(std::int64_t row) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (--held(row) == 0) free_.push_back(row);
}

}  // namespace modelswarms
