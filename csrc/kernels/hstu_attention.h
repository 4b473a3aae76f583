// SPDX-License-Identifier: Apache-2.0
// Pointwise SiLU attention (Zhai et al. 2024, HSTU) of one row and head: tiles and the forward.
//
// A block of 48 queries meets the keys 64 at a time. Their scores are a tile in the first-level
// cache: lanes are keys, read from keys packed transposed. One pass adds the bias, applies silu and
// hides later keys; then the tile is multiplied with the values, lanes along the width. As nothing
// is normalised by a sum there is no maximum, no rescaling, and nothing to keep for the backward.
// What lies wholly above the diagonal is never computed, down to single register tiles.
//
// Scores are held times -log2(e), which the packed keys and the bias carry: 2^score is then the
// e^-x of the sigmoid without another multiplication.
#pragma once

#include "base/simd.h"
#include "base/vecmath.h"
#include "kernels/hstu_attention_types.h"

namespace seqrec {
namespace SEQREC_ISA {

namespace hstu {

inline constexpr std::int64_t kQueries = 48;  // rows of a tile of scores
inline constexpr std::int64_t kKeys = 64;     // its columns
inline constexpr float kToLog2 = -1.44269504f;
inline constexpr float kFromLog2 = -0.693147181f;

template <int W>
struct Shape {
  static constexpr int kVectors = W == 16 ? 2 : 4;  // of a register tile
  static constexpr int kRows = W == 16 ? 12 : 3;
  static constexpr std::int64_t kStride = kKeys + 2 * W;  // of a tile: room on both sides
  static constexpr std::int64_t kTile = kQueries * kStride;
};

SEQREC_INLINE std::int64_t lesser(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
SEQREC_INLINE std::int64_t greatest(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
template <int W>
SEQREC_INLINE std::int64_t whole_vectors(std::int64_t n) {
  return (n + W - 1) / W * W;
}

// ------------------------------------------------------------------------------- products

/// c[MR][NV * W] = or += the sum over k of a(r, k) * b[k][NV * W], rows of b and c strides apart.
///
/// a(r, k) is a[r * lda + k], or a[k * lda + r] where A is transposed. The loops over the tile are
/// marked for unrolling because GCC else unrolls them only after it has decided what can live in
/// registers: the sums would pass through the stack before and after the loop over k.
template <int W, int MR, int NV, bool kTransposed, bool kAdd>
SEQREC_NOINLINE void product(const float* a, std::int64_t lda, const float* b, std::int64_t ldb,
                             std::int64_t depth, float* c, std::int64_t ldc) {
  Floats<W> acc[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) acc[r][v] = Floats<W>{};
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    const float* row = b + k * ldb;
    const auto element = [&](int r) {
      return broadcast<W>(kTransposed ? a[k * lda + r] : a[r * lda + k]);
    };
    // what is fewer stays in registers while the other passes: else a tile would not fit into 16
    if constexpr (NV > MR) {
      Floats<W> x[MR];
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) x[r] = element(r);
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) {
        const Floats<W> column = load<W>(row + v * W);
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r) acc[r][v] += x[r] * column;
      }
    } else {
      Floats<W> column[NV];
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) column[v] = load<W>(row + v * W);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) {
        const Floats<W> x = element(r);
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) acc[r][v] += x * column[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) {
      // added at the end: sums of sums lose less than one long sum
      float* to = c + r * ldc + v * W;
      store<W>(to, kAdd ? load<W>(to) + acc[r][v] : acc[r][v]);
    }
  }
}

