// SPDX-License-Identifier: Apache-2.0
// The register tile that all matrix products here are built of, and the packing that it reads.
//
// A tile is MR rows of A against NV vectors of columns of B: MR x NV accumulators that stay in
// registers over the whole of K. B is packed in panels of NV * W columns, k after k, so that each
// step loads NV vectors and broadcasts MR floats of A from where they lie.
//
// Sizes that fill the registers without spilling: 12 x 2 or 8 x 3 with 32 registers (16 lanes),
// 4 x 3 with 16 (4 and 8 lanes). With fewer rows a tile has too few independent sums to hide the
// latency of a multiply-add, so that multiply_row splits K over several sets of them.
#pragma once

#include "base/simd.h"

namespace seqrec {
namespace SEQREC_ISA {

/// Vectors of columns in a panel, and rows of a full tile, by lane count.
template <int W>
struct TileShape {
  static constexpr int kVectors = W == 16 ? 2 : 3;
  static constexpr int kRows = W == 16 ? 12 : 4;
  static constexpr int kColumns = kVectors * W;
};

/// acc[r][v] += sum over k of a(r, k) * b[k][v], with b packed [depth][NV * W].
///
/// a(r, k) is a[r * lda + k], or a[k * lda + r] where A is transposed.
template <int W, int MR, int NV, bool kTransposed = false>
SEQREC_INLINE void multiply_tile(const float* a, std::ptrdiff_t lda, const float* b,
                                 std::int64_t depth, Floats<W> (&acc)[MR][NV]) {
  for (std::int64_t k = 0; k < depth; ++k) {
    Floats<W> column[NV];
    for (int v = 0; v < NV; ++v) column[v] = load<W>(b + (k * NV + v) * W);
    for (int r = 0; r < MR; ++r) {
      const Floats<W> x = broadcast<W>(kTransposed ? a[k * lda + r] : a[r * lda + k]);
      for (int v = 0; v < NV; ++v) acc[r][v] += x * column[v];
    }
  }
}

/// One row against a panel, K split over S sets of sums that are added at the end.
template <int W, int NV, int S>
SEQREC_INLINE void multiply_row(const float* a, const float* b, std::int64_t depth,
                                Floats<W> (&acc)[1][NV]) {
  Floats<W> part[S][NV] = {};
  std::int64_t k = 0;
  for (; k + S <= depth; k += S) {
    for (int s = 0; s < S; ++s) {
      const Floats<W> x = broadcast<W>(a[k + s]);
      for (int v = 0; v < NV; ++v) part[s][v] += x * load<W>(b + ((k + s) * NV + v) * W);
    }
  }
  for (; k < depth; ++k) {
    const Floats<W> x = broadcast<W>(a[k]);
    for (int v = 0; v < NV; ++v) part[0][v] += x * load<W>(b + (k * NV + v) * W);
  }
  for (int v = 0; v < NV; ++v) {
    for (int step = 1; step < S; step *= 2) {
      for (int s = 0; s + step < S; s += 2 * step) part[s][v] += part[s + step][v];
    }
    acc[0][v] += part[0][v];
  }
}

/// Floats that a packed matrix takes: whole panels.
template <int NR>
constexpr std::int64_t packed_size(std::int64_t columns, std::int64_t depth) {
  return (columns + NR - 1) / NR * NR * depth;
}

/// Packs B into panels [panel][depth][NR]; element (k, n) is b[k * k_stride + n * n_stride].
///
/// The weight of a linear layer, [out, in], has k_stride 1 and n_stride `in`; its transpose, for
/// the gradient of the input, has them the other way round. Columns beyond the last are zeros.
template <int NR>
SEQREC_NOINLINE void pack_panels(const float* b, std::ptrdiff_t k_stride, std::ptrdiff_t n_stride,
                                 std::int64_t columns, std::int64_t depth, float* packed) {
  for (std::int64_t n0 = 0; n0 < columns; n0 += NR) {
    const std::int64_t width = columns - n0 < NR ? columns - n0 : NR;
    float* panel = packed + n0 * depth;
    if (n_stride == 1) {
      for (std::int64_t k = 0; k < depth; ++k) {
        const float* row = b + k * k_stride + n0;
        for (std::int64_t j = 0; j < width; ++j) panel[k * NR + j] = row[j];
        for (std::int64_t j = width; j < NR; ++j) panel[k * NR + j] = 0.0f;
      }
      continue;
    }
    for (std::int64_t k = 0; k < depth; ++k) {
      for (std::int64_t j = 0; j < width; ++j) {
        panel[k * NR + j] = b[k * k_stride + (n0 + j) * n_stride];
      }
      for (std::int64_t j = width; j < NR; ++j) panel[k * NR + j] = 0.0f;
    }
  }
}

}  // namespace SEQREC_ISA
}  // namespace seqrec
