// SPDX-License-Identifier: Apache-2.0
#include "kernels/recurrent_backward.h"

namespace seqrec {
namespace SEQREC_ISA {

using Backward = RecurrentBackward<SEQREC_LANES>;

extern const RecurrentBackwardKernels recurrent_backward_kernels;
const RecurrentBackwardKernels recurrent_backward_kernels = {
    &Backward::packed_size, &Backward::scratch_size, &Backward::chunk_tokens,
    &Backward::ahead_size,  &Backward::partial_size, &Backward::groups,
    &Backward::pack,        &Backward::run,          &Backward::sum,
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
