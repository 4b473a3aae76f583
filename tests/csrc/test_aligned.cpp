// SPDX-License-Identifier: Apache-2.0
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <limits>
#include <utility>

#include "base/aligned.h"
#include "check.h"

namespace {

using seqrec::kLinePair;
using seqrec::OwnPages;
using seqrec::TableBuffer;

#if !defined(__SANITIZE_ADDRESS__)
bool is_mapped(const void* memory) {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  auto* begin = reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(memory) / page * page);
  return msync(begin, 1, MS_ASYNC) == 0 || errno != ENOMEM;
}
#endif

}  // namespace

TEST(tables_of_any_size_can_be_written_and_moved) {
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, OwnPages::kLeast - 1,
                                 OwnPages::kLeast, OwnPages::kLeast + 1, std::size_t{5} << 20}) {
    TableBuffer<char> table(size);
    CHECK(table.size() == size);
    CHECK(reinterpret_cast<std::uintptr_t>(table.data()) % kLinePair == 0);
    std::fill_n(table.data(), size, 'x');
    const char* const at = table.data();
    TableBuffer<char> other(3);
    other = std::move(table);
    const TableBuffer<char> last(std::move(other));
    CHECK(last.data() == at && last.size() == size && other.data() == nullptr);
    CHECK(std::count(at, at + size, 'x') == static_cast<std::ptrdiff_t>(size));
  }
}

#if !defined(__SANITIZE_ADDRESS__)  // its heap ends the program instead
TEST(tables_that_fit_no_memory_throw) {
  int refused = 0;
  for (const std::size_t size :
       {std::numeric_limits<std::size_t>::max() / sizeof(double), std::size_t{1} << 55}) {
    try {
      const TableBuffer<double> table(size);
    } catch (const std::bad_alloc&) {
      ++refused;
    }
  }
  CHECK(refused == 2);
}

TEST(tables_of_size_go_back_to_the_system) {
  for (const std::size_t size : {OwnPages::kLeast, std::size_t{3} << 20}) {
    const char* at;
    {
      TableBuffer<char> table(size);
      std::fill_n(table.data(), size, 'x');
      at = table.data();
      CHECK(is_mapped(at) && is_mapped(at + size - 1));
    }
    CHECK(!is_mapped(at) && !is_mapped(at + size - 1));
  }
}
#endif
