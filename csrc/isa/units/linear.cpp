// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

namespace seqrec {
namespace SEQREC_ISA {

using LinearOfUnit = Linear<SEQREC_LANES>;

extern const LinearKernels linear_kernels;
const LinearKernels linear_kernels = {
    LinearOfUnit::Product::kColumns, LinearOfUnit::Product::kRows,
    LinearOfUnit::Product::kScratch, &LinearOfUnit::pack,
    &LinearOfUnit::multiply,         &LinearOfUnit::add_transposed,
    &LinearOfUnit::add_columns,
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
