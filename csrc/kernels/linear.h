// SPDX-License-Identifier: Apache-2.0
// The linear layer: products of gemm.h with a bias and an activation, applied while the outputs are
// still in the first-level cache; the product of its weight's gradient.
#pragma once

#include "base/vecmath.h"
#include "kernels/gemm.h"
#include "kernels/linear_types.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W, Activation A>
SEQREC_INLINE Floats<W> activated(Floats<W> x) {
  if constexpr (A == Activation::kRelu) return maximum<W>(broadcast<W>(0.0f), x);
  if constexpr (A == Activation::kSilu) return silu<W>(x);
  if constexpr (A == Activation::kGelu) return gelu<W>(x);
  if constexpr (A == Activation::kGeluTanh) return gelu_tanh<W>(x);
  if constexpr (A == Activation::kTanh) return tanh<W>(x);
  if constexpr (A == Activation::kSigmoid) return sigmoid<W>(x);
  return x;
}

template <int W>
struct Linear {
  using F = Floats<W>;
  using Product = Gemm<W>;

  static void pack(const float* weight, std::int64_t output_stride, std::int64_t input_stride,
                   std::int64_t outputs, std::int64_t inputs, float* packed) {
    pack_panels<Product::kColumns>(weight, input_stride, output_stride, outputs, inputs, packed);
  }

  template <Activation A>
  static SEQREC_NOINLINE void apply(const float* from, float* to, std::int64_t count) {
    std::int64_t i = 0;
    for (; i + W <= count; i += W) store<W>(to + i, activated<W, A>(load<W>(from + i)));
    if (i < count) {
      store_part<W>(to + i, activated<W, A>(load_part<W>(from + i, count - i)), count - i);
    }
  }

  static void activate(Activation activation, const float* from, float* to, std::int64_t count) {
    switch (activation) {
      case Activation::kNone:
        return apply<Activation::kNone>(from, to, count);
      case Activation::kRelu:
        return apply<Activation::kRelu>(from, to, count);
      case Activation::kSilu:
        return apply<Activation::kSilu>(from, to, count);
      case Activation::kGelu:
        return apply<Activation::kGelu>(from, to, count);
      case Activation::kGeluTanh:
        return apply<Activation::kGeluTanh>(from, to, count);
      case Activation::kTanh:
        return apply<Activation::kTanh>(from, to, count);
      case Activation::kSigmoid:
        return apply<Activation::kSigmoid>(from, to, count);
    }
  }

  /// Rows whose outputs are activated at once: they are still near.
  static constexpr std::int64_t kActivatedRows = 4 * Product::kRows;

  static void multiply(const LinearProblem& p, std::int64_t row, std::int64_t row_end,
                       std::int64_t first, std::int64_t last, float* scratch) {
    const std::int64_t n = first * Product::kColumns;
    const std::int64_t end = last * Product::kColumns;
    const std::int64_t columns = (end < p.outputs ? end : p.outputs) - n;
    const float* packed = p.packed + n * p.inputs;
    const float* bias = p.bias ? p.bias + n : nullptr;
    const bool plain = p.activation == Activation::kNone;
    const std::int64_t step = plain ? row_end - row : kActivatedRows;
    for (; row < row_end; row += step) {
      const std::int64_t rows = row_end - row < step ? row_end - row : step;
      float* y = p.y + row * p.y_stride + n;
      Product::multiply({p.x + row * p.x_stride, p.x_stride, 1}, rows, packed, p.inputs, columns,
                        bias, false, y, p.y_stride, scratch);
      for (std::int64_t r = 0; r < rows && !plain; ++r) {
        activate(p.activation, y + r * p.y_stride, y + r * p.y_stride, columns);
      }
    }
  }

  static void add_transposed(const float* a, std::int64_t a_stride, const float* b,
                             std::int64_t b_stride, std::int64_t tokens, std::int64_t output,
                             std::int64_t output_end, std::int64_t inputs, float* sum,
                             std::int64_t sum_stride, float* slab, float* scratch) {
    for (std::int64_t t = 0; t < tokens; t += kSlabTokens) {
      const std::int64_t part = tokens - t < kSlabTokens ? tokens - t : kSlabTokens;
      pack_panels<Product::kColumns>(b + t * b_stride, b_stride, 1, inputs, part, slab);
      Product::multiply({a + t * a_stride + output, 1, a_stride}, output_end - output, slab, part,
                        inputs, nullptr, true, sum + output * sum_stride, sum_stride, scratch);
    }
  }

  static void add_columns(const float* a, std::int64_t stride, std::int64_t rows,
                          std::int64_t columns, float* sums) {
    for (std::int64_t j = 0; j < columns; j += W) {
      const std::int64_t part = columns - j < W ? columns - j : W;
      // four sums, so that one addition need not wait for the one before; in a part of a vector
      // too, as the columns that share one depend on the number of threads
      F total[4] = {};
      std::int64_t r = 0;
      for (; r + 4 <= rows; r += 4) {
        for (int s = 0; s < 4; ++s) {
          const float* from = a + (r + s) * stride + j;
          total[s] += part == W ? load<W>(from) : load_part<W>(from, part);
        }
      }
      for (; r < rows; ++r) total[0] += load_part<W>(a + r * stride + j, part);
      const F all = (total[0] + total[1]) + (total[2] + total[3]);
      store_part<W>(sums + j, load_part<W>(sums + j, part) + all, part);
    }
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
