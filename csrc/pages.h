// Pages of 2 MiB for large rows: fewer of them to look up, and no two rows' pages at odd places.
#pragma once

#include <cstdint>

namespace modelswarms {

constexpr std::uintptr_t kHugePage = 2 * 1024 * 1024;

// Asks the system to back this memory, not touched yet, with huge pages where whole ones fit. It may decline,
// which costs speed and nothing else.
void use_huge_pages(std::uintptr_t address, std::size_t bytes);

}  // namespace modelswarms
