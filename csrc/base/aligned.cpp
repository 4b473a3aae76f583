// SPDX-License-Identifier: Apache-2.0
#include "base/aligned.h"

#include <cstdlib>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

// The address sanitizer watches the heap alone.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SEQREC_HEAP_ALONE 1
#endif
#endif
#if !defined(MAP_ANONYMOUS) || defined(__SANITIZE_ADDRESS__)
#define SEQREC_HEAP_ALONE 1
#endif

namespace seqrec {

void* Heap::take(std::size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, kLinePair, bytes) != 0) throw std::bad_alloc();
  return memory;
}

void Heap::give_back(void* memory, std::size_t) noexcept { std::free(memory); }

#if !defined(SEQREC_HEAP_ALONE)

void* OwnPages::take(std::size_t bytes) {
  if (bytes < kLeast) return Heap::take(bytes);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return memory;
}

void OwnPages::give_back(void* memory, std::size_t bytes) noexcept {
  if (bytes < kLeast) {
    Heap::give_back(memory, bytes);
  } else {
    munmap(memory, bytes);
  }
}

#else

void* OwnPages::take(std::size_t bytes) { return Heap::take(bytes); }
void OwnPages::give_back(void* memory, std::size_t bytes) noexcept {
  Heap::give_back(memory, bytes);
}

#endif

}  // namespace seqrec
