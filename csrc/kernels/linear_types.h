// SPDX-License-Identifier: Apache-2.0
// What the linear layer's kernels and those who call them share: plain data, no functions.
#pragma once

#include <cstdint>

namespace seqrec {

/// What is applied to the outputs of a linear layer.
enum class Activation : std::int32_t { kNone, kRelu, kSilu, kGelu, kGeluTanh, kTanh, kSigmoid };

/// y = activation(x W^T + bias) for a range of rows and of panels.
struct LinearProblem {
  const float* x;         // [rows, inputs], rows x_stride apart
  std::int64_t x_stride;  // at least `inputs`
  const float* packed;    // W^T in panels, see LinearKernels::pack
  const float* bias;      // [outputs rounded up to whole panels], or null
  std::int64_t rows;
  std::int64_t inputs;
  std::int64_t outputs;
  Activation activation;
  float* y;  // [rows, outputs], rows y_stride apart
  std::int64_t y_stride;
};

/// The functions of the operation, compiled for one instruction set.
struct LinearKernels {
  std::int64_t panel;    // columns of W^T side by side in packed form
  std::int64_t tile;     // rows of a full register tile
  std::int64_t scratch;  // floats that multiply() and add_transposed() need

  /// Packs [outputs, inputs] with the given strides; room for whole panels times `inputs`.
  void (*pack)(const float* weight, std::int64_t output_stride, std::int64_t input_stride,
               std::int64_t outputs, std::int64_t inputs, float* packed);

  /// Rows [row, row_end) and columns from panel `first` to `last` of a problem.
  void (*multiply)(const LinearProblem& problem, std::int64_t row, std::int64_t row_end,
                   std::int64_t first, std::int64_t last, float* scratch);

  /// sum[outputs, inputs] += a^T b over `tokens` rows of a [tokens, outputs] and b
  /// [tokens, inputs], for the rows [output, output_end) of the sum. `slab` has room for
  /// kSlabTokens rows of b in panels.
  void (*add_transposed)(const float* a, std::int64_t a_stride, const float* b,
                         std::int64_t b_stride, std::int64_t tokens, std::int64_t output,
                         std::int64_t output_end, std::int64_t inputs, float* sum,
                         std::int64_t sum_stride, float* slab, float* scratch);

  /// sums[j] += sum over rows of a[row, j].
  void (*add_columns)(const float* a, std::int64_t stride, std::int64_t rows, std::int64_t columns,
                      float* sums);
};

/// Rows of b that one step of add_transposed packs.
inline constexpr std::int64_t kSlabTokens = 128;

}  // namespace seqrec
