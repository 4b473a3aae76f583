// SPDX-License-Identifier: Apache-2.0
#include "kernels/feed_forward.h"

namespace seqrec {
namespace SEQREC_ISA {

extern const FeedForwardKernels feed_forward_kernels;
const FeedForwardKernels feed_forward_kernels = {
    &FeedForward<SEQREC_LANES>::activate,
    &FeedForward<SEQREC_LANES>::differentiate,
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
