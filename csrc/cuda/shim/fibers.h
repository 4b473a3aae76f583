// SPDX-License-Identifier: Apache-2.0
// Stacks that are switched by hand: a GPU thread costs a few pages and a switch some nanoseconds.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace seqrec {
namespace cuda {
namespace shim {

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kStackBytes = 256 << 10;
#else
constexpr std::size_t kStackBytes = 64 << 10;
#endif

#if defined(__x86_64__)

// The registers that a call keeps go to the stack, the stack pointer to *from; then the same back.
asm(R"(
.text
.hidden seqrec_shim_switch
.globl seqrec_shim_switch
.type seqrec_shim_switch, @function
seqrec_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size seqrec_shim_switch, .-seqrec_shim_switch
)");
extern "C" void seqrec_shim_switch(void** from, void* to);

inline void switch_context(void** from, void* to) { seqrec_shim_switch(from, to); }

/// What a switch to a new stack finds there: six registers, and `entry` to return into.
inline void* new_context(unsigned char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + kStackBytes);
  top -= 1;  // the entry sees the alignment that a call would give it
  top[0] = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  return top;
}

#else

inline void switch_context(void** from, void* to) {
  ucontext_t here;
  *from = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to));
}

inline void* new_context(unsigned char* stack, void (*entry)()) {
  // it lies at the end of the stack that it describes
  constexpr std::size_t kOwn = (sizeof(ucontext_t) + 63) / 64 * 64;
  auto* made = new (stack + kStackBytes - kOwn) ucontext_t;
  getcontext(made);
  made->uc_stack.ss_sp = stack;
  made->uc_stack.ss_size = kStackBytes - kOwn;
  made->uc_link = nullptr;
  makecontext(made, entry, 0);
  return made;
}

#endif

/// Stacks, each above a page that may not be touched; they are kept for the next launch.
class Stacks {
 public:
  unsigned char* take() {
    if (free_.empty()) {
      const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
      void* memory = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) throw std::bad_alloc();
      mprotect(memory, page, PROT_NONE);
      return static_cast<unsigned char*>(memory) + page;
    }
    unsigned char* stack = free_.back();
    free_.pop_back();
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(stack, kStackBytes);
#endif
    return stack;
  }
  void give(unsigned char* stack) { free_.push_back(stack); }

 private:
  std::vector<unsigned char*> free_;
};

}  // namespace shim
}  // namespace cuda
}  // namespace seqrec
