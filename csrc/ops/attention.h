// SPDX-License-Identifier: Apache-2.0
// Softmax attention on jagged batches and against a cache: threads, scratch memory, checks.
#pragma once

#include "isa/kernel_table.h"

namespace seqrec {

/// Writes softmax(scale q k^T + mask) v of every row and head to `out`.
///
/// `statistics` is what attention_backward needs; its arrays are written. The result does not
/// depend on the number of threads. Throws std::bad_alloc, and std::invalid_argument where the
/// offsets do not run from 0 to `tokens` without a decrease.
void attention(const AttentionProblem& problem, HeadsView<float> out,
               AttentionStatistics statistics, int threads, const KernelTable& table);

/// Writes the gradients of q, k and v; `gradients.out` and `statistics` are of attention().
void attention_backward(const AttentionProblem& problem, AttentionStatistics statistics,
                        const AttentionGradients& gradients, int threads, const KernelTable& table);

/// Attention of one query a row; a row that has cached nothing gets zeros.
///
/// Throws as attention(), also where a length is negative or exceeds its row.
void decode_attention(const DecodeProblem& problem, std::int64_t cached, HeadsView<float> out,
                      int threads, const KernelTable& table);

}  // namespace seqrec
