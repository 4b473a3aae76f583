// SPDX-License-Identifier: Apache-2.0
// y = down(dropout(activation(up(x)))) over all rows, and its gradients.
#pragma once

#include "isa/kernel_table.h"
#include "kernels/feed_forward_types.h"

namespace seqrec {

struct FeedForwardProblem {
  const float* x;            // [rows, inputs]
  const float* up_weight;    // [inner, inputs]
  const float* up_bias;      // [inner]
  const float* down_weight;  // [outputs, inner]
  const float* down_bias;    // [outputs]
  std::int64_t rows;
  std::int64_t inputs;
  std::int64_t outputs;
  HiddenLayer hidden;
};

struct FeedForwardGradients {
  float* dx;             // [rows, inputs]
  float* d_up_weight;    // [inner, inputs]
  float* d_up_bias;      // [inner]
  float* d_down_weight;  // [outputs, inner]
  float* d_down_bias;    // [outputs]
};

/// Writes y [rows, outputs] and, where z is not null, what the activation was applied to,
/// z [rows, inner], for the gradients. Throws std::bad_alloc.
void feed_forward(const FeedForwardProblem& problem, float* z, float* y, int threads,
                  const KernelTable& table);

/// The gradients given z and the gradient of y. Tokens are added in ascending order whatever the
/// number of threads. Throws std::bad_alloc.
void feed_forward_backward(const FeedForwardProblem& problem, const float* z, const float* dy,
                           const FeedForwardGradients& out, int threads, const KernelTable& table);

}  // namespace seqrec
