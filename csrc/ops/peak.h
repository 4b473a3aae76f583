// SPDX-License-Identifier: Apache-2.0
// What this machine can do at most: the measure by which kernels are judged.
#pragma once

#include <cstdint>

#include "isa/kernel_table.h"

namespace seqrec {

struct Peak {
  double flops_per_second;  // float32 multiply-adds from registers, each counted as two
  double bytes_per_second;  // reading memory that no cache holds
};

/// Measures on `threads` threads with the kernels of `table`: the best of several short runs, since
/// whatever else the machine does can only make one slower. Takes about a fifth of a second.
///
/// `bytes` is the size of the buffer that is read; it should exceed every cache. Throws
/// std::bad_alloc.
Peak measure_peak(int threads, std::int64_t bytes, const KernelTable& table);

}  // namespace seqrec
