// SPDX-License-Identifier: Apache-2.0
// The backward of pointwise SiLU attention for one row and head.
//
// With S the scores, A = silu(S) / n and dO the gradient that comes in:
//   dA = dO V^T,  dS = dA silu'(S) / n,
//   dV = A^T dO,  dQ = scale dS K,  dK = scale dS^T Q,  dbias[i - j] = sum of dS on that diagonal.
// S is computed again rather than kept: it costs one product of the five and saves a matrix of
// length x length. Blocks of keys are the outer loop, so that their gradients stay in the cache
// while the queries pass; the gradients of the queries are added up in scratch memory. The division
// by n and the scale are left to the end, when the sums are written.
#pragma once

#include "kernels/hstu_attention.h"

namespace seqrec {
namespace SEQREC_ISA {

namespace hstu {

/// Turns scores into silu, and dA into dS times n; both are 0 where a query does not see.
template <int W, bool kBias>
SEQREC_NOINLINE void apply_slope(const Place& place, const float* bias, float* scores,
                                 float* slopes) {
  // later passes read whole vectors of a row, and those of a diagonal one more
  const std::int64_t end = whole_vectors<W>(place.keys) + W;
  for (std::int64_t r = 0; r < place.queries; ++r) {
    float* row = scores + r * Shape<W>::kStride;
    float* slope_row = slopes + r * Shape<W>::kStride;
    const float* row_bias = kBias ? bias - r : nullptr;
    const std::int64_t visible = place.visible(r);
    const auto at = [&](std::int64_t c, std::int64_t count) {
      Floats<W> t = load<W>(row + c);
      if constexpr (kBias) t += load<W>(row_bias + c);
      const Floats<W> sigmoid = 1.0f / one_plus_exp2<W>(t);
      Floats<W> silu = (t * kFromLog2) * sigmoid;
      Floats<W> slope = load<W>(slope_row + c) * (silu * (1.0f - sigmoid) + sigmoid);
      if (count < W) {
        silu = keep_first<W>(silu, count);
        slope = keep_first<W>(slope, count);
      }
      store<W>(row + c, silu);
      store<W>(slope_row + c, slope);
    };
    std::int64_t c = 0;
    for (; c + W <= visible; c += W) at(c, W);
    if (c < visible) {
      at(c, visible - c);
      c += W;
    }
    for (; c < end; c += W) {
      store<W>(row + c, Floats<W>{});
      store<W>(slope_row + c, Floats<W>{});
    }
  }
}

/// sums[(length - 1) + (j - i)] += slopes of query i and key j: a vector of diagonals at a time.
///
/// Rows of the tile have zeros on both sides. Diagonals are read where they lie, one step to the
/// right a row, so that nothing that was just written is read at another offset.
template <int W>
SEQREC_NOINLINE void add_diagonals(const Place& place, const float* slopes, float* sums) {
  constexpr std::int64_t kStride = Shape<W>::kStride;
  const std::int64_t keys = place.visible(place.queries - 1);
  for (std::int64_t diagonal = 1 - place.queries; diagonal < keys; diagonal += W) {
    // rows in which columns diagonal + r .. + W overlap those of the tile
    const std::int64_t from = greatest(0, 1 - W - diagonal);
    const std::int64_t to = lesser(place.queries, keys - diagonal);
    float* sum = sums + diagonal;
    Floats<W> even = load<W>(sum), odd{};
    std::int64_t r = from;
    for (; r + 2 <= to; r += 2) {
      even += load<W>(slopes + r * kStride + diagonal + r);
      odd += load<W>(slopes + (r + 1) * kStride + diagonal + r + 1);
    }
    if (r < to) even += load<W>(slopes + r * kStride + diagonal + r);
    store<W>(sum, even + odd);
  }
}

inline void add_by_bucket(const Place& place, const float* slopes, std::int64_t stride,
                          const std::int32_t* buckets, float factor, float* sums) {
  for (std::int64_t r = 0; r < place.queries; ++r) {
    const std::int64_t visible = place.visible(r);
    for (std::int64_t c = 0; c < visible; ++c) {
      sums[buckets[r * kKeys + c]] += factor * slopes[r * stride + c];
    }
  }
}

}  // namespace hstu

template <int W>
struct HstuAttentionBackward {
  using Shape = hstu::Shape<W>;

  // Room on both sides of the sums by diagonal: vectors may begin before and end after them.
  static constexpr std::int64_t kMargin = hstu::kQueries;

  static std::int64_t sums_size(std::int64_t length) {
    return (2 * length + 2 * kMargin + W + 15) / 16 * 16;
  }

  static std::int64_t scratch(const HstuAttentionProblem& p) {
    const std::int64_t padded = hstu::whole_vectors<W>(p.width);
    return 3 * p.max_length * padded + 5 * hstu::kKeys * padded + 2 * Shape::kTile +
           hstu::kQueries * hstu::kKeys + hstu::spread_size(p.max_length, W) +
           sums_size(p.max_length);
  }

