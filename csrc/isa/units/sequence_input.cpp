// SPDX-License-Identifier: Apache-2.0
#include "kernels/sequence_input.h"

namespace seqrec {
namespace SEQREC_ISA {

extern const SequenceInputKernels sequence_input_kernels;
const SequenceInputKernels sequence_input_kernels = {&SequenceInputRows<SEQREC_LANES>::rows};

}  // namespace SEQREC_ISA
}  // namespace seqrec
