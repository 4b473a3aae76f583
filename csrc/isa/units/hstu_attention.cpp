// SPDX-License-Identifier: Apache-2.0
#include "kernels/hstu_attention.h"

#include "kernels/hstu_attention_backward.h"

namespace seqrec {
namespace SEQREC_ISA {

extern const HstuAttentionKernels hstu_attention_kernels;
const HstuAttentionKernels hstu_attention_kernels = {
    &HstuAttentionForward<SEQREC_LANES>::scratch,
    &HstuAttentionBackward<SEQREC_LANES>::scratch,
    &HstuAttentionForward<SEQREC_LANES>::run,
    &HstuAttentionBackward<SEQREC_LANES>::run,
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
