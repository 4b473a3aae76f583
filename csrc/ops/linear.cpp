// SPDX-License-Identifier: Apache-2.0
#include "ops/linear.h"

#include <algorithm>

#include "base/round_up.h"
#include "base/thread_pool.h"

namespace seqrec {
namespace {

// Multiply-adds a nanosecond on one core, on the low side: when in doubt, stay on one thread.
constexpr double kRate = 30.0;

// Nanoseconds of a share of the rows: a thread that comes late leaves its shares to the others.
constexpr double kShare = 300e3;

double cost(std::int64_t a, std::int64_t b, std::int64_t c) {
  return static_cast<double>(a) * static_cast<double>(b) * static_cast<double>(c) / kRate;
}

AlignedBuffer<float> floats(std::int64_t count) {
  return AlignedBuffer<float>(static_cast<std::size_t>(count));
}

}  // namespace

PackedLinear pack_linear(const float* weight, std::int64_t output_stride, std::int64_t input_stride,
                         std::int64_t outputs, std::int64_t inputs, const float* bias,
                         const KernelTable& table) {
  const LinearKernels& kernel = *table.linear;
  const std::int64_t padded = round_up(outputs, kernel.panel);
  PackedLinear packed{&table, outputs, inputs, floats(padded * inputs), {}};
  kernel.pack(weight, output_stride, input_stride, outputs, inputs, packed.weight.data());
  if (bias != nullptr) {
    packed.bias = floats(padded);
    std::copy_n(bias, outputs, packed.bias.data());
    std::fill(packed.bias.data() + outputs, packed.bias.data() + padded, 0.0f);
  }
  return packed;
}

void linear(const PackedLinear& packed, const float* x, std::int64_t x_stride, std::int64_t rows,
            Activation activation, float* y, std::int64_t y_stride, int threads) {
  if (rows == 0 || packed.outputs == 0) return;
  const LinearKernels& kernel = *packed.table->linear;
  const LinearProblem p{x,
                        x_stride,
                        packed.weight.data(),
                        packed.bias.size() > 0 ? packed.bias.data() : nullptr,
                        rows,
                        packed.inputs,
                        packed.outputs,
                        activation,
                        y,
                        y_stride};
  const std::int64_t panels = round_up(packed.outputs, kernel.panel) / kernel.panel;
  const int worth = threads_worth(cost(rows, packed.inputs, packed.outputs), threads);
  const std::int64_t tiles = (rows + kernel.tile - 1) / kernel.tile;
  // Rows are shared where each thread gets some tiles of them, panels otherwise.
  const bool by_rows = tiles >= 2 * worth || tiles >= panels;
  const std::int64_t units = by_rows ? tiles : panels;
  const double work = cost(rows, packed.inputs, packed.outputs);
  const std::int64_t each =
      worth == 1 ? 1 : static_cast<std::int64_t>(std::clamp(work / worth / kShare, 1.0, 8.0));
  const std::int64_t shares = std::min<std::int64_t>(worth * each, units);
  parallel(shares, worth, [&](std::int64_t share) {
    AlignedBuffer<float> scratch = floats(kernel.scratch);
    const std::int64_t from = units * share / shares, to = units * (share + 1) / shares;
    if (by_rows) {
      kernel.multiply(p, from * kernel.tile, std::min(to * kernel.tile, rows), 0, panels,
                      scratch.data());
    } else {
      kernel.multiply(p, 0, rows, from, to, scratch.data());
    }
  });
}

void weight_gradient(const float* a, const float* b, std::int64_t tokens, std::int64_t outputs,
                     std::int64_t inputs, float* sum, float* columns, int threads,
                     const KernelTable& table) {
  const LinearKernels& kernel = *table.linear;
  const std::int64_t tiles = (outputs + kernel.tile - 1) / kernel.tile;
  const int worth = threads_worth(cost(tokens, outputs, inputs), threads);
  const std::int64_t shares = std::min<std::int64_t>(worth, tiles);
  parallel(shares, static_cast<int>(shares), [&](std::int64_t share) {
    AlignedBuffer<float> scratch = floats(kernel.scratch);
    AlignedBuffer<float> slab = floats(round_up(inputs, kernel.panel) * kSlabTokens);
    const std::int64_t from = tiles * share / shares * kernel.tile;
    const std::int64_t to = std::min(tiles * (share + 1) / shares * kernel.tile, outputs);
    std::fill(sum + from * inputs, sum + to * inputs, 0.0f);
    kernel.add_transposed(a, outputs, b, inputs, tokens, from, to, inputs, sum, inputs, slab.data(),
                          scratch.data());
    if (columns != nullptr) {
      std::fill(columns + from, columns + to, 0.0f);
      kernel.add_columns(a + from, outputs, tokens, to - from, columns + from);
    }
  });
}

}  // namespace seqrec
