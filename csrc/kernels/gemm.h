// SPDX-License-Identifier: Apache-2.0
// C = A B (+ C) with B packed in panels: the loops around the register tile of tile.h.
//
// Panels of B are cut in depth into slices that stay in the first-level cache while every row tile
// of A passes by (the inner two loops of Goto and van de Geijn 2008). A is read where it lies, in
// either order of its axes, unless its rows lie a multiple of 4 KiB apart: they would then all
// fall into the same few cache sets, and a slice of A is copied first.
//
// Rows are cut evenly: 16 rows are two tiles of 8, not one of 12 and one of 4.
#pragma once

#include "kernels/tile.h"

namespace seqrec {
namespace SEQREC_ISA {

/// A matrix seen through two strides, one of which is 1.
struct Strided {
  const float* data;
  std::ptrdiff_t row_stride;
  std::ptrdiff_t depth_stride;

  const float* at(std::int64_t row, std::int64_t k) const {
    return data + row * row_stride + k * depth_stride;
  }
};

template <int W>
struct Gemm {
  using F = Floats<W>;
  static constexpr int kVectors = TileShape<W>::kVectors;
  static constexpr int kRows = TileShape<W>::kRows;
  static constexpr int kColumns = TileShape<W>::kColumns;

  /// Depth of a slice: 6 to 16 KiB of a panel.
  static constexpr std::int64_t kDepth = 128;

  /// Sums that one row needs at once to hide the latency of its multiply-adds.
  static constexpr int kRowSets = W == 16 ? 4 : 3;

  template <int MR, bool kTransposed>
  static SEQREC_NOINLINE void tile(const float* a, std::ptrdiff_t lda, const float* b,
                                   std::int64_t depth, const float* bias, bool add, float* c,
                                   std::int64_t ldc, std::int64_t columns) {
    F acc[MR][kVectors] = {};
    if constexpr (MR == 1 && !kTransposed) {
      multiply_row<W, kVectors, kRowSets>(a, b, depth, acc);
    } else {
      multiply_tile<W, MR, kVectors, kTransposed>(a, lda, b, depth, acc);
    }
    if (columns == kColumns) {
      F last[kVectors];
      for (int v = 0; v < kVectors; ++v) last[v] = bias ? load<W>(bias + v * W) : F{};
      // row by row: each row of C is written as a whole
      for (int r = 0; r < MR; ++r) {
        for (int v = 0; v < kVectors; ++v) {
          float* to = c + r * ldc + v * W;
          store<W>(to, (add ? load<W>(to) + acc[r][v] : acc[r][v]) + last[v]);
        }
      }
      return;
    }
    // The copy is indexed at run time, so that the sums themselves can stay in registers.
    F kept[MR][kVectors];
    for (int r = 0; r < MR; ++r) {
      for (int v = 0; v < kVectors; ++v) kept[r][v] = acc[r][v];
    }
    for (int r = 0; r < MR; ++r) {
      for (std::int64_t j = 0; j < columns; j += W) {
        const std::int64_t part = columns - j < W ? columns - j : W;
        float* to = c + r * ldc + j;
        const F sum = kept[r][j / W];
        const F last = bias ? load<W>(bias + j) : F{};
        store_part<W>(to, (add ? load_part<W>(to, part) + sum : sum) + last, part);
      }
    }
  }

  template <int MR, bool kTransposed>
  static SEQREC_INLINE void tile_of(std::int64_t rows, const float* a, std::ptrdiff_t lda,
                                    const float* b, std::int64_t depth, const float* bias, bool add,
                                    float* c, std::int64_t ldc, std::int64_t columns) {
    if (rows == MR) return tile<MR, kTransposed>(a, lda, b, depth, bias, add, c, ldc, columns);
    if constexpr (MR > 1) {
      tile_of<MR - 1, kTransposed>(rows, a, lda, b, depth, bias, add, c, ldc, columns);
    }
  }

  /// Rows [0, rows) of C against one panel slice, or the whole panel.
  template <bool kTransposed>
  static void panel(const Strided& a, std::int64_t rows, const float* b, std::int64_t depth,
                    const float* bias, bool add, float* c, std::int64_t ldc, std::int64_t columns) {
    const std::int64_t tiles = (rows + kRows - 1) / kRows;
    const std::ptrdiff_t lda = kTransposed ? a.depth_stride : a.row_stride;
    for (std::int64_t i = 0; i < tiles; ++i) {
      const std::int64_t from = rows * i / tiles, to = rows * (i + 1) / tiles;
      tile_of<kRows, kTransposed>(to - from, a.at(from, 0), lda, b, depth, bias, add,
                                  c + from * ldc, ldc, columns);
    }
  }

  /// Rows of A that one pass over the panels takes: a slice of them stays in the second cache.
  static constexpr std::int64_t kBlockRows = 480;

  /// Floats of scratch that multiply() needs.
  static constexpr std::int64_t kScratch = kBlockRows * kDepth;

  /// C[rows, columns] = A B, or C + A B where `add`; `bias` [columns up to whole panels] is added
  /// to every row, or null. B has `depth` rows, in panels of kColumns.
  ///
  /// The bias comes last: sums that began with one much larger than they are would lose digits at
  /// every product.
  static void multiply(const Strided& a, std::int64_t rows, const float* b, std::int64_t depth,
                       std::int64_t columns, const float* bias, bool add, float* c,
                       std::int64_t ldc, float* scratch) {
    // One row reads B but once: the order of memory is the best one.
    const std::int64_t slice = rows == 1 ? (depth > 0 ? depth : 1) : kDepth;
    const bool transposed = a.row_stride == 1 && a.depth_stride != 1;
    const bool copies =
        !transposed && a.row_stride % 1024 == 0 && depth > 0 && rows > 8 && columns > kColumns;
    for (std::int64_t row = 0; row < rows; row += kBlockRows) {
      const std::int64_t part = rows - row < kBlockRows ? rows - row : kBlockRows;
      std::int64_t k = 0;
      do {
        const std::int64_t deep = depth - k < slice ? depth - k : slice;
        Strided block = {a.at(row, k), a.row_stride, a.depth_stride};
        if (copies) {
          for (std::int64_t r = 0; r < part; ++r) {
            __builtin_memcpy(scratch + r * deep, block.at(r, 0),
                             static_cast<std::size_t>(deep) * sizeof(float));
          }
          block = {scratch, deep, 1};
        }
        const bool adds = add || k > 0;
        for (std::int64_t n = 0; n < columns; n += kColumns) {
          const std::int64_t width = columns - n < kColumns ? columns - n : kColumns;
          const float* slab = b + n * depth + k * kColumns;
          const float* from = bias && k + deep >= depth ? bias + n : nullptr;
          float* to = c + row * ldc + n;
          if (transposed) {
            panel<true>(block, part, slab, deep, from, adds, to, ldc, width);
          } else {
            panel<false>(block, part, slab, deep, from, adds, to, ldc, width);
          }
        }
        k += deep;
      } while (k < depth);
    }
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
