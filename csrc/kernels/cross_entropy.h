// SPDX-License-Identifier: Apache-2.0
// Linear + cross-entropy: the three products and the exponentials between them, tile by tile.
//
// For tokens i and items j, e_ij = exp(h_i . w_j + b_j - m_i) with a reference m_i that is known
// beforehand, so that the exponentials are taken while the logits are still in registers. What
// follows are two products with them: sum_j e_ij w_j and sum_i e_ij h'_i. All three have the shape
// "broadcast a float, multiply a row of vectors": only the logits need their operand (the items)
// transposed, which is done once a block of items and used for all tokens.
#pragma once

#include "base/simd.h"
#include "kernels/cross_entropy_types.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W>
struct CrossEntropy {
  using F = Floats<W>;

  static constexpr std::int64_t kItems = kCrossEntropyItems;
  // Sums in registers: kRows x kVectors of them, beside kRows broadcasts and one column.
  static constexpr int kVectors = 4;
  static constexpr int kRows = W == 16 ? 6 : 3;
  static constexpr int kPanel = kVectors * W;
  static_assert(kItems % kPanel == 0 && kItems % kRows == 0 && kCrossEntropyTokens % kRows == 0,
                "blocks are whole tiles");

  static std::int64_t padded_dim(std::int64_t dim) { return (dim + W - 1) / W * W; }

  /// acc[r][v] += sum over k of a[r * a_row + k * a_step] * b[k * b_step + v * W].
  template <int NV>
  static SEQREC_INLINE void multiply(const float* a, std::ptrdiff_t a_row, std::ptrdiff_t a_step,
                                     const float* b, std::ptrdiff_t b_step, std::int64_t depth,
                                     F (&acc)[kRows][NV]) {
    for (std::int64_t k = 0; k < depth; ++k) {
      F x[kRows];
      for (int r = 0; r < kRows; ++r) x[r] = broadcast<W>(a[r * a_row + k * a_step]);
      for (int v = 0; v < NV; ++v) {
        const F column = load<W>(b + k * b_step + v * W);
        for (int r = 0; r < kRows; ++r) acc[r][v] += x[r] * column;
      }
    }
  }

  // ----------------------------------------------------------------------------- items

  static void pack_items(const float* weight, const float* bias, const std::int64_t* ids,
                         std::int64_t first, std::int64_t count, std::int64_t dim,
                         const CrossEntropyBlock& block) {
    const std::int64_t padded = padded_dim(dim);
    for (std::int64_t j = 0; j < kItems; ++j) {
      float* row = block.rows + j * padded;
      if (j >= count) {
        for (std::int64_t k = 0; k < padded; k += W) store<W>(row + k, F{});
        block.bias[j] = -__builtin_inff();
        continue;
      }
      const float* from = weight + (ids == nullptr ? first + j : ids[first + j]) * dim;
      std::int64_t k = 0;
      for (; k + W <= dim; k += W) store<W>(row + k, load<W>(from + k));
      if (k < dim) store<W>(row + k, load_part<W>(from + k, dim - k));
      block.bias[j] = bias == nullptr ? 0.0f : bias[first + j];
    }
    for (std::int64_t j = 0; j < kItems; j += W) {
      const float* rows = block.rows + j * padded;
      float* to = block.panels + j / kPanel * kPanel * padded + j % kPanel;
      for (std::int64_t k = 0; k < padded; k += 4) {
        F columns[4];
        transpose4<W>(rows + k, padded, columns);
        for (int i = 0; i < 4; ++i) store<W>(to + (k + i) * kPanel, columns[i]);
      }
    }
  }

