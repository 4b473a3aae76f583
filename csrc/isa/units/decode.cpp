// SPDX-License-Identifier: Apache-2.0
#include "kernels/decode.h"

namespace seqrec {
namespace SEQREC_ISA {

extern const DecodeKernels decode_kernels;
const DecodeKernels decode_kernels = {
    &Decode<SEQREC_LANES>::scratch_floats,
    &Decode<SEQREC_LANES>::decode,
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
