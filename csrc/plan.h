// How a flat row gets into an engine: the table of its tensors and where the engine keeps them, compiled
// once. Each load is one call and one pass over the row, on all threads.
#pragma once

#include <cstdint>
#include <vector>

#include "dtype.h"

namespace modelswarms {

// A matrix [rows, columns] of a row, from `offset`, its rows `step` elements apart (more than `columns` where
// it is a part of a wider one), and where the engine keeps it: times `scaling`, rows `stride` elements apart.
struct CopyPart {
  std::int64_t offset, rows, columns, step;
  void* place;
  std::int64_t stride;
  double scaling;
};

// A row that is not there: sum over j of mixture[j] * experts[j], rounded as mix() rounds it.
struct RowMixture {
  const void* experts;  // [count, D]
  std::int64_t stride;  // elements from one expert to the next
  std::int64_t count;
  const void* mixture;  // [count], float64 for float64 rows, else float32
};

// row -> places. The row and the places have one dtype.
class WeightCopier {
 public:
  // Throws std::invalid_argument for parts that make no sense.
  WeightCopier(std::vector<CopyPart> parts, DType dtype);
  // The place becomes the row's part times its scaling, rounded to nearest even.
  void load(const void* row) const;
  // The same as mix() into a row and load() of that, bit for bit, without the row.
  void load_mixture(const RowMixture& row) const;
  DType dtype() const { return dtype_; }
  std::int64_t end() const { return end_; }

 private:
  std::vector<CopyPart> parts_;
  std::vector<std::int64_t> starts_;  // elements before each part, and of all
  DType dtype_;
  std::int64_t end_ = 0;  // of what is read of a row
};

// live = base + scaling * B A: A [rank, columns] and B [rows, rank] lie in the row at their offsets, rows of
// A `step` elements apart; base [rows, columns] is contiguous, rows of live are `stride` elements apart.
struct MergePart {
  std::int64_t a, b, rank, rows, columns, step;
  const void* base;
  void* live;
  std::int64_t stride;
  double scaling;
};

// Row, base and live weights have one dtype; sums are float32 (float64 for float64), rounded once.
class LoraMerger {
 public:
  static constexpr std::int64_t kMaxRank = 512;
  // Throws std::invalid_argument for parts that make no sense.
  LoraMerger(std::vector<MergePart> parts, DType dtype);
  void load(const void* row) const;
  // The same as mix() into a row and load() of that, bit for bit, without the row.
  void load_mixture(const RowMixture& row) const;
  DType dtype() const { return dtype_; }
  std::int64_t end() const { return end_; }

 private:
  std::vector<MergePart> parts_;
  std::vector<std::int64_t> starts_;  // weights before each part, and of all
  DType dtype_;
  std::int64_t end_ = 0;  // of what is read of a row
};

}  // namespace modelswarms
