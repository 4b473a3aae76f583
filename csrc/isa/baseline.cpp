// SPDX-License-Identifier: Apache-2.0
#define SEQREC_ISA isa_baseline
#define SEQREC_ISA_NAME "baseline"
#define SEQREC_LANES 4
#include "isa/unit.h"

namespace seqrec {
const KernelTable& baseline_kernels() { return isa_baseline::kTable; }
}  // namespace seqrec
