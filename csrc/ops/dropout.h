// SPDX-License-Identifier: Apache-2.0
// Dropout with a mask that is a function of a seed.
#pragma once

#include "isa/kernel_table.h"
#include "kernels/dropout_types.h"

namespace seqrec {

/// The plan of dropping with probability `p` in [0, 1); none where `p` is 0.
Dropout make_dropout(std::uint64_t seed, double p);

/// Applies `problem` to all rows on up to `threads` threads.
void dropout(const DropoutProblem& problem, std::int64_t rows, int threads,
             const KernelTable& table);

}  // namespace seqrec
