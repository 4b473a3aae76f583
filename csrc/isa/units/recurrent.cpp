// SPDX-License-Identifier: Apache-2.0
#include "kernels/recurrent.h"

namespace seqrec {
namespace SEQREC_ISA {

extern const RecurrentKernels recurrent_kernels;
const RecurrentKernels recurrent_kernels = {
    &RecurrentWeights<SEQREC_LANES>::panels,
    &RecurrentWeights<SEQREC_LANES>::packed_size,
    &recurrent_scratch_size<SEQREC_LANES>,
    &RecurrentWeights<SEQREC_LANES>::pack,
    &recurrent_run<SEQREC_LANES>,
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
