// SPDX-License-Identifier: Apache-2.0
// Width-generic SIMD lanes on the vector extensions of GCC and Clang.
//
// `Lanes<W>` is a vector of W floats and its companions. The same source is compiled for every
// instruction set, each time inside its own namespace (SEQREC_ISA), so that no function compiled
// for a wide machine can be taken by the linker for a narrow one. For the same reason this file
// and the kernels use no templates of the standard library.
//
// W may be wider than the machine: the compiler then splits each operation. That is how the logic
// of the widest kernels is tested on narrower machines.
#pragma once

#ifndef SEQREC_ISA
#error "define SEQREC_ISA, the namespace of this instruction set, before including kernels"
#endif

#include <cstddef>
#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define SEQREC_INLINE inline __attribute__((always_inline))
#define SEQREC_NOINLINE __attribute__((noinline))

namespace seqrec {
namespace SEQREC_ISA {

#if defined(__AVX512F__)
inline constexpr int kNativeLanes = 16;
#elif defined(__AVX__)
inline constexpr int kNativeLanes = 8;
#else
inline constexpr int kNativeLanes = 4;
#endif

template <int W>
struct Lanes {
  static_assert(W == 4 || W == 8 || W == 16, "lanes are 4, 8 or 16 floats");
  typedef float F __attribute__((vector_size(W * 4)));
  typedef std::int32_t I __attribute__((vector_size(W * 4)));
  typedef std::uint32_t U __attribute__((vector_size(W * 4)));
  typedef float Unaligned __attribute__((vector_size(W * 4), aligned(4), may_alias));
  typedef std::int32_t UnalignedI __attribute__((vector_size(W * 4), aligned(4), may_alias));
};

template <int W>
using Floats = typename Lanes<W>::F;
template <int W>
using Ints = typename Lanes<W>::I;
template <int W>
using Words = typename Lanes<W>::U;

template <int W>
SEQREC_INLINE Floats<W> load(const float* p) {
  return *reinterpret_cast<const typename Lanes<W>::Unaligned*>(p);
}

template <int W>
SEQREC_INLINE Ints<W> load(const std::int32_t* p) {
  return *reinterpret_cast<const typename Lanes<W>::UnalignedI*>(p);
}

template <int W>
SEQREC_INLINE void store(float* p, Floats<W> v) {
  *reinterpret_cast<typename Lanes<W>::Unaligned*>(p) = v;
}

template <int W>
SEQREC_INLINE void store(std::int32_t* p, Ints<W> v) {
  *reinterpret_cast<typename Lanes<W>::UnalignedI*>(p) = v;
}

template <int W>
SEQREC_INLINE Floats<W> broadcast(float x) {
  // x - 0 is x whatever x is, and folds away; 0 + x is not (-0) and would cost an addition
  return x - Floats<W>{};
}

template <int W>
SEQREC_INLINE Ints<W> broadcast(std::int32_t x) {
  return Ints<W>{} + x;
}

/// Makes the compiler keep a loaded vector in a register, where it would read it again at each use.
template <int W>
SEQREC_INLINE void keep_in_register([[maybe_unused]] Floats<W>& v) {
#if defined(__AVX512F__)
  if constexpr (W == 16) asm("" : "+v"(v));
#elif defined(__SSE2__)
  if constexpr (W <= kNativeLanes) asm("" : "+x"(v));
#endif
}

// ------------------------------------------------------------------------------- comparisons

/// The outcome of a comparison, in the form that the machine likes best.
template <int W>
struct MaskOf {
  using type = Ints<W>;
};
#if defined(__AVX512F__)
template <>
struct MaskOf<16> {
  using type = __mmask16;
};
#endif
template <int W>
using Mask = typename MaskOf<W>::type;

/// a > b in every lane; false where either is NaN.
template <int W>
SEQREC_INLINE Mask<W> greater(Floats<W> a, Floats<W> b) {
#if defined(__AVX512F__)
  if constexpr (W == 16) {
    return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_GT_OQ);
  } else
#endif
  {
    return a > b;
  }
}

/// One bit a lane of an integer vector whose lanes are 0 or -1.
template <int W>
SEQREC_INLINE std::uint32_t lane_bits(Ints<W> m) {
#if defined(__SSE2__)
  if constexpr (W == 4) {
    return static_cast<std::uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(m)));
  }
#endif
#if defined(__AVX__)
  if constexpr (W == 8) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(m)));
  }
