// SPDX-License-Identifier: Apache-2.0
// The vector types of CUDA, and words before functions, for a C++ compiler that knows neither.
#pragma once

#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define SEQREC_SHIM_VECTOR(type, name)                                                    \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };                                \
  struct name##3 { type x, y, z; };                                                       \
  struct alignas(sizeof(type) == 8 ? 16 : 4 * sizeof(type)) name##4 { type x, y, z, w; }; \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                        \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }             \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

SEQREC_SHIM_VECTOR(float, float)
SEQREC_SHIM_VECTOR(double, double)
SEQREC_SHIM_VECTOR(int, int)
SEQREC_SHIM_VECTOR(short, short)
SEQREC_SHIM_VECTOR(unsigned short, ushort)
SEQREC_SHIM_VECTOR(signed char, char)
SEQREC_SHIM_VECTOR(unsigned char, uchar)
SEQREC_SHIM_VECTOR(long long, longlong)
SEQREC_SHIM_VECTOR(unsigned long long, ulonglong)
#undef SEQREC_SHIM_VECTOR
