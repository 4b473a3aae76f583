// SPDX-License-Identifier: Apache-2.0
// Products of bytes, summed four at a time into 32-bit lanes.
#pragma once

#include "base/simd.h"

namespace seqrec {
namespace SEQREC_ISA {

/// The largest magnitude of a signed factor for which dot_bytes is exact without kVnni: two
/// products with unsigned bytes must fit a signed 16-bit number (2 * 255 * 64 = 32640).
inline constexpr int kByteLevels = 64;

/// sum[i] += the four unsigned bytes at `bytes + 4 i` times the four signed bytes of `factors`, of
/// which every lane holds the same.
///
/// Exact as long as the factors are within kByteLevels, or within 127 with kVnni, which needs a
/// processor with the AVX-512 VNNI instructions.
template <int W, bool kVnni>
SEQREC_INLINE Ints<W> dot_bytes(Ints<W> sum, const std::uint8_t* bytes, Ints<W> factors) {
  const Ints<W> values = load<W>(reinterpret_cast<const std::int32_t*>(bytes));
#if defined(__AVX512BW__)
  if constexpr (W == 16) {
    const auto factor = reinterpret_cast<__m512i>(factors);
    if constexpr (kVnni) {
      // Assembly, since a function that may use the instruction could not be inlined here.
      asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(values), "v"(factor));
      return sum;
    }
    const __m512i pairs = _mm512_maddubs_epi16(reinterpret_cast<__m512i>(values), factor);
    return sum + reinterpret_cast<Ints<16>>(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
#endif
#if defined(__AVX2__)
  if constexpr (W == 8) {
    const __m256i pairs =
        _mm256_maddubs_epi16(reinterpret_cast<__m256i>(values), reinterpret_cast<__m256i>(factors));
    return sum + reinterpret_cast<Ints<8>>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
#endif
#if defined(__SSE2__)
  if constexpr (W == 4) {
    // Bytes 0 and 2, then bytes 1 and 3, as pairs of 16-bit numbers.
    const auto v = reinterpret_cast<__m128i>(values);
    const auto f = reinterpret_cast<__m128i>(factors);
    const __m128i even = _mm_and_si128(v, _mm_set1_epi32(0x00ff00ff));
    const __m128i even_factors = _mm_srai_epi16(_mm_slli_epi16(f, 8), 8);
    const __m128i odd = _mm_srli_epi16(v, 8);
    const __m128i odd_factors = _mm_srai_epi16(f, 8);
    return sum + reinterpret_cast<Ints<4>>(_mm_madd_epi16(even, even_factors)) +
           reinterpret_cast<Ints<4>>(_mm_madd_epi16(odd, odd_factors));
  }
#endif
  // The shift to the left and back spreads the sign of a byte.
  for (int j = 0; j < 4; ++j) {
    sum += ((values >> (8 * j)) & 255) * ((factors << (24 - 8 * j)) >> 24);
  }
  return sum;
}

/// Whole numbers as floats, rounded to nearest.
template <int W>
SEQREC_INLINE Floats<W> to_floats(Ints<W> v) {
  return __builtin_convertvector(v, Floats<W>);
}

}  // namespace SEQREC_ISA
}  // namespace seqrec
