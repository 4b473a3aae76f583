// SPDX-License-Identifier: Apache-2.0
// What the forward and the backward of attention share: blocks of queries, their packing, the
// register tiles, and the exponential.
//
// Scores are kept transposed, [key][query]: a vector holds one key's scores for W queries, so that
// the softmax, a reduction over keys, runs down the vectors and never across their lanes. A block
// of queries is one panel of the register tile: 2 x 16, 3 x 8 or 3 x 4 queries.
#pragma once

#include "base/simd.h"
#include "kernels/attention_types.h"

namespace seqrec {
namespace SEQREC_ISA {

/// 2^x for x <= 126 or so; 0 below -126.5, NaN for NaN. Error 1.4 ULP.
///
/// The polynomial, of degree 5 and 1 at 0, is the one of least largest relative error on
/// [-1/2, 1/2].
template <int W>
SEQREC_INLINE Floats<W> exp2_of_score(Floats<W> x) {
  // adding 1.5 * 2^23 rounds to whole numbers; the 127 more is the bias of a float's exponent
  constexpr float kRound = 12582912.0f + 127.0f;
  // maximum returns its second argument where one is NaN; at -127 the power below is 0
  const Floats<W> bounded = maximum<W>(broadcast<W>(-127.0f), x);
  const Floats<W> shifted = bounded + kRound;
  const Floats<W> r = bounded - (shifted - kRound);
  Floats<W> p = r * 1.3264727e-3f + 9.671513e-3f;
  p = p * r + 5.5507336e-2f;
  p = p * r + 2.4022242e-1f;
  p = p * r + 6.93147e-1f;
  p = p * r + 1.0f;
  return p * floats_of<W>(bits_of<W>(shifted) << 23);
}

/// acc[r][v] += sum over k of a[r * row + k * depth_stride] * b[k * ldb + v * W ..].
template <int W, int MR, int NV>
SEQREC_INLINE void attention_tile(const float* a, std::ptrdiff_t row, std::ptrdiff_t depth_stride,
                                  const float* b, std::ptrdiff_t ldb, std::int64_t depth,
                                  Floats<W> (&acc)[MR][NV]) {
  for (std::int64_t k = 0; k < depth; ++k) {
    Floats<W> column[NV];
    for (int v = 0; v < NV; ++v) column[v] = load<W>(b + v * W);
    for (int r = 0; r < MR; ++r) {
      const Floats<W> x = broadcast<W>(a[r * row]);
      for (int v = 0; v < NV; ++v) acc[r][v] += x * column[v];
    }
    a += depth_stride;
    b += ldb;
  }
}

/// Queries [first, first + count) of a row.
struct QueryBlock {
  std::int64_t first, count;
};

template <int W>
struct AttentionShape {
  static constexpr int kVectors = W == 16 ? 2 : 3;  // vectors of queries in a block
  static constexpr int kQueries = kVectors * W;     // queries in a block
  static constexpr int kKeyRows = W == 16 ? 8 : 4;  // keys in a tile of scores
  static constexpr int kRows = W == 16 ? 8 : 6;     // rows in a tile over the width
  static constexpr int kWide = 2;                   // vectors of the width in such a tile
  // tiles write whole: rows that a buffer needs beyond the last
  static constexpr std::int64_t kSpareRows = kKeyRows > kRows ? kKeyRows : kRows;

  static_assert(kQueries % kRows == 0, "a block is whole tiles");

  static std::int64_t padded(std::int64_t width) { return (width + W - 1) / W * W; }

  /// The block that holds the queries before `end`. The short one comes first, where with a causal
  /// mask it has few keys to meet.
  static QueryBlock first_block(std::int64_t length) {
    const std::int64_t rest = length % kQueries;
    return {0, rest == 0 && length > 0 ? kQueries : rest};
  }
};

/// Minus infinity for keys later than a query, by sliding over this: W times -inf, then W zeros.
template <int W>
struct CausalMask {
  float values[2 * W];
  constexpr CausalMask() : values() {
    for (int i = 0; i < 2 * W; ++i) values[i] = i < W ? -__builtin_inff() : 0.0f;
  }
};

template <int W>
inline constexpr CausalMask<W> kCausalMask{};

/// What to add to the scores of key `key` for the W queries from `query` on; |key - query| <= W.
template <int W>
SEQREC_INLINE Floats<W> causal_mask(std::int64_t key, std::int64_t query) {
  return load<W>(kCausalMask<W>.values + W - (key - query));
}

/// Rows needed soon, fetched into the second-level cache a few at a time while others are computed.
/// A head's numbers lie in short pieces far apart, which no processor foresees: read only when they
/// are needed, they cost a tenth of the time and more.
template <int Streams>
class Ahead {
 public:
  /// Begins anew: `rows` of `width` floats in calls of fetch(), of which there will be `calls`.
  void begin(std::int64_t rows, std::int64_t width, std::int64_t calls) {
    bytes_ = width * 4;
    pieces_ = rows * ((bytes_ + kPiece - 1) / kPiece);
    step_ = pieces_ / (calls > 0 ? calls : 1) + 1;
    column_ = 0;
  }

