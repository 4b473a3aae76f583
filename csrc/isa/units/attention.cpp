// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention.h"

#include "kernels/attention_backward.h"

namespace seqrec {
namespace SEQREC_ISA {

extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels = {
    &Attention<SEQREC_LANES>::scratch_floats,
    &Attention<SEQREC_LANES>::forward,
    &AttentionBackward<SEQREC_LANES>::scratch_floats,
    &AttentionBackward<SEQREC_LANES>::backward,
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
