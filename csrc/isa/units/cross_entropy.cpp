// SPDX-License-Identifier: Apache-2.0
#include "kernels/cross_entropy.h"

namespace seqrec {
namespace SEQREC_ISA {

using CrossEntropyOfUnit = CrossEntropy<SEQREC_LANES>;

extern const CrossEntropyKernels cross_entropy_kernels;
const CrossEntropyKernels cross_entropy_kernels = {
    &CrossEntropyOfUnit::padded_dim,
    &CrossEntropyOfUnit::pack_items,
    &CrossEntropyOfUnit::logit,
    &CrossEntropyOfUnit::exponentials,
    &CrossEntropyOfUnit::maxima,
    &CrossEntropyOfUnit::add_token_gradient,
    &CrossEntropyOfUnit::add_item_gradient,
    &CrossEntropyOfUnit::add_bias_gradient,
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
