// SPDX-License-Identifier: Apache-2.0
// What the lanes of a warp compute together: matrix products and loads of their fragments. The lane
// that comes last computes for all.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/numbers.h"
#include "cuda/shim/engine.h"

namespace seqrec {
namespace cuda {
namespace shim {

/// The fragments of a lane go in, the four sums of the lane come back in their place.
struct MatrixSlot {
  std::uint32_t a[4];
  std::uint32_t b[2];
};
static_assert(sizeof(MatrixSlot) <= kSlot, "a lane's fragments fit its slot");

inline MatrixSlot& matrix_slot(unsigned char* slots, unsigned lane) {
  return *reinterpret_cast<MatrixSlot*>(slots + lane * kSlot);
}

/// The products of a (16 x kDepth) and b (kDepth x 8), into each lane's slot.
template <int kDepth>
void multiply(unsigned char* slots, const float (&a)[16][kDepth], const float (&b)[kDepth][8]) {
  float sums[16][8] = {};
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < kDepth; ++k) {
      for (int j = 0; j < 8; ++j) sums[i][j] += a[i][k] * b[k][j];
    }
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const unsigned g = lane / 4, t = lane % 4;
    const float found[4] = {sums[g][2 * t], sums[g][2 * t + 1], sums[g + 8][2 * t],
                            sums[g + 8][2 * t + 1]};
    std::memcpy(slots + lane * kSlot, found, sizeof found);
  }
}

template <typename T>
void last_of_m16n8k16(unsigned char* slots) {
  float a[16][16], b[16][8];
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const MatrixSlot& slot = matrix_slot(slots, lane);
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned r = 0; r < 4; ++r) {
      const unsigned row = g + 8 * (r % 2), column = 2 * t + 8 * (r / 2);
      a[row][column] = low_of<T>(slot.a[r]);
      a[row][column + 1] = high_of<T>(slot.a[r]);
    }
    for (unsigned r = 0; r < 2; ++r) {
      b[2 * t + 8 * r][g] = low_of<T>(slot.b[r]);
      b[2 * t + 8 * r + 1][g] = high_of<T>(slot.b[r]);
    }
  }
  multiply(slots, a, b);
}

inline void last_of_m16n8k8(unsigned char* slots) {
  // a tensor core takes no more bits than tf32 has
  const auto value = [](std::uint32_t bits) { return detail::float_of(bits & 0xFFFFE000u); };
  float a[16][8], b[8][8];
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const MatrixSlot& slot = matrix_slot(slots, lane);
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned r = 0; r < 4; ++r) a[g + 8 * (r % 2)][t + 4 * (r / 2)] = value(slot.a[r]);
    for (unsigned r = 0; r < 2; ++r) b[t + 4 * r][g] = value(slot.b[r]);
  }
  multiply(slots, a, b);
}

inline void add_product(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                        const char* what, void (*last)(unsigned char*)) {
  MatrixSlot given;
  std::memcpy(given.a, a, sizeof given.a);
  std::memcpy(given.b, b, sizeof given.b);
  const unsigned char* slots =
      exchange(0xFFFFFFFFu, &given, sizeof given, what, __FILE__, __LINE__, last);
  float found[4];
  std::memcpy(found, slots + self().lane * kSlot, sizeof found);
  for (int i = 0; i < 4; ++i) d[i] += found[i];
}

template <typename T>
void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  add_product(d, a, b, "mma_m16n8k16", &last_of_m16n8k16<T>);
}

inline void mma_m16n8k8_tf32(float (&d)[4], const std::uint32_t (&a)[4],
                             const std::uint32_t (&b)[2]) {
  add_product(d, a, b, "mma_m16n8k8", &last_of_m16n8k8);
}

/// ldmatrix: each lane reads its elements itself, from the rows that the lanes name.
inline void load_matrices(std::uint32_t* to, int count, const void* row, bool transposed) {
  if (static_cast<int>(self().lane) < 8 * count &&
      reinterpret_cast<std::uintptr_t>(row) % 16 != 0) {
    fail("load_matrices: a row at an address that is no multiple of 16 bytes");
  }
  const unsigned char* slots =
      exchange(0xFFFFFFFFu, &row, sizeof row, "load_matrices", __FILE__, __LINE__);
  const unsigned g = self().lane / 4, t = self().lane % 4;
  for (int i = 0; i < count; ++i) {
    const auto element = [&](unsigned at_row, unsigned column) {
      const std::uint16_t* from;
      std::memcpy(&from, slots + (8 * static_cast<unsigned>(i) + at_row) * kSlot, sizeof from);
      return static_cast<std::uint32_t>(from[column]);
    };
    const std::uint32_t low = transposed ? element(2 * t, g) : element(g, 2 * t);
    const std::uint32_t high = transposed ? element(2 * t + 1, g) : element(g, 2 * t + 1);
    to[i] = low | high << 16;
  }
}

}  // namespace shim
}  // namespace cuda
}  // namespace seqrec
