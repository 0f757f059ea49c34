// The C++ of csrc/ without Python, to be run under sanitizers (make sanitize): rows of odd sizes that end
// where their memory does, every SIMD level against the first, and arenas and operators used by several
// threads at once.
//
// Built with -DTHREADS=1 for ThreadSanitizer: it does not know how OpenMP's threads wait for each other, so
// there the operators run on one thread each, and the concurrency is that of std::thread.
#include <omp.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "arena.h"
#include "low_rank.h"
#include "mix.h"
#include "plan.h"
#include "row_name.h"
#include "simd.h"
#include "swarm_update.h"
#include "swiglu.h"

using namespace modelswarms;
using Int = std::int64_t;

namespace {

void expect(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error(what);
}

// Bytes that end where the allocation does, so that AddressSanitizer sees one read too many.
struct Bytes {
  explicit Bytes(std::size_t size) : size(size), data(new char[size]) {}
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data.get());
  }
  std::size_t size;
  std::unique_ptr<char[]> data;
};

// Numbers from -1 to 1 in any type.
Bytes some_rows(Int count, DType dtype, unsigned seed) {
  Bytes rows(static_cast<std::size_t>(count * itemsize(dtype)));
  std::mt19937 draw(seed);
  std::uniform_real_distribution<float> number(-1, 1);
  for (Int i = 0; i < count; ++i) {
    const float value = number(draw);
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (dtype == DType::float32) rows.as<float>()[i] = value;
    if (dtype == DType::float64) rows.as<double>()[i] = value;
    if (dtype == DType::bfloat16) rows.as<std::uint16_t>()[i] = static_cast<std::uint16_t>(bits >> 16);
    if (dtype == DType::float16)
      rows.as<std::uint16_t>()[i] = static_cast<std::uint16_t>(0x2c00 + bits % 1024);
  }
  return rows;
}

void one_thread_each() {
#ifdef THREADS
  omp_set_num_threads(THREADS);
#endif
}

