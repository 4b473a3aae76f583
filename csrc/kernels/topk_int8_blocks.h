// SPDX-License-Identifier: Apache-2.0
// Blocks for the scan of bytes from a table that is itself bytes, a few at a time.
//
// The table lies row by row, with one scale a row and nothing else, so that a file of it can be
// searched where it is mapped. The scan wants sixteen rows interleaved by four dimensions: they are
// transposed into memory that stays in the first-level cache, once for all queries.
#pragma once

#include "base/simd.h"
#include "kernels/topk_types.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W>
struct TopkInt8Blocks {
  /// The scales of a block, then, if there are biases, those; see Int8Items.
  static SEQREC_INLINE void scales_of(const TopkProblem& p, const Int8Items& t, std::int64_t block,
                                      float* out) {
    const std::int64_t first = block * kInt8Rows;
    const std::int64_t left = p.num_items - first;
    const std::int64_t rows = left < kInt8Rows ? left : kInt8Rows;
    copy_rows(p.items.scales + first, rows, kInt8LeastScale, out);
    if (p.bias) copy_rows(p.bias + first, rows, 0.0f, out + kInt8Rows);
    if (__builtin_expect(t.bounds[block].exceptions != 0.0f, 0)) except(p, rows, out);
  }

  static SEQREC_INLINE void copy_rows(const float* from, std::int64_t rows, float rest,
                                      float* out) {
    if (__builtin_expect(rows == kInt8Rows, 1)) {
      for (int i = 0; i < kInt8Rows; i += W) store<W>(out + i, load<W>(from + i));
      return;
    }
    for (std::int64_t i = 0; i < kInt8Rows; ++i) out[i] = i < rows ? from[i] : rest;
  }

  /// What cannot be bounded gets the scale NaN. A scale of 0 can: all such scores are the bias.
  static SEQREC_NOINLINE void except(const TopkProblem& p, std::int64_t rows, float* out) {
    for (std::int64_t i = 0; i < rows; ++i) {
      const float scale = out[i], bias = p.bias ? out[kInt8Rows + i] : 0.0f;
      const bool sized =
          scale == 0.0f || (scale >= kInt8LeastScale && scale <= kInt8MostItem / 128);
      if (sized && bias <= kInt8MostBias && bias >= -kInt8MostBias) continue;
      out[i] = __builtin_nanf("");
      if (p.bias) out[kInt8Rows + i] = 0.0f;
    }
  }

  /// The blocks first .. end, in the form that the scan reads.
  static void lay_out(const TopkProblem& p, const Int8Items& t, std::int64_t first,
                      std::int64_t end, std::uint8_t* out) {
    for (std::int64_t b = first; b < end; ++b, out += t.block_bytes) {
      const std::int64_t left = p.num_items - b * kInt8Rows;
      const std::int8_t* rows = p.items.bytes + b * kInt8Rows * p.dim;
      if (left >= kInt8Rows) {
        interleave(rows, p.dim, out);
      } else {
        for (std::int64_t i = 0; i < t.quads * kInt8Rows * 4; ++i) out[i] = 128;
        for (std::int64_t row = 0; row < left; ++row) {
          interleave_rest(rows + row * p.dim, 0, p.dim, out + row * 4);
        }
      }
      scales_of(p, t, b, reinterpret_cast<float*>(out + t.quads * kInt8Rows * 4));
    }
  }

  static SEQREC_INLINE void interleave(const std::int8_t* rows, std::int64_t dim,
                                       std::uint8_t* out) {
    // Four dimensions are taken as one float, whose bits are moved and never looked at.
    const std::int64_t whole = dim % 4 == 0 ? dim / 16 * 16 : 0;
    for (int group = 0; group < kInt8Rows; group += W) {
      for (std::int64_t d = 0; d < whole; d += 16) {
        Floats<W> quad[4];
        transpose4<W>(reinterpret_cast<const float*>(rows + group * dim + d), dim / 4, quad);
        for (int j = 0; j < 4; ++j) {
          // From signed to unsigned with 128 more.
          const auto moved = bits_of<W>(quad[j]) ^ static_cast<std::int32_t>(0x80808080u);
          std::uint8_t* to = out + (d / 4 + j) * kInt8Rows * 4 + group * 4;
          store<W>(reinterpret_cast<std::int32_t*>(to), moved);
        }
      }
    }
    for (int row = 0; whole < dim && row < kInt8Rows; ++row) {
      interleave_rest(rows + row * dim, whole, dim, out + row * 4);
    }
  }

  /// The dimensions from .. dim of one row; `out` is its place in the first group of four.
  static SEQREC_INLINE void interleave_rest(const std::int8_t* row, std::int64_t from,
                                            std::int64_t dim, std::uint8_t* out) {
    for (std::int64_t d = from; d < dim; d += 4) {
      std::uint32_t four = 0;
      if (d + 4 <= dim) {
        __builtin_memcpy(&four, row + d, 4);
      } else {
        for (std::int64_t i = d; i < dim; ++i) {
          four |= static_cast<std::uint32_t>(static_cast<std::uint8_t>(row[i])) << (8 * (i - d));
        }
      }
      four ^= 0x80808080u;
      __builtin_memcpy(out + d / 4 * kInt8Rows * 4, &four, 4);
    }
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
