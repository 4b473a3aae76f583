// SPDX-License-Identifier: Apache-2.0
// Data of softmax attention: plain structs, shared by the kernels of every instruction set.
#pragma once

#include <cstdint>

#include "kernels/heads.h"

namespace seqrec {

/// Self-attention inside each row; row i is the tokens offsets[i] .. offsets[i + 1].
struct AttentionProblem {
  HeadsView<const float> q, k, v;
  const std::int64_t* offsets;  // [rows + 1]
  std::int64_t tokens, rows, heads, width;
  double scale;
  bool causal;
};

/// What the forward leaves for the backward, each [heads, tokens]: the weight of key j for query i
/// is exp2(scale log2(e) q_i . k_j - reference_i) inverse_i.
struct AttentionStatistics {
  float* reference;
  float* inverse;
};

struct AttentionGradients {
  HeadsView<const float> out, d_out;
  HeadsView<float> d_q, d_k, d_v;
};

/// A row and a head, and which will probably come after them: fetched meanwhile.
struct AttentionTask {
  std::int64_t row, head;
  std::int64_t next_row, next_head;  // -1: none
};

/// Each function does one row and one head in scratch memory of its caller. The scratch holds as
/// many floats as the function beside it says for the longest row.
struct AttentionKernels {
  std::int64_t (*forward_scratch)(std::int64_t width, std::int64_t length);
  void (*forward)(const AttentionProblem& p, const AttentionTask& task, float* scratch,
                  HeadsView<float> out, AttentionStatistics statistics);
  std::int64_t (*backward_scratch)(std::int64_t width, std::int64_t length);
  void (*backward)(const AttentionProblem& p, const AttentionTask& task, float* scratch,
                   AttentionStatistics statistics, const AttentionGradients& gradients);
};

}  // namespace seqrec
