// SPDX-License-Identifier: Apache-2.0
// Rows pass through both products in blocks whose hidden elements stay in the second-level cache;
// without a gradient they never reach memory at all.
//
// Backward, the hidden elements of some thousand tokens are made at a time, as the gradients of the
// weights want another split: each thread adds up its own hidden units over all tokens. Both weight
// gradients are made as [inner, …], so that the narrow matrices x and dy are what is packed.
#include "ops/feed_forward.h"

#include <algorithm>

#include "base/aligned.h"
#include "base/round_up.h"
#include "base/thread_pool.h"
#include "ops/linear.h"

namespace seqrec {
namespace {

constexpr double kRate = 30.0;                    // multiply-adds a nanosecond, on the low side
constexpr std::int64_t kBlockRows = 48;           // a whole number of register tiles everywhere
constexpr std::int64_t kChunkElements = 1 << 19;  // hidden elements made at a time, backward

using Floats = AlignedBuffer<float>;

Floats floats(std::int64_t count) { return Floats(static_cast<std::size_t>(count)); }

/// Rows [row, row + rows) of x W^T + bias, x and y given from that row on.
void multiply(const PackedLinear& packed, const float* x, std::int64_t rows, float* y,
              float* scratch) {
  const LinearKernels& kernel = *packed.table->linear;
  const float* bias = packed.bias.size() > 0 ? packed.bias.data() : nullptr;
  const LinearProblem p{x,    packed.inputs, packed.weight.data(), bias,
                        rows, packed.inputs, packed.outputs,       Activation::kNone,
                        y,    packed.outputs};
  kernel.multiply(p, 0, rows, 0, round_up(packed.outputs, kernel.panel) / kernel.panel, scratch);
}

int worth(const FeedForwardProblem& p, std::int64_t rows, int threads) {
  const double width = static_cast<double>(p.inputs + p.outputs);
  const double inner = static_cast<double>(p.hidden.inner);
  return threads_worth(static_cast<double>(rows) * inner * (width + 20.0) / kRate, threads);
}

}  // namespace

void feed_forward(const FeedForwardProblem& p, float* z, float* y, int threads,
                  const KernelTable& table) {
  if (p.rows == 0) return;
  const std::int64_t inner = p.hidden.inner;
  const PackedLinear up = pack_linear(p.up_weight, p.inputs, 1, inner, p.inputs, p.up_bias, table);
  const PackedLinear down =
      pack_linear(p.down_weight, inner, 1, p.outputs, inner, p.down_bias, table);
  const std::int64_t blocks = (p.rows + kBlockRows - 1) / kBlockRows;
  const std::int64_t shares = std::min<std::int64_t>(worth(p, p.rows, threads), blocks);
  parallel(shares, static_cast<int>(shares), [&](std::int64_t share) {
    Floats scratch = floats(table.linear->scratch);
    Floats hidden = floats(kBlockRows * inner);
    for (std::int64_t b = blocks * share / shares; b < blocks * (share + 1) / shares; ++b) {
      const std::int64_t row = b * kBlockRows, rows = std::min(kBlockRows, p.rows - row);
      float* before = z == nullptr ? hidden.data() : z + row * inner;
      multiply(up, p.x + row * p.inputs, rows, before, scratch.data());
      table.feed_forward->activate(p.hidden, row, rows, before, hidden.data());
      multiply(down, hidden.data(), rows, y + row * p.outputs, scratch.data());
    }
  });
}

void feed_forward_backward(const FeedForwardProblem& p, const float* z, const float* dy,
                           const FeedForwardGradients& out, int threads, const KernelTable& table) {
  const LinearKernels& kernel = *table.linear;
  const std::int64_t inner = p.hidden.inner;
  // the transposes: gradient of the hidden elements from that of y, of x from that of z
  const PackedLinear down = pack_linear(p.down_weight, 1, inner, inner, p.outputs, nullptr, table);
  const PackedLinear up = pack_linear(p.up_weight, 1, p.inputs, p.inputs, inner, nullptr, table);

  const std::int64_t fit = kChunkElements / std::max<std::int64_t>(inner, 1);
  const std::int64_t chunk =
      std::min(std::max(fit / kBlockRows, std::int64_t{1}) * kBlockRows, p.rows);
  Floats hidden = floats(chunk * inner), d = floats(chunk * inner);
  Floats d_down = floats(inner * p.outputs);
  const std::int64_t tiles = (inner + kernel.tile - 1) / kernel.tile;
  std::fill_n(out.d_up_weight, inner * p.inputs, 0.0f);
  std::fill_n(out.d_up_bias, inner, 0.0f);
  std::fill_n(out.d_down_bias, p.outputs, 0.0f);
  std::fill_n(d_down.data(), inner * p.outputs, 0.0f);

  for (std::int64_t first = 0; first < p.rows; first += chunk) {
    const std::int64_t tokens = std::min(chunk, p.rows - first);
    const int use = worth(p, tokens, threads);
    const std::int64_t blocks = (tokens + kBlockRows - 1) / kBlockRows;
    const std::int64_t shares = std::min<std::int64_t>(use, blocks);
    parallel(shares, static_cast<int>(shares), [&](std::int64_t share) {
      Floats scratch = floats(kernel.scratch);
      for (std::int64_t b = blocks * share / shares; b < blocks * (share + 1) / shares; ++b) {
        const std::int64_t at = b * kBlockRows, row = first + at;
        const std::int64_t rows = std::min(kBlockRows, tokens - at);
        float* slope = d.data() + at * inner;
        multiply(down, dy + row * p.outputs, rows, slope, scratch.data());
        table.feed_forward->differentiate(p.hidden, row, rows, z + row * inner,
                                          hidden.data() + at * inner, slope);
        multiply(up, slope, rows, out.dx + row * p.inputs, scratch.data());
      }
    });
    const std::int64_t parts = std::min<std::int64_t>(use, tiles);
    parallel(parts, static_cast<int>(parts), [&](std::int64_t part) {
      Floats scratch = floats(kernel.scratch);
      const std::int64_t widest = std::max(p.inputs, p.outputs);
      Floats slab = floats(round_up(widest, kernel.panel) * kSlabTokens);
      const std::int64_t from = tiles * part / parts * kernel.tile;
      const std::int64_t to = std::min(tiles * (part + 1) / parts * kernel.tile, inner);
      kernel.add_transposed(d.data(), inner, p.x + first * p.inputs, p.inputs, tokens, from, to,
                            p.inputs, out.d_up_weight, p.inputs, slab.data(), scratch.data());
      kernel.add_transposed(hidden.data(), inner, dy + first * p.outputs, p.outputs, tokens, from,
                            to, p.outputs, d_down.data(), p.outputs, slab.data(), scratch.data());
      kernel.add_columns(d.data() + from, inner, tokens, to - from, out.d_up_bias + from);
      if (part == 0) {
        kernel.add_columns(dy + first * p.outputs, p.outputs, tokens, p.outputs, out.d_down_bias);
      }
    });
  }
  for (std::int64_t o = 0; o < p.outputs; ++o) {
    for (std::int64_t i = 0; i < inner; ++i) {
      out.d_down_weight[o * inner + i] = d_down[static_cast<std::size_t>(i * p.outputs + o)];
    }
  }
}

}  // namespace seqrec
