// SPDX-License-Identifier: Apache-2.0
// What a thread does between two looks at what it waits for.
#pragma once

namespace seqrec {

/// Tells the processor that this is a waiting loop.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace seqrec
