// SPDX-License-Identifier: Apache-2.0
// Layer norm over whole matrices: where the threads and the partial sums are.
#pragma once

#include "isa/kernel_table.h"
#include "kernels/layer_norm_types.h"

namespace seqrec {

/// Normalises all rows on up to `threads` threads.
void layer_norm(const LayerNormForward& problem, std::int64_t rows, int threads,
                const KernelTable& table);

/// The gradients, those of weight and bias ([dim] each) included. They do not depend on the number
/// of threads: rows are added up in shares of a fixed size, and the shares in their order.
///
/// Throws std::bad_alloc.
void layer_norm_backward(const LayerNormBackward& problem, std::int64_t rows, float* d_weight,
                         float* d_bias, int threads, const KernelTable& table);

}  // namespace seqrec
