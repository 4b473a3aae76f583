// SPDX-License-Identifier: Apache-2.0
// What the layer norm kernels and those who call them share: plain data, no functions.
#pragma once

#include <cstdint>

#include "kernels/dropout_types.h"

namespace seqrec {

/// sum = residual + dropout(x); out = (sum - mean) / std * weight + bias, row by row.
///
/// Matrices are [rows, dim], dense. Without a residual, sum is x itself and is not written.
struct LayerNormForward {
  const float* x;
  const float* residual;  // or null
  const float* weight;    // [dim], or null: ones
  const float* bias;      // [dim], or null: zeros
  float* sum;             // null where there is no residual
  float* out;
  float* mean;  // [rows]
  float* rstd;  // [rows]: 1 / sqrt(variance + eps)
  std::int64_t dim;
  float eps;
  Dropout dropout;  // of x; only with a residual
};

/// The gradients of a LayerNormForward.
struct LayerNormBackward {
  const float* d_out;
  const float* d_sum;  // or null: zeros
  const float* sum;    // what was normalised
  const float* mean;
  const float* rstd;
  const float* weight;  // or null: ones
  float* d_residual;    // gradient of what was normalised
  float* dx;            // null where it is the same as d_residual (no dropout)
  std::int64_t dim;
  Dropout dropout;
};

struct LayerNormKernels {
  void (*forward)(const LayerNormForward& p, std::int64_t first_row, std::int64_t end_row);
  /// Adds the rows' part of the gradients of weight and bias to d_weight and d_bias, both [dim].
  void (*backward)(const LayerNormBackward& p, std::int64_t first_row, std::int64_t end_row,
                   float* d_weight, float* d_bias);
};

}  // namespace seqrec
