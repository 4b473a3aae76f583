// SPDX-License-Identifier: Apache-2.0
// The gradients of a recurrent layer as a whole operation: shares of rows, threads, memory.
#pragma once

#include "isa/kernel_table.h"
#include "kernels/recurrent_types.h"

namespace seqrec {

/// Computes the gradients that are not null in `gradients`.
///
/// The rows are split into shares by the problem alone, and the sums of the shares are added up in
/// a fixed order: the result is the same, bit for bit, whatever the number of threads. Throws
/// std::bad_alloc.
void recurrent_backward(const RecurrentProblem& problem, const RecurrentGradients& gradients,
                        int threads, const KernelTable& table);

}  // namespace seqrec
