// SPDX-License-Identifier: Apache-2.0
#include "base/huge_pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace seqrec {

void advise_huge_pages(void* memory, std::int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kHuge = std::uintptr_t{2} << 20;
  const auto begin = (reinterpret_cast<std::uintptr_t>(memory) + kHuge - 1) / kHuge * kHuge;
  const auto end = (reinterpret_cast<std::uintptr_t>(memory) + static_cast<std::uintptr_t>(bytes)) /
                   kHuge * kHuge;
  // advice only: where it is refused, the pages stay small
  if (memory != nullptr && begin + kHuge < end) {
    (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#else
  (void)memory;
  (void)bytes;
#endif
}

}  // namespace seqrec
