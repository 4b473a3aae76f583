// SPDX-License-Identifier: Apache-2.0
// Layer norm (Ba, Kiros and Hinton 2016), alone or with the dropout and the residual sum before it.
//
// A row is read from memory once: the sums over it, the deviations and the result are three passes
// over what then lies in the L1 cache. The variance is that of the deviations from the mean (two
// passes, not the difference of squares), so that a large mean costs no precision. With
//   x^ = (sum - mean) rstd,  g = d_out weight,
// the gradient is d_sum + rstd (g - mean(g) - x^ mean(g x^)), and those of weight and bias are the
// sums of d_out x^ and d_out over the rows, added up in the same pass.
#pragma once

#include "base/over_row.h"
#include "kernels/dropout.h"
#include "kernels/layer_norm_types.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W>
struct LayerNorm {
  using F = Floats<W>;

  template <bool kResidual, bool kDropout>
  static SEQREC_INLINE void normalise_rows(const LayerNormForward& p, std::int64_t first_row,
                                           std::int64_t end_row) {
    const std::int64_t dim = p.dim;
    const float share = 1.0f / static_cast<float>(dim);
    for (std::int64_t row = first_row; row < end_row; ++row) {
      const float* x = p.x + row * dim;
      F total{};
      if constexpr (kResidual) {
        const float* residual = p.residual + row * dim;
        float* sum = p.sum + row * dim;
        if constexpr (kDropout) {
          const DropoutRow<W> drop(p.dropout, row);
          over_row<W>(dim, [&](std::int64_t j, auto part) {
            const F s = part.get(x + j) * drop.factors(j) + part.get(residual + j);
            part.put(sum + j, s);
            total += part.keep(s);
          });
        } else {
          over_row<W>(dim, [&](std::int64_t j, auto part) {
            const F s = part.get(x + j) + part.get(residual + j);
            part.put(sum + j, s);
            total += s;
          });
        }
        x = sum;
      } else {
        over_row<W>(dim, [&](std::int64_t j, auto part) { total += part.get(x + j); });
      }
      const float mean = horizontal_sum<W>(total) * share;
      F squares{};
      over_row<W>(dim, [&](std::int64_t j, auto part) {
        const F d = part.keep(part.get(x + j) - mean);
        squares += d * d;
      });
      const float rstd = 1.0f / __builtin_sqrtf(horizontal_sum<W>(squares) * share + p.eps);
      p.mean[row] = mean;
      p.rstd[row] = rstd;
      float* out = p.out + row * dim;
      over_row<W>(dim, [&](std::int64_t j, auto part) {
        F y = (part.get(x + j) - mean) * rstd;
        if (p.weight != nullptr) y *= part.get(p.weight + j);
        if (p.bias != nullptr) y += part.get(p.bias + j);
        part.put(out + j, y);
      });
    }
  }

  static SEQREC_NOINLINE void forward(const LayerNormForward& p, std::int64_t first_row,
                                      std::int64_t end_row) {
    if (p.residual == nullptr) {
      normalise_rows<false, false>(p, first_row, end_row);
    } else if (p.dropout.threshold == 0) {
      normalise_rows<true, false>(p, first_row, end_row);
    } else {
      normalise_rows<true, true>(p, first_row, end_row);
    }
  }

  static SEQREC_NOINLINE void backward(const LayerNormBackward& p, std::int64_t first_row,
                                       std::int64_t end_row, float* d_weight, float* d_bias) {
    const std::int64_t dim = p.dim;
    const float share = 1.0f / static_cast<float>(dim);
    for (std::int64_t row = first_row; row < end_row; ++row) {
      const float* d_out = p.d_out + row * dim;
      const float* x = p.sum + row * dim;
      const float mean = p.mean[row], rstd = p.rstd[row];
      const auto scaled = [&](std::int64_t j, auto part, F d) {
        return p.weight == nullptr ? d : d * part.get(p.weight + j);
      };
      F total{}, product{};
      over_row<W>(dim, [&](std::int64_t j, auto part) {
        const F d = part.get(d_out + j);
        const F hat = (part.get(x + j) - mean) * rstd;
        part.put(d_weight + j, part.get(d_weight + j) + d * hat);
        part.put(d_bias + j, part.get(d_bias + j) + d);
        const F g = scaled(j, part, d);
        total += g;
        product += g * hat;
      });
      const float mean_g = horizontal_sum<W>(total) * share;
      const float mean_product = horizontal_sum<W>(product) * share;
      float* d_residual = p.d_residual + row * dim;
      over_row<W>(dim, [&](std::int64_t j, auto part) {
        const F hat = (part.get(x + j) - mean) * rstd;
        F d = (scaled(j, part, part.get(d_out + j)) - mean_g - hat * mean_product) * rstd;
        if (p.d_sum != nullptr) d += part.get(p.d_sum + row * dim + j);
        part.put(d_residual + j, d);
      });
      if (p.dx == nullptr) continue;
      const DropoutRow<W> drop(p.dropout, row);
      float* dx = p.dx + row * dim;
      over_row<W>(dim, [&](std::int64_t j, auto part) {
        part.put(dx + j, part.get(d_residual + j) * drop.factors(j));
      });
    }
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
