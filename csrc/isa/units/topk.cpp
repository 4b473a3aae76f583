// SPDX-License-Identifier: Apache-2.0
#include "kernels/topk.h"

#include "kernels/topk_int8.h"

namespace seqrec {
namespace SEQREC_ISA {

extern const TopkKernels topk_kernels;
const TopkKernels topk_kernels = {
    &Topk<SEQREC_LANES>::chunk_rows, &Topk<SEQREC_LANES>::begin,
    &Topk<SEQREC_LANES>::scan,       &finish_topk<SEQREC_LANES>,
    &WidenRows<SEQREC_LANES>::widen, &TopkInt8<SEQREC_LANES>::levels,
    &TopkInt8<SEQREC_LANES>::begin,  &TopkInt8<SEQREC_LANES>::scan,
    &TopkInt8<SEQREC_LANES>::settle,
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