void start_threads(int count, const std::function<void(int)>& work) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&work, i] {
      one_thread_each();  // a new thread does not have the setting of the one that starts it
      work(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

const DType kTypes[] = {DType::float32, DType::bfloat16, DType::float16, DType::float64};
const Int kSizes[] = {1, 7, 63, 64, 65, 1003, 4097, 70'001};

// result(level) at every level gives the same bytes.
template <class Result>
void same_at_every_level(const std::string& what, const Result& result) {
  std::string first;
  for (const std::string& level : simd_levels()) {
    set_simd_level(level);
    const Bytes bytes = result();
    const std::string now(bytes.data.get(), bytes.size);
    if (first.empty()) first = now;
    expect(now == first, what + " differs at " + level);
  }
}

void updates() {
  constexpr Int P = 5;
  const std::vector<Int> table = {0, 1, -1, 2,  0,  3,  3,  4,  4,  6,  5,  7, 8,
                                  9, 6, 10, 10, 11, 11, 10, 12, 13, 14, 14, 15};
  const std::vector<float> coefficients(P * 4, 0.25f);
  for (const DType dtype : kTypes)
    for (const Int size : kSizes)
      for (const Rounding given : {Rounding::nearest, Rounding::stochastic, Rounding::published}) {
        const bool noise = given == Rounding::stochastic;
        const Rounding rounding = noise && itemsize(dtype) != 2 ? Rounding::nearest : given;
        same_at_every_level("update of " + std::to_string(size), [&] {
          Bytes rows = some_rows(16 * size, dtype, 1);
          void* all = rows.as<void>();
          char* best = rows.as<char>() + 15 * size * itemsize(dtype);
          swarm_update({all, size, all, size, all, size, best, best, table.data(), coefficients.data(), 0.5,
                        P, size, dtype, rounding, noise, 7, 3, 64});
          return rows;
        });
      }
}

void mixes() {
  for (const DType dtype : kTypes)
    for (const Int size : kSizes)
      for (const Int particles : {1, 6}) {
        constexpr Int n = 3;
        const Bytes experts = some_rows(n * size, dtype, 2);
        const std::vector<float> narrow(particles * n, 0.3f);
        const std::vector<double> wide(particles * n, 0.3);
        const void* mixture = dtype == DType::float64 ? static_cast<const void*>(wide.data()) : narrow.data();
        same_at_every_level("mix of " + std::to_string(size), [&] {
          Bytes out(static_cast<std::size_t>(particles * size * itemsize(dtype)));
          mix({out.as<void>(), size, experts.as<void>(), size, mixture, particles, n, size, dtype});
          return out;
        });
      }
}

// A mixture of rows that end where their memory does, merged at once and as the row that mix() gives.
void merges_of_mixtures() {
  constexpr Int rank = 3, rows = 29, columns = 37, pitch = 41, a = rank * columns, size = a + rows * rank;
  constexpr Int n = 3;
  const float narrow[] = {0.5f, -0.25f, 1.5f};
  const double wide[] = {0.5, -0.25, 1.5};
  for (const DType dtype : kTypes) {
    const Int item = itemsize(dtype);
    const Bytes experts = some_rows(n * size, dtype, 6), base = some_rows(rows * columns, dtype, 7);
    const void* mixture = dtype == DType::float64 ? static_cast<const void*>(wide) : narrow;
    same_at_every_level("merge of a mixture", [&] {
      Bytes row(static_cast<std::size_t>(size * item));
      mix({row.as<void>(), size, experts.as<void>(), size, mixture, 1, n, size, dtype});
      const auto live = [&](const auto& load) {
        Bytes weights(static_cast<std::size_t>((rows * pitch - (pitch - columns)) * item));
        std::memset(weights.data.get(), 0, weights.size);
        load(LoraMerger(
            {{0, a, rank, rows, columns, columns, base.as<void>(), weights.as<void>(), pitch, 0.5}}, dtype));
        return weights;
      };
      Bytes mixed =
          live([&](const LoraMerger& plan) { plan.load_mixture({experts.as<void>(), size, n, mixture}); });
      const Bytes loaded = live([&](const LoraMerger& plan) { plan.load(row.as<void>()); });
      expect(std::memcmp(mixed.as<char>(), loaded.as<char>(), mixed.size) == 0,
             "a merged mixture has the bits of its merged row");
      return mixed;
    });
  }
}

void activations() {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16})
    for (const Int width : kSizes) {
      constexpr Int rows = 3;
      const Bytes given = some_rows(rows * 2 * width, dtype, 8);
      same_at_every_level("activation of " + std::to_string(width), [&] {
        Bytes out(static_cast<std::size_t>(rows * width * itemsize(dtype)));
        swiglu({out.as<void>(), given.as<void>(), rows, width, dtype});
        return out;
      });
    }
}

// Two fused parts, mixtures and single blocks, on one thread and several.
void low_rank_products() {
  constexpr Int blocks = 3, tokens = 50, outputs = 70;
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16})
    for (const Int inputs : {Int{1}, Int{33}, Int{576}})
      for (const Int rank : {Int{1}, Int{4}, Int{7}}) {
        const Bytes a = some_rows(blocks * 2 * rank * inputs, dtype, 9);
        const Bytes b = some_rows(blocks * 2 * outputs * rank, dtype, 10);
        const Bytes x = some_rows(tokens * inputs, dtype, 11);
        const auto part = [&](Int index) {
          return LowRankPart{a.as<char>() + index * rank * inputs * itemsize(dtype),
                             2 * rank * inputs,
                             inputs,
                             b.as<char>() + index * outputs * rank * itemsize(dtype),
                             2 * outputs * rank,
                             rank,
                             outputs,
                             index * outputs,
                             0.5};
        };
        const LowRank linear({part(0), part(1)}, inputs, blocks, dtype);
        std::vector<Int> order;
        for (Int token = tokens - 1; token >= 3; --token) order.push_back(token);
        const TokenGroups groups(order, {{41, 0, {0.5f, -1.0f, 2.0f}}, {5, 2, {1.0f}}, {1, 1, {1.0f, 0.5f}}});
        same_at_every_level("low rank " + std::to_string(rank), [&] {
          Bytes y = some_rows(tokens * 2 * outputs, dtype, 12);
          std::vector<float> low(order.size() * static_cast<std::size_t>(linear.width()));
          linear.add(groups, {x.as<void>(), inputs, low.data(), y.as<void>(), 2 * outputs});
          return y;
        });
      }
}