template <int W, int MR, bool kTransposed, bool kAdd>
SEQREC_INLINE void product_columns(const float* a, std::int64_t lda, const float* b,
                                   std::int64_t ldb, std::int64_t depth, float* c, std::int64_t ldc,
                                   std::int64_t columns) {
  constexpr int kVectors = Shape<W>::kVectors;
  std::int64_t at = 0;
  for (; at + kVectors * W <= columns; at += kVectors * W) {
    product<W, MR, kVectors, kTransposed, kAdd>(a, lda, b + at, ldb, depth, c + at, ldc);
  }
  const std::int64_t rest = (columns - at) / W;
  if (rest == 1) product<W, MR, 1, kTransposed, kAdd>(a, lda, b + at, ldb, depth, c + at, ldc);
  if constexpr (kVectors > 2) {
    if (rest == 2) product<W, MR, 2, kTransposed, kAdd>(a, lda, b + at, ldb, depth, c + at, ldc);
    if (rest == 3) product<W, MR, 3, kTransposed, kAdd>(a, lda, b + at, ldb, depth, c + at, ldc);
  }
}

/// Up to kRows rows of C against `columns` columns, whole vectors of them.
template <int W, bool kTransposed, bool kAdd>
SEQREC_NOINLINE void product_strip(const float* a, std::int64_t lda, const float* b,
                                   std::int64_t ldb, std::int64_t depth, float* c, std::int64_t ldc,
                                   std::int64_t rows, std::int64_t columns) {
  constexpr int kRows = Shape<W>::kRows;
  const std::int64_t step = kTransposed ? 1 : lda;
  if (rows == kRows) {
    product_columns<W, kRows, kTransposed, kAdd>(a, lda, b, ldb, depth, c, ldc, columns);
    return;
  }
  if constexpr (kRows > 4) {
    for (; rows >= 4; rows -= 4, a += 4 * step, c += 4 * ldc) {
      product_columns<W, 4, kTransposed, kAdd>(a, lda, b, ldb, depth, c, ldc, columns);
    }
  }
  for (; rows > 0; --rows, a += step, c += ldc) {
    product_columns<W, 1, kTransposed, kAdd>(a, lda, b, ldb, depth, c, ldc, columns);
  }
}

// ------------------------------------------------------------------------------- packing

/// Rows of `width` floats, `stride` apart, side by side in rows of `padded`; zeros fill the rest.
template <int W>
SEQREC_NOINLINE void pack_rows(const float* from, std::int64_t stride, std::int64_t count,
                               std::int64_t rows, std::int64_t width, std::int64_t padded,
                               float* to) {
  const std::int64_t whole = width / W * W;
  for (std::int64_t r = 0; r < count; ++r, from += stride, to += padded) {
    for (std::int64_t c = 0; c < whole; c += W) store<W>(to + c, load<W>(from + c));
    if (whole < width) store<W>(to + whole, load_part<W>(from + whole, width - whole));
  }
  for (std::int64_t i = 0; i < (rows - count) * padded; i += W) store<W>(to + i, Floats<W>{});
}

/// The transpose of packed rows, times a factor: to[c * kKeys + r] = factor * rows[r * padded + c].
template <int W>
SEQREC_NOINLINE void pack_transposed(const float* rows, std::int64_t count, std::int64_t padded,
                                     float factor, float* to) {
  for (std::int64_t r = 0; r < count; r += W) {
    for (std::int64_t c = 0; c < padded; c += 4) {
      Floats<W> part[4];
      transpose4<W>(rows + r * padded + c, static_cast<std::ptrdiff_t>(padded), part);
      for (int i = 0; i < 4; ++i) store<W>(to + (c + i) * kKeys + r, part[i] * factor);
    }
  }
}

/// Writes rows of `width` floats out of rows of `padded`, times a factor.
template <int W>
SEQREC_NOINLINE void unpack_rows(const float* from, std::int64_t count, std::int64_t width,
                                 std::int64_t padded, float factor, float* to,
                                 std::int64_t stride) {
  const std::int64_t whole = width / W * W;
  for (std::int64_t r = 0; r < count; ++r, from += padded, to += stride) {
    for (std::int64_t c = 0; c < whole; c += W) store<W>(to + c, load<W>(from + c) * factor);
    if (whole < width) {
      store_part<W>(to + whole, load<W>(from + whole) * factor, width - whole);
    }
  }
}

