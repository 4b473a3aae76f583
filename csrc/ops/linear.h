// SPDX-License-Identifier: Apache-2.0
// The linear layer as a whole operation: packing, threads, gradients.
#pragma once

#include "base/aligned.h"
#include "isa/kernel_table.h"

namespace seqrec {

/// A weight in the order that the kernels of one instruction set read, with its bias.
struct PackedLinear {
  const KernelTable* table;
  std::int64_t outputs, inputs;
  AlignedBuffer<float> weight;
  AlignedBuffer<float> bias;  // padded to whole panels; empty where there is none
};

/// Packs W [outputs, inputs], element (o, i) at weight[o * output_stride + i * input_stride].
///
/// Strides other than (inputs, 1) give the transpose or a part of a matrix. `bias` is [outputs] or
/// null. Throws std::bad_alloc.
PackedLinear pack_linear(const float* weight, std::int64_t output_stride, std::int64_t input_stride,
                         std::int64_t outputs, std::int64_t inputs, const float* bias,
                         const KernelTable& table);

/// y[rows, outputs] = activation(x[rows, inputs] W^T + bias), rows the given strides apart.
void linear(const PackedLinear& packed, const float* x, std::int64_t x_stride, std::int64_t rows,
            Activation activation, float* y, std::int64_t y_stride, int threads);

/// sum[outputs, inputs] = a^T b for a [tokens, outputs] and b [tokens, inputs], contiguous, and
/// where `columns` is not null, columns[outputs] = the column sums of a.
///
/// The gradient of a weight and of a bias. Tokens are added in ascending order whatever the number
/// of threads, so that the result does not depend on it.
void weight_gradient(const float* a, const float* b, std::int64_t tokens, std::int64_t outputs,
                     std::int64_t inputs, float* sum, float* columns, int threads,
                     const KernelTable& table);

}  // namespace seqrec
