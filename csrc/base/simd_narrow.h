// SPDX-License-Identifier: Apache-2.0
// Numbers of 16 and 8 bits, read as vectors of float32.
#pragma once

#include "base/simd.h"

namespace seqrec {
namespace SEQREC_ISA {

/// W bfloat16 numbers.
template <int W>
SEQREC_INLINE Floats<W> load_halves(const std::uint16_t* p) {
#if defined(__AVX512F__)
  if constexpr (W == 16) {
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const auto wide = reinterpret_cast<Words<16>>(_mm512_maskz_cvtepu16_epi32(0xFFFF, narrow));
    return reinterpret_cast<Floats<16>>(wide << 16);
  }
#endif
#if defined(__AVX2__)
  if constexpr (W == 8) {
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return reinterpret_cast<Floats<8>>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
  }
#endif
#if defined(__SSE2__)
  if constexpr (W == 4) {
    const __m128i narrow = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return reinterpret_cast<Floats<4>>(_mm_unpacklo_epi16(_mm_setzero_si128(), narrow));
  }
#endif
  Words<W> v{};
  for (int i = 0; i < W; ++i) v[i] = static_cast<std::uint32_t>(p[i]) << 16;
  return reinterpret_cast<Floats<W>>(v);
}

/// W signed bytes as whole numbers.
template <int W>
SEQREC_INLINE Floats<W> load_bytes(const std::int8_t* p) {
#if defined(__AVX512F__)
  if constexpr (W == 16) {
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const auto wide = reinterpret_cast<Ints<16>>(_mm512_maskz_cvtepi8_epi32(0xFFFF, narrow));
    return __builtin_convertvector(wide, Floats<16>);
  }
#endif
#if defined(__AVX2__)
  if constexpr (W == 8) {
    const __m128i narrow = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return __builtin_convertvector(reinterpret_cast<Ints<8>>(_mm256_cvtepi8_epi32(narrow)),
                                   Floats<8>);
  }
#endif
#if defined(__SSE2__)
  if constexpr (W == 4) {
    std::int32_t four;
    __builtin_memcpy(&four, p, sizeof(four));
    __m128i v = _mm_cvtsi32_si128(four);
    v = _mm_unpacklo_epi8(v, v);
    // Each byte now stands in the top quarter of its lane; the shift brings its sign along.
    v = _mm_srai_epi32(_mm_unpacklo_epi16(v, v), 24);
    return __builtin_convertvector(reinterpret_cast<Ints<4>>(v), Floats<4>);
  }
#endif
  Floats<W> v{};
  for (int i = 0; i < W; ++i) v[i] = static_cast<float>(p[i]);
  return v;
}

}  // namespace SEQREC_ISA
}  // namespace seqrec
