// SPDX-License-Identifier: Apache-2.0
// The whole operation score + bias + exclude + top-k: where the threads and the memory are.
#pragma once

#include "isa/kernel_table.h"
#include "kernels/topk_types.h"

namespace seqrec {

/// Solves `problem` on up to `threads` threads with the kernels of `table`.
///
/// Writes the k best items of each query by descending score (equal scores: lower id first) into
/// `out_scores` and `out_ids`, both [num_queries, k], -inf and -1 where there are fewer. Items that
/// are blocked, seen, or whose score is NaN or -inf are never chosen. The result depends neither on
/// the number of threads nor on the other queries. Rows of `seen` need not be sorted.
///
/// Throws std::bad_alloc.
void score_topk(const TopkProblem& problem, int threads, const KernelTable& table,
                float* out_scores, std::int64_t* out_ids);

}  // namespace seqrec
