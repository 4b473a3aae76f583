// SPDX-License-Identifier: Apache-2.0
// From the sums of a time step to its gates and the new state, a few rows of one panel at a time.
//
// All weights have been multiplied by -log2(e) (gates, candidates of the sigma cells) or by
// -2 log2(e) (candidates under tanh) when they were packed. A sum t is thus the exponent of
//   sigmoid(u) = 1 / (1 + 2^t)     and     tanh(u) = -(2^t - 1) / ((2^t - 1) + 2),
// which saves a multiplication and the reduction by parts of ln 2. Where nobody asks for the gates
// themselves, fractions are put over one denominator: two divisions a unit instead of five (lstm)
// or three (gru). Exponents are held below 40, so that products of three denominators stay finite;
// a gate is then never below 2^-40.
#pragma once

#include "base/simd.h"
#include "kernels/recurrent_types.h"

namespace seqrec {
namespace SEQREC_ISA {

inline constexpr float kSigmoidScale = -1.44269504f;  // -log2(e)
inline constexpr float kTanhScale = -2.88539008f;     // -2 log2(e)

/// 2^t in parts: (1 + fraction) * power.
template <int W>
struct PowerOfTwo {
  Floats<W> fraction, power;
};

template <int W>
SEQREC_INLINE PowerOfTwo<W> power_of_two(Floats<W> t) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to whole numbers
  // minimum and maximum return their second argument where one is NaN
  t = maximum<W>(broadcast<W>(-40.0f), minimum<W>(broadcast<W>(40.0f), t));
  const Floats<W> shifted = t + kRound;
  const Floats<W> f = t - (shifted - kRound);
  // (2^f - 1) / f on [-0.5, 0.5] by the Remez exchange: relative error 1.1e-8
  Floats<W> p = f * 1.54035128e-4f + 1.33907355e-3f;
  p = p * f + 9.61823749e-3f;
  p = p * f + 5.55035743e-2f;
  p = p * f + 2.40226498e-1f;
  p = p * f + 6.93147188e-1f;
  return {p * f, floats_of<W>((bits_of<W>(shifted) << 23) + (127 << 23))};
}

/// A value as numerator and denominator; the denominator is positive.
template <int W>
struct Fraction {
  Floats<W> top, bottom;
};

/// 1 + 2^t, the denominator of a sigmoid.
template <int W>
SEQREC_INLINE Floats<W> sigmoid_bottom(Floats<W> t) {
  const PowerOfTwo<W> e = power_of_two<W>(t);
  return (e.fraction * e.power + e.power) + 1.0f;
}

/// The cell's activation of a scaled sum.
template <int W, CellActivation A>
SEQREC_INLINE Fraction<W> activation(Floats<W> t) {
  if constexpr (A == CellActivation::kTanh) {
    const PowerOfTwo<W> e = power_of_two<W>(t);
    const Floats<W> less_one = e.fraction * e.power + (e.power - 1.0f);
    return {-less_one, less_one + 2.0f};
  } else {
    return {broadcast<W>(1.0f), sigmoid_bottom<W>(t)};
  }
}

template <CellActivation A>
inline constexpr float kActivationScale = A == CellActivation::kTanh ? kTanhScale : kSigmoidScale;

/// Rows whose sums of one panel are complete: where their state is read and written.
struct GateRows {
  static constexpr int kMaxRows = 32;
  const float* h_prev[kMaxRows];  // gru
  const float* c_prev[kMaxRows];  // lstm
  float* c_next[kMaxRows];        // lstm
  float* output[kMaxRows];
  float* gates[kMaxRows];  // where they are kept: gate g is at g * hidden
  float* hn[kMaxRows];     // gru, where it is kept
  int rows;
  std::int64_t hidden;
  const float* sums;   // [rows][4][W]
  std::int64_t unit;   // the first of the panel; all pointers above are to unit 0
  std::int64_t width;  // units of the panel that exist
};

/// Reads and writes whole vectors, or the part of the last panel that exists.
template <int W, bool Whole>
struct Units {
  static SEQREC_INLINE Floats<W> get(const float* p, std::int64_t width) {
    if constexpr (Whole) {
      return load<W>(p);
    } else {
      return load_part<W>(p, width);
    }
  }
  static SEQREC_INLINE void put(float* p, Floats<W> v, std::int64_t width) {
    if constexpr (Whole) {
      store<W>(p, v);
    } else {
      store_part<W>(p, v, width);
    }
  }
};

template <int W, CellActivation A, bool Keep, bool Whole>
SEQREC_NOINLINE void lstm_gates(const GateRows& at) {
  using U = Units<W, Whole>;
  const std::int64_t width = at.width;
  for (int r = 0; r < at.rows; ++r) {
    const float* sums = at.sums + r * 4 * W;
    const Floats<W> i = sigmoid_bottom<W>(load<W>(sums));
    const Floats<W> f = sigmoid_bottom<W>(load<W>(sums + W));
    const Fraction<W> g = activation<W, A>(load<W>(sums + 2 * W));
    const Floats<W> o = sigmoid_bottom<W>(load<W>(sums + 3 * W));
    const Floats<W> c_prev = U::get(at.c_prev[r] + at.unit, width);
    if constexpr (Keep) {
      const Floats<W> input = 1.0f / i, forget = 1.0f / f, candidate = g.top / g.bottom;
      const Floats<W> output = 1.0f / o;
      const Floats<W> c = forget * c_prev + input * candidate;
      const Fraction<W> shown = activation<W, A>(c * kActivationScale<A>);
      U::put(at.c_next[r] + at.unit, c, width);
      U::put(at.output[r] + at.unit, output * (shown.top / shown.bottom), width);
      float* gates = at.gates[r] + at.unit;
      U::put(gates, input, width);
      U::put(gates + at.hidden, forget, width);
      U::put(gates + 2 * at.hidden, candidate, width);
      U::put(gates + 3 * at.hidden, output, width);
    } else {
      const Floats<W> ig = i * g.bottom;
      const Floats<W> c = (c_prev * ig + g.top * f) / (ig * f);
      const Fraction<W> shown = activation<W, A>(c * kActivationScale<A>);
      U::put(at.c_next[r] + at.unit, c, width);
      U::put(at.output[r] + at.unit, shown.top / (o * shown.bottom), width);
    }
  }
}

/// Sums: r, z, the input part of n, the hidden part of n.
template <int W, CellActivation A, bool Keep, bool Whole>
SEQREC_NOINLINE void gru_gates(const GateRows& at) {
  using U = Units<W, Whole>;
  const std::int64_t width = at.width;
  for (int r = 0; r < at.rows; ++r) {
    const float* sums = at.sums + r * 4 * W;
    const Floats<W> reset = 1.0f / sigmoid_bottom<W>(load<W>(sums));
    const Floats<W> hn = load<W>(sums + 3 * W);
    const Fraction<W> n = activation<W, A>(reset * hn + load<W>(sums + 2 * W));
    const Floats<W> h_prev = U::get(at.h_prev[r] + at.unit, width);
    if constexpr (Keep) {
      const Floats<W> update = 1.0f / sigmoid_bottom<W>(load<W>(sums + W));
      const Floats<W> candidate = n.top / n.bottom;
      U::put(at.output[r] + at.unit, update * (h_prev - candidate) + candidate, width);
      float* gates = at.gates[r] + at.unit;
      U::put(gates, reset, width);
      U::put(gates + at.hidden, update, width);
      U::put(gates + 2 * at.hidden, candidate, width);
      U::put(at.hn[r] + at.unit, hn * (1.0f / kActivationScale<A>), width);
    } else {
      // with Z = 2^t of the update gate: z = 1 / (1 + Z), h' = (Z n + h) / (1 + Z)
      const PowerOfTwo<W> e = power_of_two<W>(load<W>(sums + W));
      const Floats<W> z = e.fraction * e.power + e.power;
      U::put(at.output[r] + at.unit, (h_prev * n.bottom + z * n.top) / ((z + 1.0f) * n.bottom),
             width);
    }
  }
}

/// A panel has four vectors of units; each has its own sum.
template <int W, CellActivation A, bool Whole>
SEQREC_NOINLINE void rnn_gates(const GateRows& at) {
  for (int r = 0; r < at.rows; ++r) {
    for (int v = 0; v < 4; ++v) {
      const std::int64_t left = at.width - v * W;
      if (!Whole && left <= 0) break;
      const Fraction<W> h = activation<W, A>(load<W>(at.sums + (r * 4 + v) * W));
      Units<W, Whole>::put(at.output[r] + at.unit + v * W, h.top / h.bottom, left < W ? left : W);
    }
  }
}

}  // namespace SEQREC_ISA
}  // namespace seqrec
