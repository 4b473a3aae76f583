// SPDX-License-Identifier: Apache-2.0
// Pointwise SiLU attention as a whole operation: threads, scratch memory, sums over rows.
#pragma once

#include <cstdint>

#include "isa/kernel_table.h"
#include "kernels/hstu_attention_types.h"

namespace seqrec {

/// What the caller knows; the operation finds the longest row and makes the tables of times.
struct HstuAttentionInput {
  HeadsView<const float> q, k, v;  // [tokens, heads, width]
  const std::int64_t* offsets;     // [rows + 1]
  std::int64_t tokens, rows, heads, width;
  bool causal;
  float scale;
  float normaliser;
  const float* bias;  // [heads, distances], or null
  std::int64_t distances;
  const float* time_bias;  // [heads, buckets], or null
  std::int64_t buckets;
  const std::int64_t* times;        // [tokens]
  const std::int64_t* time_bounds;  // [buckets]: the least time difference of each bucket, or more
};

/// Where the gradients go, each contiguous; those of the tables may be null.
struct HstuAttentionOutput {
  float *q, *k, *v;  // [tokens, heads, width]
  float* bias;       // [heads, distances]
  float* time_bias;  // [heads, buckets]
};

/// Writes out [tokens, heads, width], contiguous.
///
/// Throws std::invalid_argument when the offsets do not run from 0 to `tokens` without decreasing,
/// and std::bad_alloc.
void hstu_attention(const HstuAttentionInput& input, float* out, int threads,
                    const KernelTable& table);

/// The gradients, given that of `out`. They do not depend on the number of threads.
void hstu_attention_backward(const HstuAttentionInput& input, const HeadsView<const float>& d_out,
                             const HstuAttentionOutput& output, int threads,
                             const KernelTable& table);

}  // namespace seqrec
