// SPDX-License-Identifier: Apache-2.0
// Linear + cross-entropy as a whole operation: the order of the work, its memory, its threads.
#pragma once

#include "isa/kernel_table.h"

namespace seqrec {

/// sum_i a_i (log of the sum of exp(h_i . w_j + b_j) over the items j - the target's logit).
///
/// With `samples`, the sum is over the target and those of the samples that are not the target, and
/// `log_q_samples` and `log_q_targets` are taken from their logits. Null where there is none.
struct CrossEntropyProblem {
  const float* hidden;          // [tokens, dim]
  const float* weight;          // [items, dim]
  const float* bias;            // [items] or null
  const std::int64_t* targets;  // [tokens], items
  const float* token_weights;   // [tokens], the a_i
  std::int64_t tokens, items, dim;
  const std::int64_t* samples = nullptr;  // [num_samples], items
  std::int64_t num_samples = 0;
  const float* log_q_samples = nullptr;  // [num_samples]
  const float* log_q_targets = nullptr;  // [tokens]
};

/// Where the gradients go, all of them wholly written; null where none is wanted.
struct CrossEntropyGradients {
  float* hidden = nullptr;  // [tokens, dim]
  float* weight = nullptr;  // [items, dim]
  float* bias = nullptr;    // [items]
};

/// Returns the loss and writes the gradients that are wanted.
///
/// Extra memory is about 56 MiB at most (see kKeptMost in the source), beside a copy of the
/// samples' rows where there are samples. The result depends on the number of threads only by
/// rounding, and is always the same for the same number. Throws std::bad_alloc.
float cross_entropy(const CrossEntropyProblem& problem, const CrossEntropyGradients& gradients,
                    int threads, const KernelTable& table);

}  // namespace seqrec
