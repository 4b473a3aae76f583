// SPDX-License-Identifier: Apache-2.0
// The kernels at the width of AVX-512, compiled for a narrower machine: what the tests run where
// the processor has no AVX-512, so that the logic of that width is covered everywhere.
#include "isa/kernel_table.h"

namespace seqrec {

SEQREC_KERNEL_TABLE(isa_wide, "wide", 16)

const KernelTable& wide_kernels() { return isa_wide::table; }

}  // namespace seqrec
