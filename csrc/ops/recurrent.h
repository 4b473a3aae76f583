// SPDX-License-Identifier: Apache-2.0
// A recurrent layer forward as a whole operation: order of rows, packing, threads, memory.
#pragma once

#include "isa/kernel_table.h"
#include "kernels/recurrent_types.h"

namespace seqrec {

/// Computes `output`, `h_end`, `c_end` and what is to be kept for the gradient.
///
/// The rows are dealt out to up to `threads` threads by their lengths, and each thread takes its
/// rows through all time steps: threads never wait for one another between steps. The result of a
/// row depends neither on the number of threads nor, but for rounding, on the rows beside it.
/// Throws std::bad_alloc.
void recurrent_forward(const RecurrentProblem& problem, int threads, const KernelTable& table);

}  // namespace seqrec