#endif
  if constexpr (W > kNativeLanes) {
    constexpr int H = W / 2;
    union {
      Ints<W> whole;
      Ints<H> half[2];
    } parts = {m};
    return lane_bits<H>(parts.half[0]) | lane_bits<H>(parts.half[1]) << H;
  }
  std::uint32_t bits = 0;
  for (int i = 0; i < W; ++i) bits |= static_cast<std::uint32_t>(m[i] & 1) << i;
  return bits;
}

template <int W>
SEQREC_INLINE std::uint32_t mask_bits(Mask<W> m) {
#if defined(__AVX512F__)
  if constexpr (W == 16) {
    return m;
  } else
#endif
  {
    return lane_bits<W>(m);
  }
}

/// a where the mask is set, b elsewhere.
template <int W>
SEQREC_INLINE Floats<W> select(Mask<W> m, Floats<W> a, Floats<W> b) {
#if defined(__AVX512F__)
  if constexpr (W == 16) {
    return reinterpret_cast<Floats<16>>(
        _mm512_mask_mov_ps(reinterpret_cast<__m512>(b), m, reinterpret_cast<__m512>(a)));
  } else
#endif
  {
    return m ? a : b;
  }
}

// The masked intrinsics with a full mask are the plain instructions: GCC 12 warns of the header of
// the plain ones.

