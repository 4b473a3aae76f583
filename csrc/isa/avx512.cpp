// SPDX-License-Identifier: Apache-2.0
#define SEQREC_ISA isa_avx512
#define SEQREC_ISA_NAME "avx512"
#define SEQREC_LANES 16
#include "isa/unit.h"

namespace seqrec {
const KernelTable& avx512_kernels() { return isa_avx512::kTable; }
}  // namespace seqrec