/// Asks for rows of a tensor that will be read, or written, soon: into the second-level cache.
template <bool kWrite>
SEQREC_INLINE void prefetch_rows(const float* from, std::int64_t stride, std::int64_t count,
                                 std::int64_t width) {
  for (std::int64_t r = 0; r < count; ++r, from += stride) {
    for (std::int64_t c = 0; c < width; c += 16) __builtin_prefetch(from + c, kWrite, 2);
  }
}

// ------------------------------------------------------------------------------- bias

/// kToLog2 * bias; the most negative numbers, a usual mask, would become infinite, of which silu is
/// not a number.
SEQREC_INLINE float bias_exponent(float bias) {
  constexpr float kMask = -0x1p126f, kLeast = -0x1.fffffep127f;
  return bias < kMask && bias >= kLeast ? -kMask : kToLog2 * bias;
}

/// The bias of one row and head by j - i, so that the keys of a query read it in order.
///
/// Entry (length - 1) + (j - i) holds kToLog2 * bias[|j - i|]; a vector more of zeros follows.
template <int W>
SEQREC_NOINLINE void spread_bias(const float* bias, std::int64_t distances, std::int64_t length,
                                 float* spread) {
  float* middle = spread + length - 1;
  for (std::int64_t d = 0; d < length; ++d) {
    const float value = bias_exponent(bias[d < distances ? d : distances - 1]);
    middle[d] = value;
    middle[-d] = value;
  }
  for (std::int64_t i = 0; i < 2 * W; ++i) middle[length + i] = 0.0f;
}
constexpr std::int64_t spread_size(std::int64_t length, int lanes) {
  return (2 * length + 3 * lanes) / 16 * 16 + 16;
}

SEQREC_INLINE std::int32_t time_bucket(const TimeBuckets& tables, std::int64_t a, std::int64_t b) {
  const std::uint64_t x = static_cast<std::uint64_t>(a), y = static_cast<std::uint64_t>(b);
  const std::uint64_t d = (a > b ? x - y : y - x) | (a == b);  // 0 counts as 1
  const int zeros = __builtin_clzll(d);
  const std::uint64_t cell = static_cast<std::uint64_t>(63 - zeros) << 3 | (d << zeros >> 60 & 7);
  const std::int32_t bucket = tables.cells[cell];
  return bucket + (d >= tables.bounds[bucket + 1]);
}

/// Where a tile lies: queries first_query .. + queries of a row, keys first_key .. + keys.
struct Place {
  std::int64_t first_query, queries, first_key, keys;
  bool causal;

  /// Keys of the tile that query `r` of it sees.
  SEQREC_INLINE std::int64_t visible(std::int64_t r) const {
    return causal ? greatest(0, lesser(keys, first_query + r + 1 - first_key)) : keys;
  }
};

/// Adds the bias by time to a tile of scores and keeps the buckets where `kept` is not null.
template <int W>
SEQREC_NOINLINE void add_time_bias(const HstuAttentionProblem& p, const Place& place,
                                   const std::int64_t* times, const float* table, float* scores,
                                   std::int32_t* kept) {
  for (std::int64_t r = 0; r < place.queries; ++r) {
    const std::int64_t now = times[place.first_query + r], visible = place.visible(r);
    const std::int64_t* then = times + place.first_key;
    float* row = scores + r * Shape<W>::kStride;
    for (std::int64_t c = 0; c < visible; ++c) {
      const std::int32_t bucket = time_bucket(p.time_buckets, now, then[c]);
      row[c] += kToLog2 * table[bucket];
      if (kept) kept[r * kKeys + c] = bucket;
    }
  }
}

// ------------------------------------------------------------------------------- scores

/// scores = rows of A times packed keys, for all register tiles that some query sees.
template <int W>
SEQREC_NOINLINE void multiply_keys(const Place& place, const float* a, std::int64_t lda,
                                   const float* keys, std::int64_t depth, float* scores) {
  constexpr std::int64_t kRows = Shape<W>::kRows, kStride = Shape<W>::kStride;
  for (std::int64_t r = 0; r < place.queries; r += kRows) {
    const std::int64_t rows = lesser(kRows, place.queries - r);
    const std::int64_t columns = whole_vectors<W>(place.visible(r + rows - 1));
    product_strip<W, false, false>(a + r * lda, lda, keys, kKeys, depth, scores + r * kStride,
                                   kStride, rows, columns);
  }
}