// [rows, columns] of a row, in a place with gaps; and a merge of rank 3 into another.
void plans() {
  for (const DType dtype : kTypes) {
    const Int item = itemsize(dtype), a = 3 * 37, b = 29 * 3, size = a + b;
    const Bytes row = some_rows(size, dtype, 3), base = some_rows(29 * 37, dtype, 4);
    same_at_every_level("plans", [&] {
      Bytes places(static_cast<std::size_t>((3 * 40 + 29 * 5) * item)),
          live(static_cast<std::size_t>(29 * 41 * item));
      std::memset(places.data.get(), 0, places.size);
      std::memset(live.data.get(), 0, live.size);
      char* second = places.as<char>() + 3 * 40 * item;
      const WeightCopier copy({{0, 3, 37, 37, places.as<void>(), 40, 1.0}, {a, 29, 3, 3, second, 5, 2.0}},
                              dtype);
      copy.load(row.as<void>());
      LoraMerger({{0, a, 3, 29, 37, 37, base.as<void>(), live.as<void>(), 41, 0.5}}, dtype)
          .load(row.as<void>());
      // Its last columns and rows alone, as one of several ranks has them.
      WeightCopier({{20, 3, 17, 37, places.as<void>(), 40, 2.0}}, dtype).load(row.as<void>());
      LoraMerger({{20, a + 9 * 3, 3, 20, 17, 37, base.as<void>(), live.as<void>(), 41, 0.5}}, dtype)
          .load(row.as<void>());
      return live;
    });
  }
}

// Long pieces, and merged rows of whole lines, are written past the caches if they begin at a line.
void plans_past_the_caches() {
  constexpr Int size = 9001, rank = 4, rows = 13, columns = 64, a = rank * columns;
  for (const DType dtype : kTypes) {
    const Int item = itemsize(dtype);
    const Bytes row = some_rows(size, dtype, 3), base = some_rows(rows * columns, dtype, 4);
    const double wide[] = {1.0};
    const float narrow[] = {1.0f};
    const RowMixture itself{row.as<void>(), size, 1,
                            dtype == DType::float64 ? static_cast<const void*>(wide) : narrow};
    std::string merged;
    for (const Int start : {Int{0}, item, 64 - item}) {
      const Bytes memory(static_cast<std::size_t>(size * item + 128));
      char* const line =
          memory.as<char>() + static_cast<Int>(-reinterpret_cast<std::uintptr_t>(memory.as<char>()) % 64);
      const auto same = [&](const std::string& what) {
        expect(std::memcmp(line + start, row.as<char>(), static_cast<std::size_t>(size * item)) == 0, what);
        std::memset(line + start, 0, static_cast<std::size_t>(size * item));
      };
      for (const std::string& level : simd_levels()) {
        set_simd_level(level);
        const WeightCopier copy({{0, 1, size, size, line + start, size, 1.0}}, dtype);
        copy.load(row.as<void>());
        same("a long copy at " + level);
        copy.load_mixture(itself);
        same("a long mixture at " + level);
        LoraMerger({{0, a, rank, rows, columns, columns, base.as<void>(), line + start, columns, 0.5}}, dtype)
            .load(row.as<void>());
        const std::string now(line + start, static_cast<std::size_t>(rows * columns * item));
        if (merged.empty()) merged = now;
        expect(now == merged, "a merge from byte " + std::to_string(start) + " at " + level);
      }
    }
  }
}

