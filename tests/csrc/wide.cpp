// SPDX-License-Identifier: Apache-2.0
// The kernels at the width of AVX-512, compiled for a narrower machine: what the tests run where
// the processor has no AVX-512, so that the logic of that width is covered everywhere.
#define SEQREC_ISA isa_wide
#define SEQREC_ISA_NAME "wide"
#define SEQREC_LANES 16
#include "isa/unit.h"

namespace seqrec {
const KernelTable& wide_kernels() { return isa_wide::kTable; }
}  // namespace seqrec
