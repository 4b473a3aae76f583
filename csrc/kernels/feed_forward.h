// SPDX-License-Identifier: Apache-2.0
// Activation and dropout between the two products of a feed-forward layer, and their gradient.
//
// Value and slope of an activation share their expensive part (tanh, erf or sigmoid), and the
// gradient needs both: the value for the gradient of the second weight, the slope for what flows
// on. So one pass over z makes both, and only z has to be kept from the forward pass.
#pragma once

#include "base/vecmath.h"
#include "kernels/dropout.h"
#include "kernels/feed_forward_types.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W>
struct ValueAndSlope {
  Floats<W> value, slope;
};

template <int W, Activation A>
SEQREC_INLINE ValueAndSlope<W> value_and_slope(Floats<W> x) {
  if constexpr (A == Activation::kRelu) {
    const Mask<W> positive = greater<W>(x, broadcast<W>(0.0f));
    return {maximum<W>(broadcast<W>(0.0f), x),
            select<W>(positive, broadcast<W>(1.0f), broadcast<W>(0.0f))};
  }
  if constexpr (A == Activation::kSilu) {
    const Floats<W> s = sigmoid<W>(x);
    return {x * s, s * (x * (1.0f - s) + 1.0f)};
  }
  if constexpr (A == Activation::kGelu) {
    const Floats<W> density = exp_of_negative<W>(x * x * -0.5f) * 0.398942280f;
    const Floats<W> below = (erf<W>(x * 0.707106781f) + 1.0f) * 0.5f;
    return {x * below, x * density + below};
  }
  if constexpr (A == Activation::kGeluTanh) {
    const Floats<W> t = tanh<W>(vecmath::gelu_inner<W>(x));
    const Floats<W> inner = x * x * (3.0f * 0.0356774081f) + 0.797884561f;
    const Floats<W> below = 0.5f * (1.0f + t);
    return {x * below, (x * 0.5f) * (1.0f - t * t) * inner + below};
  }
  return {x, broadcast<W>(1.0f)};
}

template <int W>
struct FeedForward {
  using F = Floats<W>;

  template <Activation A, bool kSlope>
  static SEQREC_INLINE F element(F z, F factor, F d, F& hidden) {
    const ValueAndSlope<W> both = value_and_slope<W, A>(z);
    hidden = both.value * factor;
    return kSlope ? d * (both.slope * factor) : d;
  }

  template <Activation A, bool kSlope>
  static SEQREC_NOINLINE void rows_of(const HiddenLayer& layer, std::int64_t first_row,
                                      std::int64_t rows, const float* z, float* hidden, float* d) {
    const std::int64_t inner = layer.inner;
    const bool drops = layer.dropout.threshold > 0;
    for (std::int64_t row = 0; row < rows; ++row, z += inner, hidden += inner) {
      const DropoutRow<W> drop(layer.dropout, first_row + row);
      std::int64_t j = 0;
      for (; j + W <= inner; j += W) {
        const F factor = drops ? drop.factors(j) : broadcast<W>(1.0f);
        F value;
        const F slope =
            element<A, kSlope>(load<W>(z + j), factor, kSlope ? load<W>(d + j) : F{}, value);
        store<W>(hidden + j, value);
        if constexpr (kSlope) store<W>(d + j, slope);
      }
      if (j < inner) {
        const std::int64_t rest = inner - j;
        const F factor = drops ? drop.factors(j) : broadcast<W>(1.0f);
        F value;
        const F slope = element<A, kSlope>(load_part<W>(z + j, rest), factor,
                                           kSlope ? load_part<W>(d + j, rest) : F{}, value);
        store_part<W>(hidden + j, value, rest);
        if constexpr (kSlope) store_part<W>(d + j, slope, rest);
      }
      if constexpr (kSlope) d += inner;
    }
  }

  template <bool kSlope>
  static SEQREC_INLINE void any(const HiddenLayer& layer, std::int64_t first_row, std::int64_t rows,
                                const float* z, float* hidden, float* d) {
    switch (layer.activation) {
      case Activation::kRelu:
        return rows_of<Activation::kRelu, kSlope>(layer, first_row, rows, z, hidden, d);
      case Activation::kSilu:
        return rows_of<Activation::kSilu, kSlope>(layer, first_row, rows, z, hidden, d);
      case Activation::kGelu:
        return rows_of<Activation::kGelu, kSlope>(layer, first_row, rows, z, hidden, d);
      default:
        return rows_of<Activation::kGeluTanh, kSlope>(layer, first_row, rows, z, hidden, d);
    }
  }

  static void activate(const HiddenLayer& layer, std::int64_t first_row, std::int64_t rows,
                       const float* z, float* hidden) {
    any<false>(layer, first_row, rows, z, hidden, nullptr);
  }

  static void differentiate(const HiddenLayer& layer, std::int64_t first_row, std::int64_t rows,
                            const float* z, float* hidden, float* d) {
    any<true>(layer, first_row, rows, z, hidden, d);
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