  static float logit(const float* token, const float* item, float bias, std::int64_t dim) {
    float sum = 0.0f;
    for (std::int64_t k = 0; k < dim; ++k) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
      // by name: the compiler would vectorise the products, and round them before it adds them
      sum = __builtin_fmaf(token[k], item[k], sum);
#else
      sum += token[k] * item[k];
#endif
    }
    return sum + bias;
  }

  // ----------------------------------------------------------------------------- logits

  static constexpr float kLow = -47.0f, kHigh = 120.0f;

  /// 2^-56 e^x, x held in [kLow, kHigh], NaN for NaN. The polynomial is 2^r on [-1/2, 1/2],
  /// error 1.1e-7.
  static SEQREC_INLINE F scaled_exp(F x) {
    constexpr float kLog2e = 1.44269504f;
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to whole numbers
    const F bounded = maximum<W>(broadcast<W>(kLow), minimum<W>(broadcast<W>(kHigh), x));
    const F shifted = bounded * kLog2e + kRound;
    const F n = shifted - kRound;
    const F r = bounded * kLog2e - n;  // one rounding, as the product is not rounded
    F p = r * 1.32647273e-3f + 9.67151299e-3f;
    p = p * r + 5.55073358e-2f;
    p = p * r + 2.40222424e-1f;
    p = p * r + 6.93147004e-1f;
    p = p * r + 1.0f;
    const F power = floats_of<W>((bits_of<W>(shifted) << 23) + ((127 - kCrossEntropyShift) << 23));
    return p * power;
  }

  /// The logits of kRows tokens and one panel, into rows kItems apart. A function of its own: the
  /// constants of the exponential would otherwise take registers from its sums.
  static SEQREC_NOINLINE void logits(const float* tokens, std::int64_t padded, std::int64_t dim,
                                     const float* panel, const float* bias, float* out) {
    // on their way while the sums are made: a buffer of many blocks is not in the cache
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kPanel; v += 16) __builtin_prefetch(out + r * kItems + v, 1);
    }
    F acc[kRows][kVectors] = {};
    multiply<kVectors>(tokens, padded, 1, panel, kPanel, dim, acc);
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        store<W>(out + r * kItems + v * W, acc[r][v] + load<W>(bias + v * W));
      }
    }
  }

  /// Turns logits into exponentials and sums them; those of hidden items become 0 and not tiny.
  template <bool kHidden>
  static SEQREC_INLINE float exponentials_of_row(float* row, float reference, const float* bias) {
    const F shift = broadcast<W>(reference), lowest = broadcast<W>(-3.402823466e38f);
    F sum{};
    for (std::int64_t j = 0; j < kItems; j += W) {
      F e = scaled_exp(load<W>(row + j) - shift);
      if (kHidden) e = select<W>(greater<W>(lowest, load<W>(bias + j)), F{}, e);  // NaN stays
      store<W>(row + j, e);
      sum += e;
    }
    return horizontal_sum<W>(sum);
  }

  static void exponentials(const float* tokens, const float* reference, std::int64_t num_tokens,
                           std::int64_t dim, const CrossEntropyBlock& block, float* out,
                           float* sums) {
    const std::int64_t padded = padded_dim(dim);
    for (std::int64_t panel = 0; panel < kItems; panel += kPanel) {
      for (std::int64_t i = 0; i < num_tokens; i += kRows) {
        logits(tokens + i * padded, padded, dim, block.panels + panel * padded, block.bias + panel,
               out + i * kItems + panel);
      }
    }
    bool hidden = false;
    for (std::int64_t j = 0; j < kItems; ++j) hidden |= block.bias[j] == -__builtin_inff();
    for (std::int64_t i = 0; i < num_tokens; ++i) {
      float* row = out + i * kItems;
      sums[i] = hidden ? exponentials_of_row<true>(row, reference[i], block.bias)
                       : exponentials_of_row<false>(row, reference[i], block.bias);
    }
  }

  static void maxima(const float* tokens, std::int64_t num_tokens, std::int64_t dim,
                     const CrossEntropyBlock& block, float* largest) {
    const std::int64_t padded = padded_dim(dim);
    for (std::int64_t panel = 0; panel < kItems; panel += kPanel) {
      for (std::int64_t i = 0; i < num_tokens; i += kRows) {
        float z[kRows * kItems];
        logits(tokens + i * padded, padded, dim, block.panels + panel * padded, block.bias + panel,
               z);
        for (int r = 0; r < kRows; ++r) {
          for (std::int64_t j = 0; j < kPanel; ++j) {
            const float logit = z[r * kItems + j];
            // once NaN it stays NaN
            if (!(logit <= largest[i + r]) && largest[i + r] == largest[i + r]) {
              largest[i + r] = logit;
            }
          }
        }
      }
    }
  }

  // ----------------------------------------------------------------------------- gradients

  template <int NV>
  static SEQREC_INLINE void add_product(const float* a, std::ptrdiff_t a_row, std::ptrdiff_t a_step,
                                        const float* b, std::int64_t depth, std::int64_t padded,
                                        float* out) {
    F acc[kRows][NV] = {};
    multiply<NV>(a, a_row, a_step, b, padded, depth, acc);
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < NV; ++v) {
        float* to = out + r * padded + v * W;
        store<W>(to, load<W>(to) + acc[r][v]);
      }
    }
  }

  /// out[r, :] += sum over k of a[r * a_row + k * a_step] b[k, :] for `rows` rows.
  static SEQREC_INLINE void add_products(const float* a, std::ptrdiff_t a_row,
                                         std::ptrdiff_t a_step, const float* b, std::int64_t rows,
                                         std::int64_t depth, std::int64_t padded, float* out) {
    std::int64_t d = 0;
    for (; d + kPanel <= padded; d += kPanel) {
      for (std::int64_t i = 0; i < rows; i += kRows) {
        add_product<kVectors>(a + i * a_row, a_row, a_step, b + d, depth, padded,
                              out + i * padded + d);
      }
    }
    for (; d < padded; d += W) {
      for (std::int64_t i = 0; i < rows; i += kRows) {
        add_product<1>(a + i * a_row, a_row, a_step, b + d, depth, padded, out + i * padded + d);
      }
    }
  }

  static void add_token_gradient(const float* exponentials, const CrossEntropyBlock& block,
                                 std::int64_t num_tokens, std::int64_t dim, float* out) {
    add_products(exponentials, kItems, 1, block.rows, num_tokens, kItems, padded_dim(dim), out);
  }

  static void add_item_gradient(const float* exponentials, const float* next, const float* tokens,
                                std::int64_t num_tokens, std::int64_t dim, float* out) {
    const std::int64_t padded = padded_dim(dim);
    // a share of the next exponentials for each tile: read column by column, they would come late
    const std::int64_t share = next == nullptr ? 0 : num_tokens * kRows;
    for (std::int64_t i = 0; i < kItems; i += kRows) {
      for (std::int64_t p = 0; p < share; p += 16) __builtin_prefetch(next + p, 0, 1);
      next += share;
      add_products(exponentials + i, 1, kItems, tokens, kRows, num_tokens, padded,
                   out + i * padded);
    }
  }

  static void add_bias_gradient(const float* exponentials, const float* factors,
                                std::int64_t num_tokens, float* out) {
    for (std::int64_t j = 0; j < kItems; j += kPanel) {
      F acc[kVectors] = {};
      for (std::int64_t i = 0; i < num_tokens; ++i) {
        const F factor = broadcast<W>(factors[i]);
        for (int v = 0; v < kVectors; ++v) {
          acc[v] += factor * load<W>(exponentials + i * kItems + j + v * W);
        }
      }
      for (int v = 0; v < kVectors; ++v) {
        float* to = out + j + v * W;
        store<W>(to, load<W>(to) + acc[v]);
      }
    }
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
