// SPDX-License-Identifier: Apache-2.0
// Elementary functions on vectors of floats.
//
// Polynomials were fitted with the Remez exchange in 40 digits (weights: relative error of exp and
// erf, absolute error of erfc). Errors, measured over all floats against long double in
// tests/csrc/test_vecmath.cpp, in units in the last place (ULP) of the true result:
//
//   exp               1.1   results below 2^-126 become 0
//   exp_of_negative   1.1   likewise
//   expm1_of_positive 2.0
//   tanh              3.0
//   sigmoid           2.5   results below 2^-126 become 0
//   silu              3.0   0 for arguments below -87.3
//   erf               2.5
//   gelu, gelu_tanh   2.0   in ULP of |x|: the factor that vanishes at -infinity is a difference
//
// NaN in, NaN out. Denormal arguments count as they are.
#pragma once

#include "base/simd.h"

namespace seqrec {
namespace SEQREC_ISA {

namespace vecmath {

inline constexpr float kLog2e = 1.44269504f;
inline constexpr float kLn2High = 0.693145752f;   // ln 2 in 16 bits: n * kLn2High is exact
inline constexpr float kLn2Low = 1.42860677e-6f;  // the rest
inline constexpr float kRound = 12582912.0f;      // 1.5 * 2^23: adding it rounds to whole numbers
inline constexpr float kExpLow = -87.3365479f;    // ln 2^-126
inline constexpr float kExpHigh = 88.7228317f;    // the largest float below ln 2^128

/// e^r - 1 for |r| <= ln 2 / 2.
template <int W>
SEQREC_INLINE Floats<W> small_expm1(Floats<W> r) {
  Floats<W> p = r * 1.3950595e-3f + 8.3689177e-3f;
  p = p * r + 4.1666206e-2f;
  p = p * r + 1.66665182e-1f;
  p = p * r + 0.5f;
  return (r * r) * p + r;
}

/// e^x for x in [kExpLow, 88.02]; the caller has made sure of it.
template <int W>
SEQREC_INLINE Floats<W> exp_in_range(Floats<W> x) {
  const Floats<W> shifted = x * kLog2e + kRound;
  const Floats<W> n = shifted - kRound;
  const Floats<W> r = (x - n * kLn2High) - n * kLn2Low;
  const Floats<W> power = floats_of<W>((bits_of<W>(shifted) << 23) + (127 << 23));
  return small_expm1<W>(r) * power + power;
}

}  // namespace vecmath

/// e^x.
template <int W>
SEQREC_INLINE Floats<W> exp(Floats<W> x) {
  using namespace vecmath;
  // NaN passes: minimum and maximum return their second argument then
  const Floats<W> bounded =
      maximum<W>(broadcast<W>(kExpLow), minimum<W>(broadcast<W>(kExpHigh), x));
  const Floats<W> shifted = bounded * kLog2e + kRound;
  const Floats<W> n = shifted - kRound;
  const Floats<W> r = (bounded - n * kLn2High) - n * kLn2Low;
  // 2^n in two factors, as 2^128 is no float
  const Ints<W> whole = bits_of<W>(shifted) - bits_of<W>(broadcast<W>(kRound));
  const Ints<W> half = whole >> 1;
  const Floats<W> power = floats_of<W>((half + 127) << 23);
  Floats<W> y = (small_expm1<W>(r) * power + power) * floats_of<W>((whole - half + 127) << 23);
  y = select<W>(greater<W>(x, broadcast<W>(kExpHigh)), broadcast<W>(__builtin_inff()), y);
  return select<W>(greater<W>(broadcast<W>(kExpLow), x), broadcast<W>(0.0f), y);
}

/// e^x for x <= 0 or NaN; 0 below ln 2^-126. The form for softmax after its maximum is taken off.
template <int W>
SEQREC_INLINE Floats<W> exp_of_negative(Floats<W> x) {
  using namespace vecmath;
  // maximum returns its second argument where one is NaN
  const Floats<W> y = exp_in_range<W>(maximum<W>(broadcast<W>(kExpLow), x));
  return select<W>(greater<W>(broadcast<W>(kExpLow), x), broadcast<W>(0.0f), y);
}

/// e^x - 1 for x in [0, 88].
template <int W>
SEQREC_INLINE Floats<W> expm1_of_positive(Floats<W> x) {
  using namespace vecmath;
  const Floats<W> shifted = x * kLog2e + kRound;
  const Floats<W> n = shifted - kRound;
  const Floats<W> r = (x - n * kLn2High) - n * kLn2Low;
  const Floats<W> power = floats_of<W>((bits_of<W>(shifted) << 23) + (127 << 23));
  return small_expm1<W>(r) * power + (power - 1.0f);
}

/// tanh x = (e^2|x| - 1) / (e^2|x| + 1) with the sign of x.
template <int W>
SEQREC_INLINE Floats<W> tanh(Floats<W> x) {
  // beyond 9.02 the result is 1 to the last place
  const Floats<W> twice = minimum<W>(broadcast<W>(19.0f), absolute<W>(x) * 2.0f);
  const Floats<W> e = expm1_of_positive<W>(twice);
  return with_sign<W>(e / (e + 2.0f), x);
}

/// 1 / (1 + e^-x).
template <int W>
SEQREC_INLINE Floats<W> sigmoid(Floats<W> x) {
  using namespace vecmath;
  // e^-|x| cannot overflow, and both halves have their full precision
  const Floats<W> e = exp_of_negative<W>(-absolute<W>(x));
  const Floats<W> top = select<W>(greater<W>(broadcast<W>(0.0f), x), e, broadcast<W>(1.0f));
  return top / (1.0f + e);
}

/// x sigmoid(x) (Elfwing et al. 2018; also called swish).
template <int W>
SEQREC_INLINE Floats<W> silu(Floats<W> x) {
  return x * sigmoid<W>(x);
}

/// The error function.
template <int W>
SEQREC_INLINE Floats<W> erf(Floats<W> x) {
  const Floats<W> a = absolute<W>(x);
  const Floats<W> t = x * x;
  Floats<W> small = t * 7.8890721e-5f - 8.0208265e-4f;
  small = small * t + 5.1895333e-3f;
  small = small * t - 2.6854444e-2f;
  small = small * t + 1.12836003e-1f;
  small = small * t - 3.7612626e-1f;
  small = small * t + 1.12837911f;
  small = small * x;
  // -log erfc(a) on [1, 4]; from there on erf is 1 to the last place
  const Floats<W> b = minimum<W>(broadcast<W>(4.0f), a);
  Floats<W> large = b * -1.89156417e-4f + 2.97597982e-3f;
  large = large * b - 2.19557583e-2f;
  large = large * b + 1.03361979e-1f;
  large = large * b + 6.37840033e-1f;
  large = large * b + 1.1272794f;
  large = large * b + 2.93052377e-4f;
  large = with_sign<W>(1.0f - vecmath::exp_in_range<W>(-large), x);
  return select<W>(greater<W>(a, broadcast<W>(1.0f)), large, small);
}

/// x Phi(x), Phi the normal distribution (Hendrycks and Gimpel 2016).
template <int W>
SEQREC_INLINE Floats<W> gelu(Floats<W> x) {
  return (x * 0.5f) * (1.0f + erf<W>(x * 0.707106781f));
}

namespace vecmath {
/// sqrt(2 / pi) (x + 0.044715 x^3), the argument of the tanh in gelu_tanh.
template <int W>
SEQREC_INLINE Floats<W> gelu_inner(Floats<W> x) {
  return x * (x * x * 0.0356774081f + 0.797884561f);
}
}  // namespace vecmath

/// gelu by its approximation with tanh (ibid.), (x / 2) (1 + tanh u) = x / (1 + e^-2u).
template <int W>
SEQREC_INLINE Floats<W> gelu_tanh(Floats<W> x) {
  using namespace vecmath;
  const Floats<W> exponent = gelu_inner<W>(x) * -2.0f;
  // NaN passes: minimum and maximum return their second argument then
  const Floats<W> bounded =
      maximum<W>(broadcast<W>(kExpLow), minimum<W>(broadcast<W>(88.0f), exponent));
  const Floats<W> y = x / (1.0f + exp_in_range<W>(bounded));
  return select<W>(greater<W>(exponent, broadcast<W>(88.0f)), broadcast<W>(0.0f), y);
}

}  // namespace SEQREC_ISA
}  // namespace seqrec
