// SPDX-License-Identifier: Apache-2.0
// From the gradient of a hidden state to those of the gates, one token at a time.
//
// With t = phi(c') = h' / o, and dh the gradient of h' from the output and from the step after:
//   lstm: do = dh t,           dc += dh o phi'(c'),
//         df = dc c,           di = dc g,           dg = dc i,       dc <- dc f
//   gru:  dn = dh (1 - z),     dz = dh (h - n),     dr = dn' hn,     dh <- dh z
// Each is multiplied by the derivative of its activation, which the activated gate gives: s (1 - s)
// of a sigmoid, 1 - t^2 of a tanh. For a gru, n' is n before its activation and hn, its hidden
// part, has the gradient n' r.
#pragma once

#include "base/simd.h"
#include "kernels/recurrent_types.h"

namespace seqrec {
namespace SEQREC_ISA {

/// Gate gradients lie in groups of this many units (a cache line), group after group:
/// [gates][units / kGroup][tokens of the chunk][kGroup].
inline constexpr std::int64_t kGroup = 16;

/// Where one token's numbers are read and written.
struct GateGradientToken {
  const float* gates;     // lstm, gru: [G][hidden]
  const float* output;    // rnn, lstm: h'
  const float* hn;        // gru
  const float* h_prev;    // gru
  const float* c_prev;    // lstm
  const float* d_output;  // [hidden]
  float* dh;              // [padded]; in: from the step after; gru, out: the part past the gates
  float* dc;              // lstm: [padded]; in and out
  float* d_gates;         // this token in the first group
  std::ptrdiff_t group_step;
  std::ptrdiff_t gate_step;
  std::int64_t hidden;
  std::int64_t padded;  // hidden, rounded up to whole groups
};

template <int W, CellActivation A>
SEQREC_INLINE Floats<W> slope(Floats<W> y) {
  if constexpr (A == CellActivation::kTanh) {
    return 1.0f - y * y;
  } else {
    return y - y * y;
  }
}

/// The first lanes of a vector: `part` of them, zeros after.
template <int W, bool Whole>
SEQREC_INLINE Floats<W> load_units(const float* p, std::int64_t part) {
  if constexpr (Whole) {
    return load<W>(p);
  } else {
    return load_part<W>(p, part);
  }
}

template <int W, CellActivation A>
struct RnnGradient {
  template <bool Whole>
  static SEQREC_INLINE void units(const GateGradientToken& at, std::int64_t u, std::int64_t part,
                                  float* out) {
    const Floats<W> h = load_units<W, Whole>(at.output + u, part);
    const Floats<W> dh = load<W>(at.dh + u) + load_units<W, Whole>(at.d_output + u, part);
    store<W>(out, dh * slope<W, A>(h));
  }
};

template <int W, CellActivation A>
struct LstmGradient {
  template <bool Whole>
  static SEQREC_INLINE void units(const GateGradientToken& at, std::int64_t u, std::int64_t part,
                                  float* out) {
    const float* gates = at.gates + u;
    const Floats<W> i = load_units<W, Whole>(gates, part);
    const Floats<W> f = load_units<W, Whole>(gates + at.hidden, part);
    const Floats<W> g = load_units<W, Whole>(gates + 2 * at.hidden, part);
    const Floats<W> o = load_units<W, Whole>(gates + 3 * at.hidden, part);
    const Floats<W> h = load_units<W, Whole>(at.output + u, part);
    const Floats<W> c_prev = load_units<W, Whole>(at.c_prev + u, part);
    const Floats<W> dh = load<W>(at.dh + u) + load_units<W, Whole>(at.d_output + u, part);
    // where o vanishes, so has h; NaN passes
    const Floats<W> shown = h / maximum<W>(broadcast<W>(1e-30f), o);
    const Floats<W> dc = dh * o * slope<W, A>(shown) + load<W>(at.dc + u);
    store<W>(at.dc + u, dc * f);
    store<W>(out, dc * g * (i - i * i));
    store<W>(out + at.gate_step, dc * c_prev * (f - f * f));
    store<W>(out + 2 * at.gate_step, dc * i * slope<W, A>(g));
    store<W>(out + 3 * at.gate_step, dh * shown * (o - o * o));
  }
};

/// The gates of a gru are in the order n, r, z, hn: the first three belong to the input weights,
/// the last three to the recurrent ones.
template <int W, CellActivation A>
struct GruGradient {
  template <bool Whole>
  static SEQREC_INLINE void units(const GateGradientToken& at, std::int64_t u, std::int64_t part,
                                  float* out) {
    const float* gates = at.gates + u;
    const Floats<W> r = load_units<W, Whole>(gates, part);
    const Floats<W> z = load_units<W, Whole>(gates + at.hidden, part);
    const Floats<W> n = load_units<W, Whole>(gates + 2 * at.hidden, part);
    const Floats<W> hn = load_units<W, Whole>(at.hn + u, part);
    const Floats<W> h_prev = load_units<W, Whole>(at.h_prev + u, part);
    const Floats<W> dh = load<W>(at.dh + u) + load_units<W, Whole>(at.d_output + u, part);
    store<W>(at.dh + u, dh * z);
    const Floats<W> dn = dh * (1.0f - z) * slope<W, A>(n);
    store<W>(out, dn);
    store<W>(out + at.gate_step, dn * hn * (r - r * r));
    store<W>(out + 2 * at.gate_step, dh * (h_prev - n) * (z - z * z));
    store<W>(out + 3 * at.gate_step, dn * r);
  }
};

/// All units of one token. Units beyond the last get zeros.
template <int W, typename Cell>
SEQREC_NOINLINE void gate_gradients(const GateGradientToken& at) {
  std::int64_t u = 0;
  for (; u + W <= at.hidden; u += W) {
    float* out = at.d_gates + u / kGroup * at.group_step + u % kGroup;
    Cell::template units<true>(at, u, W, out);
  }
  for (; u < at.padded; u += W) {
    const std::int64_t left = at.hidden - u;
    float* out = at.d_gates + u / kGroup * at.group_step + u % kGroup;
    Cell::template units<false>(at, u, left < 0 ? 0 : left, out);
  }
}

}  // namespace SEQREC_ISA
}  // namespace seqrec
