// SPDX-License-Identifier: Apache-2.0
#include "kernels/peak.h"

namespace seqrec {
namespace SEQREC_ISA {

extern const PeakKernels peak_kernels;
const PeakKernels peak_kernels = {
    &Peak<SEQREC_LANES>::multiply_add,
    Peak<SEQREC_LANES>::kOperations,
    &Peak<SEQREC_LANES>::read,
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
