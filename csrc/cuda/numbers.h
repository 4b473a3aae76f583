// SPDX-License-Identifier: Apache-2.0
// The 16-bit floats as plain types that every compiler knows, and their conversions: by one
// instruction on a GPU, by whole numbers elsewhere, to the same bits (round to nearest, ties to
// even). NVIDIA's own headers are not needed, so the CPU build of the kernels has no use for CUDA.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define SEQREC_BOTH __host__ __device__ __forceinline__
#else
#define SEQREC_BOTH inline
#endif

namespace seqrec {
namespace cuda {

/// IEEE binary16.
struct Half {
  static constexpr int kExponentBits = 5;
  std::uint16_t bits;
};

/// The upper half of a float32.
struct BFloat16 {
  static constexpr int kExponentBits = 8;
  std::uint16_t bits;
};

namespace detail {

SEQREC_BOTH std::uint32_t float_bits(float x) {
  std::uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

SEQREC_BOTH float float_of(std::uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

SEQREC_BOTH std::uint16_t half_bits_portable(float x) {
  const std::uint32_t bits = float_bits(x), magnitude = bits & 0x7FFFFFFFu;
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  if (magnitude > 0x7F800000u) return 0x7FFF;
  if (magnitude >= 0x47800000u) return static_cast<std::uint16_t>(sign | 0x7C00u);
  std::uint32_t found;
  if (magnitude < 0x38800000u) {  // no normal number: whole multiples of 2^-24
    // the sum with 0.5 leaves them, rounded, in the lowest bits
    found = float_bits(float_of(magnitude) + 0.5f) - 0x3F000000u;
  } else {
    const std::uint32_t odd = magnitude >> 13 & 1u;
    found = (magnitude - 0x38000000u + 0xFFFu + odd) >> 13;
  }
  return static_cast<std::uint16_t>(sign | found);
}

SEQREC_BOTH float half_value_portable(std::uint16_t half) {
  const std::uint32_t magnitude = half & 0x7FFFu;
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  if (magnitude >= 0x7C00u) return float_of(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  if (magnitude < 0x400u) {
    const float value = static_cast<float>(magnitude) * (1.0f / 16777216.0f);
    return float_of(sign | float_bits(value));
  }
  return float_of(sign | ((magnitude << 13) + 0x38000000u));
}

SEQREC_BOTH std::uint16_t bfloat_bits_portable(float x) {
  const std::uint32_t bits = float_bits(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFF;
  return static_cast<std::uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace detail

SEQREC_BOTH float to_float(float x) { return x; }

SEQREC_BOTH float to_float(Half x) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  return detail::half_value_portable(x.bits);
#endif
}

SEQREC_BOTH float to_float(BFloat16 x) {
  return detail::float_of(static_cast<std::uint32_t>(x.bits) << 16);
}

template <typename T>
SEQREC_BOTH T from_float(float x);

template <>
SEQREC_BOTH float from_float<float>(float x) {
  return x;
}

template <>
SEQREC_BOTH Half from_float<Half>(float x) {
#if defined(__CUDA_ARCH__)
  std::uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return Half{bits};
#else
  return Half{detail::half_bits_portable(x)};
#endif
}

template <>
SEQREC_BOTH BFloat16 from_float<BFloat16>(float x) {
#if defined(__CUDA_ARCH__)
  std::uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return BFloat16{bits};
#else
  return BFloat16{detail::bfloat_bits_portable(x)};
#endif
}

/// Two numbers in one register, `low` in the lower half (the element that comes first in memory).
template <typename T>
SEQREC_BOTH std::uint32_t pack2(float low, float high);

template <>
SEQREC_BOTH std::uint32_t pack2<Half>(float low, float high) {
#if defined(__CUDA_ARCH__)
  std::uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  return from_float<Half>(low).bits | static_cast<std::uint32_t>(from_float<Half>(high).bits) << 16;
#endif
}

template <>
SEQREC_BOTH std::uint32_t pack2<BFloat16>(float low, float high) {
#if defined(__CUDA_ARCH__)
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  return from_float<BFloat16>(low).bits |
         static_cast<std::uint32_t>(from_float<BFloat16>(high).bits) << 16;
#endif
}

template <typename T>
SEQREC_BOTH float low_of(std::uint32_t packed) {
  return to_float(T{static_cast<std::uint16_t>(packed)});
}

template <typename T>
SEQREC_BOTH float high_of(std::uint32_t packed) {
  return to_float(T{static_cast<std::uint16_t>(packed >> 16)});
}

/// A float32 rounded to the 10 bits behind the point that tf32 has (ties away from zero).
SEQREC_BOTH std::uint32_t to_tf32(float x) {
#if defined(__CUDA_ARCH__)
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#else
  const std::uint32_t bits = detail::float_bits(x);
  if ((bits & 0x7F800000u) == 0x7F800000u) return bits;
  return (bits + 0x1000u) & 0xFFFFE000u;
#endif
}

/// The number of a dtype as the binding gives it: 0 float32, 1 float16, 2 bfloat16.
enum class Number : int { kFloat32 = 0, kHalf = 1, kBFloat16 = 2 };

}  // namespace cuda
}  // namespace seqrec
