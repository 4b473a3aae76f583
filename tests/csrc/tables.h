// SPDX-License-Identifier: Apache-2.0
// Every set of kernels that this machine can run, the logic of the widest one among them.
#pragma once

#include <vector>

#include "isa/kernel_table.h"

namespace seqrec {
const KernelTable& wide_kernels();
}

inline std::vector<const seqrec::KernelTable*> all_tables() {
  std::vector<const seqrec::KernelTable*> found;
  for (const std::string& name : seqrec::supported_isas()) {
    found.push_back(&seqrec::kernels_of(name));
  }
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#endif
    found.push_back(&seqrec::wide_kernels());
  return found;
}