  /// A tensor whose rows, from `token` on, are fetched. All must be set.
  template <typename T>
  void set(int stream, HeadsView<T> x, std::int64_t token, std::int64_t head) {
    at_[stream] = reinterpret_cast<const char*>(x.at(token, head));
    stride_[stream] = x.token * 4;
  }

  // no loop but the outer one: a branch foreseen wrongly costs as much as a fetch saves
  SEQREC_INLINE void fetch() {
    if (pieces_ <= 0) return;
    pieces_ -= step_;
    for (std::int64_t i = 0; i < step_; ++i) {
#pragma GCC unroll 8
      for (int s = 0; s < Streams; ++s) {
        __builtin_prefetch(at_[s] + column_, 0, 2);
        __builtin_prefetch(at_[s] + column_ + 64, 0, 2);
      }
      column_ += kPiece;
      if (column_ >= bytes_) {
        column_ = 0;
#pragma GCC unroll 8
        for (int s = 0; s < Streams; ++s) at_[s] += stride_[s];
      }
    }
  }

 private:
  static constexpr std::int64_t kPiece = 128;  // two lines
  const char* at_[Streams] = {};
  std::ptrdiff_t stride_[Streams] = {};
  std::int64_t pieces_ = 0, bytes_ = 0, column_ = 0, step_ = 1;
};

/// Where the rows lie that are needed after a block of queries: a block of the same row, or the
/// first of the next task.
struct NextBlock {
  std::int64_t token, head, count;
  bool same_row;
};

template <int W>
SEQREC_INLINE NextBlock next_block(const AttentionProblem& p, const AttentionTask& task,
                                   const QueryBlock& block) {
  const std::int64_t start = p.offsets[task.row], end = p.offsets[task.row + 1];
  const std::int64_t token = start + block.first + block.count;
  if (token < end) return {token, task.head, AttentionShape<W>::kQueries, true};
  if (task.next_row < 0) return {0, 0, 0, false};
  const std::int64_t first = p.offsets[task.next_row];
  const std::int64_t length = p.offsets[task.next_row + 1] - first;
  return {first, task.next_head, AttentionShape<W>::first_block(length).count, false};
}

/// A factor that no float holds, in two: products with it are rounded once.
struct Factor {
  float high, low;

  static Factor of(double x) {
    const float high = static_cast<float>(x);
    return {high, static_cast<float>(x - high)};
  }
};

/// The factor of the queries, so that a score is the exponent of a power of two.
SEQREC_INLINE Factor query_factor(double scale) { return Factor::of(scale * 1.4426950408889634); }

/// Copies `rows` rows of `width` floats times `factor` to rows of `padded`, a multiple of W, and
/// clears the rest of them and the `spare` rows after them.
template <int W>
SEQREC_NOINLINE void pack_rows(const float* from, std::ptrdiff_t stride, std::int64_t rows,
                               std::int64_t width, std::int64_t padded, Factor factor,
                               std::int64_t spare, float* to) {
  const std::int64_t whole = width / W * W;
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* source = from + r * stride;
    float* target = to + r * padded;
    for (std::int64_t c = 0; c < whole; c += W) {
      const Floats<W> x = load<W>(source + c);
      store<W>(target + c, x * factor.low + x * factor.high);
    }
    if (whole < padded) {
      const Floats<W> x = load_part<W>(source + whole, width - whole);
      store<W>(target + whole, x * factor.low + x * factor.high);
    }
  }
  for (std::int64_t i = rows * padded; i < (rows + spare) * padded; i += W) {
    store<W>(to + i, Floats<W>{});
  }
}

/// Turns packed rows [NV * W][padded] into [padded][NV * W].
template <int W, int NV>
SEQREC_NOINLINE void transpose_rows(const float* rows, std::int64_t padded, float* to) {
  for (int v = 0; v < NV; ++v) {
    for (std::int64_t c = 0; c < padded; c += 4) {
      Floats<W> out[4];
      transpose4<W>(rows + v * W * padded + c, padded, out);
      for (int i = 0; i < 4; ++i) store<W>(to + (c + i) * NV * W + v * W, out[i]);
    }
  }
}

}  // namespace SEQREC_ISA
}  // namespace seqrec
