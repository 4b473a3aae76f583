// SPDX-License-Identifier: Apache-2.0
// What the kernels of pointwise SiLU attention and those who call them share: plain data.
#pragma once

#include <cstdint>

#include "kernels/heads.h"

namespace seqrec {

/// Tables that give the bucket of a time difference d = |t_i - t_j| without a logarithm.
///
/// An octave of d is cut into 8 cells, so narrow that at most one bucket begins inside each.
/// `cells` holds the bucket of the least d of a cell, `bounds` the least d of a bucket.
struct TimeBuckets {
  const std::int32_t* cells;    // [kTimeCells]
  const std::uint64_t* bounds;  // [buckets + 1], the last one larger than any difference
};
inline constexpr std::int64_t kTimeCells = 64 * 8;

/// out_i = sum over j of silu(scale q_i . k_j + bias_ij) / normaliser * v_j, row by row.
///
/// bias_ij = bias[head, min(|i - j|, distances - 1)] + time_bias[head, bucket of |t_i - t_j|].
struct HstuAttentionProblem {
  HeadsView<const float> q, k, v;
  const std::int64_t* offsets;  // [rows + 1]
  std::int64_t rows;
  std::int64_t heads;
  std::int64_t width;
  std::int64_t max_length;  // of the longest row
  bool causal;              // j <= i only
  float scale;
  float normaliser;
  const float* bias;       // [heads, distances], or null
  std::int64_t distances;  // at least 1 where there is a bias
  const float* time_bias;  // [heads, buckets], or null
  std::int64_t buckets;
  const std::int64_t* times;  // [tokens]
  TimeBuckets time_buckets;
};

/// What the backward of one row and head reads and writes.
struct HstuAttentionGradients {
  HeadsView<const float> out;  // the gradient that comes in
  float *q, *k, *v;            // [tokens, heads, width], contiguous; written
  float* bias;                 // [distances], of this head, or null; added to
  float* time_bias;            // [buckets], of this head, or null; added to
};

/// The functions of the operation, compiled for one instruction set.
struct HstuAttentionKernels {
  /// Floats of scratch memory, on a cache line, that `forward` and `backward` use.
  std::int64_t (*forward_scratch)(const HstuAttentionProblem& problem);
  std::int64_t (*backward_scratch)(const HstuAttentionProblem& problem);
  /// Queries `first .. end` of a row, counted from its start, into out [tokens, heads, width].
  void (*forward)(const HstuAttentionProblem& problem, std::int64_t row, std::int64_t head,
                  std::int64_t first, std::int64_t end, float* scratch, float* out);
  void (*backward)(const HstuAttentionProblem& problem, const HstuAttentionGradients& gradients,
                   std::int64_t row, std::int64_t head, float* scratch);
};

}  // namespace seqrec