/// The larger of each lane; b where either is NaN.
template <int W>
SEQREC_INLINE Floats<W> maximum(Floats<W> a, Floats<W> b) {
#if defined(__AVX512F__)
  if constexpr (W == 16) {
    return reinterpret_cast<Floats<16>>(
        _mm512_maskz_max_ps(0xFFFF, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
  }
#endif
#if defined(__AVX__)
  if constexpr (W == 8) {
    return reinterpret_cast<Floats<8>>(
        _mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
  }
#endif
#if defined(__SSE2__)
  if constexpr (W == 4) {
    return reinterpret_cast<Floats<4>>(
        _mm_max_ps(reinterpret_cast<__m128>(a), reinterpret_cast<__m128>(b)));
  }
#endif
  return select<W>(greater<W>(a, b), a, b);
}

/// The smaller of each lane; b where either is NaN.
template <int W>
SEQREC_INLINE Floats<W> minimum(Floats<W> a, Floats<W> b) {
#if defined(__AVX512F__)
  if constexpr (W == 16) {
    return reinterpret_cast<Floats<16>>(
        _mm512_maskz_min_ps(0xFFFF, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
  }
#endif
#if defined(__AVX__)
  if constexpr (W == 8) {
    return reinterpret_cast<Floats<8>>(
        _mm256_min_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
  }
#endif
#if defined(__SSE2__)
  if constexpr (W == 4) {
    return reinterpret_cast<Floats<4>>(
        _mm_min_ps(reinterpret_cast<__m128>(a), reinterpret_cast<__m128>(b)));
  }
#endif
  return select<W>(greater<W>(b, a), a, b);
}

template <int W>
SEQREC_INLINE Ints<W> bits_of(Floats<W> x) {
  return reinterpret_cast<Ints<W>>(x);
}

template <int W>
SEQREC_INLINE Floats<W> floats_of(Ints<W> bits) {
  return reinterpret_cast<Floats<W>>(bits);
}

template <int W>
SEQREC_INLINE Floats<W> absolute(Floats<W> x) {
  return floats_of<W>(bits_of<W>(x) & 0x7fffffff);
}

/// The magnitude of a with the sign of b.
template <int W>
SEQREC_INLINE Floats<W> with_sign(Floats<W> a, Floats<W> b) {
  return floats_of<W>((bits_of<W>(a) & 0x7fffffff) |
                      (bits_of<W>(b) & static_cast<std::int32_t>(0x80000000u)));
}

// ------------------------------------------------------------------------------- reductions

/// The halves of a vector, lower lanes first.
template <int W>
struct Halves {
  Floats<W / 2> low, high;
};

template <int W>
SEQREC_INLINE Halves<W> halves(Floats<W> v) {
  union {
    Floats<W> whole;
    Floats<W / 2> half[2];
  } parts = {v};
  return {parts.half[0], parts.half[1]};
}

/// The sum of all lanes, added pairwise: always in the same order.
template <int W>
SEQREC_INLINE float horizontal_sum(Floats<W> v) {
  if constexpr (W > 4) {
    const Halves<W> h = halves<W>(v);
    return horizontal_sum<W / 2>(h.low + h.high);
  } else {
    return (v[0] + v[2]) + (v[1] + v[3]);
  }
}

/// The largest lane; NaN lanes may be ignored or returned.
template <int W>
SEQREC_INLINE float horizontal_max(Floats<W> v) {
  if constexpr (W > 4) {
    const Halves<W> h = halves<W>(v);
    return horizontal_max<W / 2>(maximum<W / 2>(h.low, h.high));
  } else {
    const float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
    return a > b ? a : b;
  }
}

/// The first `count` floats (0 to W) at `p`, `rest` in the lanes after them. Reads nothing else.
template <int W>
SEQREC_INLINE Floats<W> load_part(const float* p, std::int64_t count, float rest = 0.0f) {
  Floats<W> v = broadcast<W>(rest);
#if defined(__AVX512F__)
  if constexpr (W == 16) {
    const auto keep = static_cast<__mmask16>((1u << count) - 1);
    return reinterpret_cast<Floats<16>>(_mm512_mask_loadu_ps(reinterpret_cast<__m512>(v), keep, p));
  }
#endif
  for (std::int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}

/// Writes the first `count` lanes (0 to W) and nothing else.
template <int W>
SEQREC_INLINE void store_part(float* p, Floats<W> v, std::int64_t count) {
#if defined(__AVX512F__)
  if constexpr (W == 16) {
    const auto keep = static_cast<__mmask16>((1u << count) - 1);
    _mm512_mask_storeu_ps(p, keep, reinterpret_cast<__m512>(v));
    return;
  }
#endif
  for (std::int64_t i = 0; i < count; ++i) p[i] = v[i];
}

// ------------------------------------------------------------------------------- transposition

// Interleaving inside blocks of four lanes. GCC before 12 has only __builtin_shuffle.
#if defined(__clang__) || __GNUC__ >= 12
#define SEQREC_SHUFFLE(a, b, W, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SEQREC_SHUFFLE(a, b, W, ...) __builtin_shuffle(a, b, Ints<W>{__VA_ARGS__})
#endif

template <int W>
struct Blocks;

template <>
struct Blocks<4> {
  using F = Floats<4>;
  static SEQREC_INLINE F unpack_low(F a, F b) { return SEQREC_SHUFFLE(a, b, 4, 0, 4, 1, 5); }
  static SEQREC_INLINE F unpack_high(F a, F b) { return SEQREC_SHUFFLE(a, b, 4, 2, 6, 3, 7); }
  static SEQREC_INLINE F pair_low(F a, F b) { return SEQREC_SHUFFLE(a, b, 4, 0, 1, 4, 5); }
  static SEQREC_INLINE F pair_high(F a, F b) { return SEQREC_SHUFFLE(a, b, 4, 2, 3, 6, 7); }
};

template <>
struct Blocks<8> {
  using F = Floats<8>;
  static SEQREC_INLINE F unpack_low(F a, F b) {
    return SEQREC_SHUFFLE(a, b, 8, 0, 8, 1, 9, 4, 12, 5, 13);
  }
  static SEQREC_INLINE F unpack_high(F a, F b) {
    return SEQREC_SHUFFLE(a, b, 8, 2, 10, 3, 11, 6, 14, 7, 15);
  }
  static SEQREC_INLINE F pair_low(F a, F b) {
    return SEQREC_SHUFFLE(a, b, 8, 0, 1, 8, 9, 4, 5, 12, 13);
  }
  static SEQREC_INLINE F pair_high(F a, F b) {
    return SEQREC_SHUFFLE(a, b, 8, 2, 3, 10, 11, 6, 7, 14, 15);
  }
};

template <>
struct Blocks<16> {
  using F = Floats<16>;
  static SEQREC_INLINE F unpack_low(F a, F b) {
    return SEQREC_SHUFFLE(a, b, 16, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
  }
  static SEQREC_INLINE F unpack_high(F a, F b) {
    return SEQREC_SHUFFLE(a, b, 16, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  }
  static SEQREC_INLINE F pair_low(F a, F b) {
    return SEQREC_SHUFFLE(a, b, 16, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
  }
  static SEQREC_INLINE F pair_high(F a, F b) {
    return SEQREC_SHUFFLE(a, b, 16, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
};

/// Four floats from each of the rows p, p + 4 stride, p + 8 stride, …, one row a block of lanes.
template <int W>
SEQREC_INLINE Floats<W> load_blocks(const float* p, std::ptrdiff_t stride) {
  if constexpr (W == 4) {
    return load<4>(p);
  }
#if defined(__AVX512F__)
  if constexpr (W == 16) {
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(p));
    v = _mm512_mask_broadcast_f32x4(v, 0x00F0, _mm_loadu_ps(p + 4 * stride));
    v = _mm512_mask_broadcast_f32x4(v, 0x0F00, _mm_loadu_ps(p + 8 * stride));
    v = _mm512_mask_broadcast_f32x4(v, 0xF000, _mm_loadu_ps(p + 12 * stride));
    return reinterpret_cast<Floats<16>>(v);
  }
#endif
#if defined(__AVX__)
  if constexpr (W == 8) {
    const __m256 low = _mm256_castps128_ps256(_mm_loadu_ps(p));
    return reinterpret_cast<Floats<8>>(_mm256_insertf128_ps(low, _mm_loadu_ps(p + 4 * stride), 1));
  }
#endif
  if constexpr (W > 4) {
    constexpr int H = W / 2;
    union {
      Floats<W> whole;
      Floats<H> half[2];
    } parts;
    parts.half[0] = load_blocks<H>(p, stride);
    parts.half[1] = load_blocks<H>(p + H * stride, stride);
    return parts.whole;
  }
}

/// Columns 0..3 of W rows: lane i of `out[j]` becomes `rows[i * stride + j]`.
template <int W>
SEQREC_INLINE void transpose4(const float* rows, std::ptrdiff_t stride, Floats<W> (&out)[4]) {
  using B = Blocks<W>;
  const Floats<W> r0 = load_blocks<W>(rows, stride);
  const Floats<W> r1 = load_blocks<W>(rows + stride, stride);
  const Floats<W> r2 = load_blocks<W>(rows + 2 * stride, stride);
  const Floats<W> r3 = load_blocks<W>(rows + 3 * stride, stride);
  const Floats<W> low01 = B::unpack_low(r0, r1);
  const Floats<W> low23 = B::unpack_low(r2, r3);
  const Floats<W> high01 = B::unpack_high(r0, r1);
  const Floats<W> high23 = B::unpack_high(r2, r3);
  out[0] = B::pair_low(low01, low23);
  out[1] = B::pair_high(low01, low23);
  out[2] = B::pair_low(high01, high23);
  out[3] = B::pair_high(high01, high23);
}

/// Lane i of `column[j]` becomes lane j of `rows[i]`, for L rows of L = 4 or 8 lanes.
template <int L>
SEQREC_INLINE void transpose_vectors(const Floats<L> (&rows)[L], Floats<L> (&column)[L]) {
  static_assert(L == 4 || L == 8, "blocks of four lanes, of four or eight rows");
  using B = Blocks<L>;
  Floats<L> four[L / 4][4];  // of four rows: columns j, and j + 4 in the upper half
  for (int g = 0; g < L / 4; ++g) {
    const Floats<L>* r = rows + g * 4;
    const Floats<L> low01 = B::unpack_low(r[0], r[1]), low23 = B::unpack_low(r[2], r[3]);
    const Floats<L> high01 = B::unpack_high(r[0], r[1]), high23 = B::unpack_high(r[2], r[3]);
    four[g][0] = B::pair_low(low01, low23);
    four[g][1] = B::pair_high(low01, low23);
    four[g][2] = B::pair_low(high01, high23);
    four[g][3] = B::pair_high(high01, high23);
  }
  if constexpr (L == 4) {
    for (int j = 0; j < 4; ++j) column[j] = four[0][j];
  } else {
    for (int j = 0; j < 4; ++j) {
      column[j] = SEQREC_SHUFFLE(four[0][j], four[1][j], 8, 0, 1, 2, 3, 8, 9, 10, 11);
      column[j + 4] = SEQREC_SHUFFLE(four[0][j], four[1][j], 8, 4, 5, 6, 7, 12, 13, 14, 15);
    }
  }
}

/// The first `n` <= W floats at `p` and zeros behind them; reads nothing beyond.
template <int W>
SEQREC_INLINE Floats<W> load_first(const float* p, std::int64_t n) {
#if defined(__AVX2__)
  if constexpr (W == 8) {
    const Ints<8> place = {0, 1, 2, 3, 4, 5, 6, 7};
    const Ints<8> mask = place < broadcast<8>(static_cast<std::int32_t>(n));
    return reinterpret_cast<Floats<8>>(_mm256_maskload_ps(p, reinterpret_cast<__m256i>(mask)));
  }
#endif
  Floats<W> v{};
  for (int i = 0; i < W; ++i) v[i] = i < n ? p[i] : 0.0f;
  return v;
}

}  // namespace SEQREC_ISA
}  // namespace seqrec