/// 1 + 2^t, the inverse of the sigmoid of x where t = -x log2(e); infinity for t above 127.5.
template <int W>
SEQREC_INLINE Floats<W> one_plus_exp2(Floats<W> t) {
  using namespace vecmath;
  // 2^128 is infinity, by which the sigmoid becomes 0. NaN passes: minimum and maximum return their
  // second argument then.
  const Floats<W> bounded = minimum<W>(broadcast<W>(128.0f), maximum<W>(broadcast<W>(-126.0f), t));
  const Floats<W> shifted = bounded + kRound;
  const Floats<W> r = bounded - (shifted - kRound);
  // 2^r: the polynomial of small_expm1 in units of ln 2
  Floats<W> y = r * 1.54719658e-4f + 1.33904941e-3f;
  y = y * r + 9.61802277e-3f;
  y = y * r + 5.55036142e-2f;
  y = y * r + 2.40226507e-1f;
  y = y * r + 6.93147181e-1f;
  y = y * r + 1.0f;
  const Floats<W> power = floats_of<W>((bits_of<W>(shifted) << 23) + (127 << 23));
  return y * power + 1.0f;
}

/// Lanes first, first + 1, … that are below `count` keep their value; the others become 0.
template <int W>
SEQREC_INLINE Floats<W> keep_first(Floats<W> x, std::int64_t count) {
  static constexpr float kLane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Floats<W> limit = broadcast<W>(static_cast<float>(count));
  return select<W>(greater<W>(limit, load<W>(kLane)), x, Floats<W>{});
}

/// Turns scores into t sigmoid(x) = silu(x) / kFromLog2, 0 where a query does not see.
///
/// `bias` is that of the query and key that the tile begins with, or null.
template <int W, bool kBias>
SEQREC_NOINLINE void apply_silu(const Place& place, const float* bias, float* scores) {
  constexpr std::int64_t kRows = Shape<W>::kRows;
  for (std::int64_t r = 0; r < place.queries; ++r) {
    float* row = scores + r * Shape<W>::kStride;
    const float* row_bias = kBias ? bias - r : nullptr;
    const std::int64_t visible = place.visible(r);
    const auto at = [&](std::int64_t c) {
      Floats<W> t = load<W>(row + c);
      if constexpr (kBias) t += load<W>(row_bias + c);
      return t / one_plus_exp2<W>(t);
    };
    std::int64_t c = 0;
    for (; c + W <= visible; c += W) store<W>(row + c, at(c));
    if (c < visible) {
      store<W>(row + c, keep_first<W>(at(c), visible - c));
      c += W;
    }
    // other queries of the register tile see further
    const std::int64_t last = place.visible(lesser(r / kRows * kRows + kRows, place.queries) - 1);
    for (; c < last; c += W) store<W>(row + c, Floats<W>{});
  }
}

/// The row and head that most likely come next, and how much of them there is to ask for.
struct Next {
  std::int64_t begin, length, head;

  SEQREC_INLINE Next(const HstuAttentionProblem& p, std::int64_t row, std::int64_t head_now)
      : begin(0), length(0), head(head_now + 1) {
    if (head == p.heads) {
      head = 0;
      ++row;
    }
    if (row == p.rows) return;
    begin = p.offsets[row];
    length = p.offsets[row + 1] - begin;
  }

  /// Tokens from .. from + count of it, where there are so many.
  SEQREC_INLINE void prefetch(const HeadsView<const float>& view, std::int64_t from,
                              std::int64_t count, std::int64_t width) const {
    prefetch_rows<false>(view.data + (begin + from) * view.token + head * view.head, view.token,
                         lesser(count, length - from), width);
  }
};

}  // namespace hstu

