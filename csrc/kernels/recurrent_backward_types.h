// SPDX-License-Identifier: Apache-2.0
// What the kernels of the recurrent gradients and their caller share: plain data, no functions.
#pragma once

#include "kernels/recurrent_types.h"

namespace seqrec {

/// One token of a chunk.
struct RecurrentToken {
  std::int64_t token;
  const float* h_prev;  // [hidden], the state before it; null: zeros
};

/// Rows that one thread takes back through time, and its memory.
struct RecurrentBackwardShare {
  const std::int64_t* order;  // [count] rows, longest first; rows without tokens at the end
  std::int64_t count;
  const float* packed;     // weights, as `pack` wrote them
  float* scratch;          // [scratch_size]
  RecurrentToken* tokens;  // [chunk_tokens]
  float** targets;         // [2 * chunk_tokens]
  const char** ahead;      // [ahead_size]
  float* partial;          // [partial_size]: gradients of the weights and biases from these rows
};

/// The functions of the gradients, compiled for one instruction set.
struct RecurrentBackwardKernels {
  std::int64_t (*packed_size)(const RecurrentProblem& problem);
  std::int64_t (*scratch_size)(const RecurrentProblem& problem);
  std::int64_t (*chunk_tokens)(const RecurrentProblem& problem);
  std::int64_t (*ahead_size)(const RecurrentProblem& problem);
  std::int64_t (*partial_size)(const RecurrentProblem& problem);
  std::int64_t (*groups)(const RecurrentProblem& problem);
  void (*pack)(const RecurrentProblem& problem, float* packed);
  void (*run)(const RecurrentProblem& problem, const RecurrentGradients& gradients,
              const RecurrentBackwardShare& share);
  /// Adds `count` partials, each [partial_size], in their order; groups `first` to `end` of gates.
  void (*sum)(const RecurrentProblem& problem, const RecurrentGradients& gradients,
              const float* partials, std::int64_t count, std::int64_t first, std::int64_t end);
};

}  // namespace seqrec
