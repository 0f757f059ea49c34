#include "plan.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>

#include "bits.h"
#include "check.h"
#include "columns.h"
#include "simd.h"

namespace modelswarms {
namespace {

using CopyRows = void (*)(const CopyPart&, const void* row, std::int64_t begin, std::int64_t end);
using CopyMixedRows = void (*)(const CopyPart&, const RowMixture&, std::int64_t begin, std::int64_t end);
using MergeRows = void (*)(const MergePart&, const void* row, std::int64_t begin, std::int64_t end);
// `a` is room for the part's A.
using MergeMixedRows = void (*)(const MergePart&, const RowMixture&, void* a, std::int64_t begin,
                                std::int64_t end);

#define MS_KERNEL "plan_kernel.h"
#include "each_simd_level.h"

constexpr std::int64_t kLargestItem = 8;  // bytes of an element

template <class Part>
std::vector<std::int64_t> starts_of(const std::vector<Part>& parts) {
  std::vector<std::int64_t> starts{0};
  for (const Part& part : parts) starts.push_back(plus(starts.back(), times(part.rows, part.columns)));
  times(starts.back(), kLargestItem);  // the bytes of all of them
  return starts;
}

// Elements up to the end of `rows` rows that are `step` apart. Throws if they are more than bytes can count.
std::int64_t end_of(std::int64_t first, std::int64_t rows, std::int64_t step, std::int64_t columns) {
  const std::int64_t end = plus(plus(first, times(rows - 1, step)), columns);
  times(end, kLargestItem);
  return end;
}

// work(part, begin, end) for rows of parts, shared out so that every thread has as many elements. `serial`:
// see for_sections().
template <class Part, class Work>
void for_rows_of_parts(const std::vector<Part>& parts, const std::vector<std::int64_t>& starts,
                       std::int64_t itemsize, std::int64_t serial, const Work& work) {
  const auto section = [&](std::int64_t begin, std::int64_t end) {
    // A row belongs to the thread in whose section it begins.
    auto start = std::upper_bound(starts.begin(), starts.end(), begin) - 1;
    for (auto i = start - starts.begin(); i < static_cast<std::ptrdiff_t>(parts.size()); ++i) {
      if (starts[i] >= end) break;
      const std::int64_t columns = parts[i].columns;
      const auto row_at = [&](std::int64_t element) {
        return std::clamp<std::int64_t>((element - starts[i] + columns - 1) / columns, 0, parts[i].rows);
      };
      const std::int64_t first = row_at(std::max(begin, starts[i])),
                         last = row_at(std::min(end, starts[i + 1]));
      if (first < last) work(parts[i], first, last);
    }
    end_streaming();
  };
  for_sections(starts.back(), starts.back() * itemsize, section, serial);
}

}  // namespace

WeightCopier::WeightCopier(std::vector<CopyPart> parts, DType dtype)
    : parts_(std::move(parts)), starts_(starts_of(parts_)), dtype_(dtype) {
  for (const CopyPart& part : parts_) {
    MS_CHECK(part.offset >= 0 && part.rows > 0 && part.columns > 0 && part.step >= part.columns &&
                 part.stride >= part.columns,
             "a part of a copy plan has no elements, or rows that overlap");
    MS_CHECK(part.place != nullptr, "a part of a copy plan has no place");
    end_ = std::max(end_, end_of(part.offset, part.rows, part.step, part.columns));
    end_of(0, part.rows, part.stride, part.columns);
  }
  MS_CHECK(MS_PICK(load_rows_of)(dtype_) != nullptr, "unknown dtype code");
}

void WeightCopier::load(const void* row) const {
  const CopyRows rows = MS_PICK(load_rows_of)(dtype_);
  for_rows_of_parts(
      parts_, starts_, itemsize(dtype_), kSerialCopyBytes,
      [&](const CopyPart& part, std::int64_t begin, std::int64_t end) { rows(part, row, begin, end); });
}

void WeightCopier::load_mixture(const RowMixture& row) const {
  MS_CHECK(row.count > 0, "a mixture of no experts is no row");
  const CopyMixedRows rows = MS_PICK(load_mixed_rows_of)(dtype_);
  for_rows_of_parts(
      parts_, starts_, itemsize(dtype_), kSerialBytes,
      [&](const CopyPart& part, std::int64_t begin, std::int64_t end) { rows(part, row, begin, end); });
}

LoraMerger::LoraMerger(std::vector<MergePart> parts, DType dtype)
    : parts_(std::move(parts)), starts_(starts_of(parts_)), dtype_(dtype) {
  for (const MergePart& part : parts_) {
    MS_CHECK(part.a >= 0 && part.b >= 0 && part.rank > 0 && part.rows > 0 && part.columns > 0 &&
                 part.step >= part.columns && part.stride >= part.columns,
             "a part of a merge plan has no elements, or rows that overlap");
    MS_CHECK(part.rank <= kMaxRank, "a part of a merge plan has a rank above 512");
    MS_CHECK(part.base != nullptr && part.live != nullptr, "a part of a merge plan has no place");
    end_ = std::max({end_, end_of(part.a, part.rank, part.step, part.columns),
                     end_of(part.b, part.rows, part.rank, part.rank)});
    end_of(0, part.rows, part.stride, part.columns);
  }
  MS_CHECK(MS_PICK(merge_rows_of)(dtype_) != nullptr, "unknown dtype code");
}

void LoraMerger::load(const void* row) const {
  const MergeRows rows = MS_PICK(merge_rows_of)(dtype_);
  for_rows_of_parts(
      parts_, starts_, itemsize(dtype_), kSerialBytes,
      [&](const MergePart& part, std::int64_t begin, std::int64_t end) { rows(part, row, begin, end); });
}

void LoraMerger::load_mixture(const RowMixture& row) const {
  MS_CHECK(row.count > 0, "a mixture of no experts is no row");
  const MergeMixedRows rows = MS_PICK(merge_mixed_rows_of)(dtype_);
  const std::int64_t item = itemsize(dtype_);
  // For each thread, before they begin: memory that is not to be had is an exception here, and the end there.
  std::int64_t largest = 0;
  for (const MergePart& part : parts_)
    largest = std::max(largest, times(times(part.rank, part.columns), item));
  const std::int64_t bytes = times(largest, omp_get_max_threads());
  const std::unique_ptr<char[]> room(new char[static_cast<std::size_t>(bytes)]);
  for_rows_of_parts(parts_, starts_, item, kSerialBytes,
                    [&](const MergePart& part, std::int64_t begin, std::int64_t end) {
                      rows(part, row, room.get() + omp_get_thread_num() * largest, begin, end);
                    });
}

}  // namespace modelswarms
