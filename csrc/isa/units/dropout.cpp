// SPDX-License-Identifier: Apache-2.0
#include "kernels/dropout.h"

namespace seqrec {
namespace SEQREC_ISA {

extern const DropoutKernels dropout_kernels;
const DropoutKernels dropout_kernels = {
    &apply_dropout<SEQREC_LANES>,
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
