// SPDX-License-Identifier: Apache-2.0
#define SEQREC_ISA isa_avx2
#define SEQREC_ISA_NAME "avx2"
#define SEQREC_LANES 8
#include "isa/unit.h"

namespace seqrec {
const KernelTable& avx2_kernels() { return isa_avx2::kTable; }
}  // namespace seqrec