template <int W>
struct HstuAttentionForward {
  using Shape = hstu::Shape<W>;

  static std::int64_t scratch(const HstuAttentionProblem& p) {
    const std::int64_t padded = hstu::whole_vectors<W>(p.width);
    const std::int64_t keys = (p.max_length + hstu::kKeys - 1) / hstu::kKeys * hstu::kKeys;
    return 2 * keys * padded + hstu::kQueries * padded + Shape::kTile +
           hstu::spread_size(p.max_length, W);
  }

  static void run(const HstuAttentionProblem& p, std::int64_t row, std::int64_t head,
                  std::int64_t first, std::int64_t end, float* scratch, float* out) {
    using namespace hstu;
    const std::int64_t begin = p.offsets[row], length = p.offsets[row + 1] - begin;
    const std::int64_t padded = whole_vectors<W>(p.width);
    const std::int64_t seen = p.causal ? end : length;
    const std::int64_t blocks = (seen + kKeys - 1) / kKeys;
    float* keys = scratch;  // [blocks][padded][kKeys]
    float* values = keys + blocks * kKeys * padded;
    float* sums = values + blocks * kKeys * padded;
    float* tile = sums + kQueries * padded + W;
    float* spread = tile - W + Shape::kTile;

    const float* k = p.k.data + begin * p.k.token + head * p.k.head;
    const float* v = p.v.data + begin * p.v.token + head * p.v.head;
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::int64_t at = block * kKeys, count = lesser(kKeys, seen - at);
      const std::int64_t rows = whole_vectors<W>(count);
      // the values of the block are not packed yet: their place serves for the rows of the keys
      float* here = values + at * padded;
      pack_rows<W>(k + at * p.k.token, p.k.token, count, rows, p.width, padded, here);
      pack_transposed<W>(here, rows, padded, kToLog2 * p.scale, keys + at * padded);
      pack_rows<W>(v + at * p.v.token, p.v.token, count, count, p.width, padded, here);
    }
    if (p.bias) spread_bias<W>(p.bias + head * p.distances, p.distances, length, spread);

    const Next next(p, row, head);
    const float* q = p.q.data + begin * p.q.token + head * p.q.head;
    for (std::int64_t at = first; at < end; at += kQueries) {
      const std::int64_t queries = lesser(kQueries, end - at);
      for (std::int64_t i = 0; i < queries * padded; i += W) store<W>(sums + i, Floats<W>{});
      float* to = out + ((begin + at) * p.heads + head) * p.width;
      prefetch_rows<true>(to, p.heads * p.width, queries, p.width);
      next.prefetch(p.q, at, kQueries, p.width);
      next.prefetch(p.k, at, kQueries, p.width);
      next.prefetch(p.v, at, kQueries, p.width);
      const std::int64_t limit = p.causal ? at + queries : length;
      for (std::int64_t key = 0; key < limit; key += kKeys) {
        const Place place{at, queries, key, lesser(kKeys, limit - key), p.causal};
        multiply_keys<W>(place, q + at * p.q.token, p.q.token, keys + key * padded, p.width, tile);
        if (p.time_bias) {
          add_time_bias<W>(p, place, p.times + begin, p.time_bias + head * p.buckets, tile,
                           nullptr);
        }
        if (p.bias) {
          apply_silu<W, true>(place, spread + length - 1 + key - at, tile);
        } else {
          apply_silu<W, false>(place, nullptr, tile);
        }
        for (std::int64_t r = 0; r < queries; r += Shape::kRows) {
          const std::int64_t rows = lesser(Shape::kRows, queries - r);
          product_strip<W, false, true>(tile + r * Shape::kStride, Shape::kStride,
                                        values + key * padded, padded, place.visible(r + rows - 1),
                                        sums + r * padded, padded, rows, padded);
        }
      }
      unpack_rows<W>(sums, queries, p.width, padded, kFromLog2 / p.normaliser, to,
                     p.heads * p.width);
    }
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