// Sections of the columns by one thread each give the bits of one call: what for_sections relies on.
void updates_side_by_side() {
  constexpr Int P = 3, size = 64 * 50 + 17;
  const std::vector<float> coefficients(P * 4, 0.25f);
  for (const DType dtype : kTypes) {
    const Int item = itemsize(dtype);
    const auto run = [&](const Bytes& rows, Int begin, Int end) {
      char* x = rows.as<char>() + begin * item;
      char *v = x + P * size * item, *p = v + P * size * item, *g = p + P * size * item;
      swarm_update({x, size, v, size, p, size, g, g + size * item, nullptr, coefficients.data(), 0.25, P,
                    end - begin, dtype, item == 2 ? Rounding::stochastic : Rounding::nearest, true, 9, 2,
                    begin});
    };
    const Bytes whole = some_rows((3 * P + 2) * size, dtype, 5),
                parts = some_rows((3 * P + 2) * size, dtype, 5);
    run(whole, 0, size);
    start_threads(2, [&](int i) { i == 0 ? run(parts, 0, 64 * 20) : run(parts, 64 * 20, size); });
    expect(std::memcmp(whole.as<char>(), parts.as<char>(), whole.size) == 0, "sections give the same bits");
  }
}

template <class Error, class Work>
void expect_throws(const Work& work, const std::string& words) {
  try {
    work();
  } catch (const Error& error) {
    return expect(std::string(error.what()).find(words) != std::string::npos, error.what());
  }
  expect(false, "nothing was thrown: " + words);
}

// Rows that many threads take, hold twice and let go: nobody else is given a row that is held.
void arenas() {
  const RowShape shape{6, 1000, 1088};
  for (const Slab::Shared& slab :
       {Slab::host(shape.bytes(), "rows"), Slab::file("/tmp", shape.bytes(), "rows"),
        Slab::file("/tmp", shape.bytes(), "rows", 4096), Slab::host(5 << 20, "large rows")}) {
    Arena arena(shape, slab);
    start_threads(4, [&](int mark) {
      for (int round = 0; round < 300; ++round) {
        try {
          const Int row = arena.acquire();
          char* bytes = slab->address() + row * shape.stride;
          std::memset(bytes, mark, 1000);
          arena.retain(row);
          arena.release(row);
          expect(arena.count(row) == 1 && bytes[0] == mark && bytes[999] == mark, "a row is its holder's");
          arena.release(row);
        } catch (const OutOfMemory&) {
          std::this_thread::yield();
        }
      }
    });
    expect(arena.free() == 6, "every row came back");
    arena.acquire();
    expect_throws<std::invalid_argument>([&] { arena.release(6); }, "Row 6 of 1000 bytes does not exist");
    for (Int row = 0; row < 6; ++row)
      if (arena.count(row) == 0)
        expect_throws<std::invalid_argument>([&] { arena.release(row); }, "of 1000 bytes is free");
  }
  expect_throws<OutOfMemory>([] { Slab::host(std::size_t{1} << 60, "rows"); }, "do not fit into memory");
  Arena one({1, 1000, 1088}, Slab::host(1088, "row"));
  one.acquire();
  expect_throws<OutOfMemory>([&] { one.acquire(); }, "No row is free");
}

// Rows that end where their memory does and begin anywhere; several threads name one row at once.
void names() {
  for (const Int size : {0, 1, 3, 1023, 1024, 1025, 32'768, 32'769, 1'100'000}) {
    const Bytes row = some_rows(size + 1, DType::float16, 5);
    for (const Int shift : {0, 1}) {
      const char* data = row.data.get() + shift;
      const Int bytes = static_cast<Int>(row.size) - shift;
      same_at_every_level("names", [&] {
        Bytes name(sizeof(RowName));
        *name.as<RowName>() = row_name(data, bytes);
        return name;
      });
      const RowName name = row_name(data, bytes);
      start_threads(3, [&](int) { expect(row_name(data, bytes) == name, "a name on another thread"); });
    }
  }
}

}  // namespace

int main() {
  one_thread_each();
  arenas();
  updates();
  mixes();
  activations();
  low_rank_products();
  plans();
  merges_of_mixtures();
  plans_past_the_caches();
  updates_side_by_side();
  names();
  return 0;
}
