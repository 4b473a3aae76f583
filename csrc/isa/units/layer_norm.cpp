// SPDX-License-Identifier: Apache-2.0
#include "kernels/layer_norm.h"

namespace seqrec {
namespace SEQREC_ISA {

extern const LayerNormKernels layer_norm_kernels;
const LayerNormKernels layer_norm_kernels = {
    &LayerNorm<SEQREC_LANES>::forward,
    &LayerNorm<SEQREC_LANES>::backward,
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
