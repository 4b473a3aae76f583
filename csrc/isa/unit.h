// SPDX-License-Identifier: Apache-2.0
// The body of every instruction-set unit: all kernels, once, in the namespace SEQREC_ISA.
//
// No guard on purpose: a unit includes this once, after defining SEQREC_ISA and SEQREC_LANES.
#include "isa/kernel_table.h"
#include "kernels/topk.h"

namespace seqrec {
namespace SEQREC_ISA {

inline constexpr KernelTable kTable = {
    SEQREC_ISA_NAME,
    SEQREC_LANES,
    &Topk<SEQREC_LANES>::chunk_rows,
    &Topk<SEQREC_LANES>::begin,
    &Topk<SEQREC_LANES>::scan,
    &finish_topk<SEQREC_LANES>,
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
