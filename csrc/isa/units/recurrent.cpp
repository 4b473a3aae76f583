// SPDX-License-Identifier: Apache-2.0
#include "kernels/recurrent.h"

#include "kernels/recurrent_fingerprint.h"

namespace seqrec {
namespace SEQREC_ISA {

extern const RecurrentKernels recurrent_kernels;
const RecurrentKernels recurrent_kernels = {
    &RecurrentWeights<SEQREC_LANES>::panels, &RecurrentWeights<SEQREC_LANES>::packed_size,
    &recurrent_scratch_size<SEQREC_LANES>,   &recurrent_cells_size<SEQREC_LANES>,
    &RecurrentWeights<SEQREC_LANES>::pack,   &recurrent_run<SEQREC_LANES>,
    &recurrent_fingerprint<SEQREC_LANES>,
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
