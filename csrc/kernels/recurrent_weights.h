// SPDX-License-Identifier: Apache-2.0
// The weights of a recurrent layer in the order that the kernels read them.
//
// A panel holds vectors of W units: lstm the gates i, f, g, o and gru the gates r, z, n of the same
// W hidden units, rnn four times W hidden units. The packed array is
//   biases [panels][4][W], input weights [panels][inputs][NV][W], recurrent ones
//   [panels][hidden][NV][W]
// with NV vectors a panel. The biases of both kinds are added up, but for the candidate of the gru:
// r, z, b_n, d_n. Everything is multiplied by the scale of its activation (recurrent_gates.h).
// Units beyond the last are zeros.
#pragma once

#include "base/simd.h"
#include "kernels/recurrent_gates.h"
#include "kernels/recurrent_types.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W>
struct RecurrentWeights {
  static constexpr std::int64_t vectors(RecurrentCell cell) {
    return cell == RecurrentCell::kGru ? 3 : 4;
  }
  static constexpr std::int64_t units(RecurrentCell cell) {
    return cell == RecurrentCell::kRnn ? 4 * W : W;
  }
  static std::int64_t panels(const RecurrentProblem& p) {
    return (p.hidden + units(p.cell) - 1) / units(p.cell);
  }
  static std::int64_t packed_size(const RecurrentProblem& p) {
    return panels(p) * W * (4 + vectors(p.cell) * (p.inputs + p.hidden));
  }

  static float* biases(float* packed, const RecurrentProblem&, std::int64_t panel) {
    return packed + panel * 4 * W;
  }
  static float* inputs(float* packed, const RecurrentProblem& p, std::int64_t panel) {
    return packed + W * (panels(p) * 4 + panel * vectors(p.cell) * p.inputs);
  }
  static float* recurrent(float* packed, const RecurrentProblem& p, std::int64_t panel) {
    return packed +
           W * (panels(p) * (4 + vectors(p.cell) * p.inputs) + panel * vectors(p.cell) * p.hidden);
  }

  /// Writes `width` rows of a weight matrix, transposed, as one vector of a panel.
  static void pack_vector(const float* weight, std::int64_t depth, std::int64_t width, float scale,
                          float* out, std::int64_t vectors) {
    std::int64_t k = 0;
    if (width == W) {
      for (; k + 4 <= depth; k += 4) {
        Floats<W> columns[4];
        transpose4<W>(weight + k, depth, columns);
        for (int j = 0; j < 4; ++j) store<W>(out + (k + j) * vectors * W, columns[j] * scale);
      }
    }
    for (; k < depth; ++k) {
      float* to = out + k * vectors * W;
      for (std::int64_t i = 0; i < width; ++i) to[i] = weight[i * depth + k] * scale;
      for (std::int64_t i = width < 0 ? 0 : width; i < W; ++i) to[i] = 0.0f;
    }
  }

  static void pack(const RecurrentProblem& p, std::int64_t first, std::int64_t end, float* packed) {
    const std::int64_t nv = vectors(p.cell);
    const float activation = p.activation == CellActivation::kTanh ? kTanhScale : kSigmoidScale;
    for (std::int64_t panel = first; panel < end; ++panel) {
      float* bias = biases(packed, p, panel);
      for (std::int64_t v = 0; v < nv; ++v) {
        const bool by_unit = p.cell == RecurrentCell::kRnn;
        const std::int64_t unit = panel * units(p.cell) + (by_unit ? v * W : 0);
        const std::int64_t left = p.hidden - unit;
        const std::int64_t width = left < 0 ? 0 : left < W ? left : W;
        const std::int64_t row = width == 0 ? 0 : unit + (by_unit ? 0 : v * p.hidden);
        const bool candidate = by_unit || v == 2;
        const float scale = candidate ? activation : kSigmoidScale;
        pack_vector(p.w_ih + row * p.inputs, p.inputs, width, scale,
                    inputs(packed, p, panel) + v * W, nv);
        pack_vector(p.w_hh + row * p.hidden, p.hidden, width, scale,
                    recurrent(packed, p, panel) + v * W, nv);
        const bool apart = p.cell == RecurrentCell::kGru && v == 2;
        for (std::int64_t i = 0; i < W; ++i) {
          const float b = p.b_ih != nullptr && i < width ? p.b_ih[row + i] : 0.0f;
          const float d = p.b_hh != nullptr && i < width ? p.b_hh[row + i] : 0.0f;
          bias[v * W + i] = (apart ? b : b + d) * scale;
          if (apart) bias[3 * W + i] = d * scale;
        }
      }
    }
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