  static void run(const HstuAttentionProblem& p, const HstuAttentionGradients& g, std::int64_t row,
                  std::int64_t head, float* scratch) {
    using namespace hstu;
    constexpr std::int64_t kRows = Shape::kRows, kStride = Shape::kStride;
    const std::int64_t begin = p.offsets[row], length = p.offsets[row + 1] - begin;
    const std::int64_t padded = whole_vectors<W>(p.width), block = kKeys * padded;
    float* q = scratch;  // [length][padded], as the next two
    float* d_out = q + length * padded;
    float* d_q = d_out + length * padded;
    float* k = d_q + length * padded;  // [kKeys][padded]
    float* k_transposed = k + block;   // [padded][kKeys]
    float* v_transposed = k_transposed + block;
    float* d_k = v_transposed + block;
    float* d_v = d_k + block;
    float* scores = d_v + block + W;
    float* slopes = scores + Shape::kTile;
    std::int32_t* buckets = reinterpret_cast<std::int32_t*>(slopes - W + Shape::kTile);
    float* spread = reinterpret_cast<float*>(buckets + kQueries * kKeys);
    float* sums = spread + spread_size(p.max_length, W);

    const auto place_of = [&](const HeadsView<const float>& view) {
      return view.data + begin * view.token + head * view.head;
    };
    const std::int64_t out_stride = p.heads * p.width, to = begin * out_stride + head * p.width;
    pack_rows<W>(place_of(p.q), p.q.token, length, length, p.width, padded, q);
    pack_rows<W>(place_of(g.out), g.out.token, length, length, p.width, padded, d_out);
    for (std::int64_t i = 0; i < length * padded; i += W) store<W>(d_q + i, Floats<W>{});
    if (p.bias) spread_bias<W>(p.bias + head * p.distances, p.distances, length, spread);
    if (g.bias) {
      for (std::int64_t i = 0; i < sums_size(length); i += W) store<W>(sums + i, Floats<W>{});
      for (std::int64_t r = 0; r < kQueries; ++r) {
        store<W>(slopes + r * kStride - W, Floats<W>{});
      }
    }
    const Next next(p, row, head);
    float* middle = sums + kMargin + length - 1;  // of the diagonal i = j

    for (std::int64_t key = 0; key < length; key += kKeys) {
      const std::int64_t keys = lesser(kKeys, length - key), key_rows = whole_vectors<W>(keys);
      // the rows of the values are needed transposed only
      pack_rows<W>(place_of(p.v) + key * p.v.token, p.v.token, keys, key_rows, p.width, padded, k);
      pack_transposed<W>(k, key_rows, padded, 1.0f, v_transposed);
      pack_rows<W>(place_of(p.k) + key * p.k.token, p.k.token, keys, key_rows, p.width, padded, k);
      pack_transposed<W>(k, key_rows, padded, kToLog2 * p.scale, k_transposed);
      for (std::int64_t i = 0; i < keys * padded; i += W) {
        store<W>(d_k + i, Floats<W>{});
        store<W>(d_v + i, Floats<W>{});
      }
      const std::int64_t written = to + key * out_stride;
      prefetch_rows<true>(g.q + written, out_stride, keys, p.width);
      prefetch_rows<true>(g.k + written, out_stride, keys, p.width);
      prefetch_rows<true>(g.v + written, out_stride, keys, p.width);
      next.prefetch(p.q, key, kKeys, p.width);
      next.prefetch(p.k, key, kKeys, p.width);
      next.prefetch(p.v, key, kKeys, p.width);
      next.prefetch(g.out, key, kKeys, p.width);

      for (std::int64_t at = p.causal ? key : 0; at < length; at += kQueries) {
        const Place place{at, lesser(kQueries, length - at), key, keys, p.causal};
        multiply_keys<W>(place, q + at * padded, padded, k_transposed, p.width, scores);
        multiply_keys<W>(place, d_out + at * padded, padded, v_transposed, p.width, slopes);
        if (p.time_bias) {
          add_time_bias<W>(p, place, p.times + begin, p.time_bias + head * p.buckets, scores,
                           buckets);
        }
        if (p.bias) {
          apply_slope<W, true>(place, spread + length - 1 + key - at, scores, slopes);
        } else {
          apply_slope<W, false>(place, nullptr, scores, slopes);
        }
        for (std::int64_t c = 0; c < keys; c += kRows) {
          // queries before the first key of the strip see none of it
          const std::int64_t from = p.causal ? greatest(0, key + c - at) : 0;
          const std::int64_t depth = place.queries - from, rows = lesser(kRows, keys - c);
          if (depth <= 0) break;
          const std::int64_t tile_at = from * kStride + c, row_at = (at + from) * padded;
          product_strip<W, true, true>(scores + tile_at, kStride, d_out + row_at, padded, depth,
                                       d_v + c * padded, padded, rows, padded);
          product_strip<W, true, true>(slopes + tile_at, kStride, q + row_at, padded, depth,
                                       d_k + c * padded, padded, rows, padded);
        }
        for (std::int64_t r = 0; r < place.queries; r += kRows) {
          const std::int64_t rows = lesser(kRows, place.queries - r);
          product_strip<W, false, true>(slopes + r * kStride, kStride, k, padded,
                                        place.visible(r + rows - 1), d_q + (at + r) * padded,
                                        padded, rows, padded);
        }
        if (g.bias) add_diagonals<W>(place, slopes, middle + key - at);
        if (g.time_bias) {
          add_by_bucket(place, slopes, kStride, buckets, 1.0f / p.normaliser, g.time_bias);
        }
      }
      unpack_rows<W>(d_k, keys, p.width, padded, p.scale / p.normaliser, g.k + written, out_stride);
      unpack_rows<W>(d_v, keys, p.width, padded, 1.0f / p.normaliser, g.v + written, out_stride);
    }
    unpack_rows<W>(d_q, length, p.width, padded, p.scale / p.normaliser, g.q + to, out_stride);
    for (std::int64_t d = 0; g.bias && d < length; ++d) {
      const float sum = d > 0 && !p.causal ? middle[d] + middle[-d] : middle[-d];
      g.bias[lesser(d, p.distances - 1)] += sum / p.normaliser;
    }
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
