// SPDX-License-Identifier: Apache-2.0
// Softmax attention of one row and head, backward.
//
// With P the weights, O the output and dO its gradient: dV = P^T dO, dP = dO V^T,
// dS = P (dP - delta) with delta = rowsum(dO O), dQ = scale dS K, dK = scale dS^T Q (Dao et al.
// 2022, appendix B.2). P is made again from the scores. The sum that the softmax divides by goes
// into dO once instead of into every weight: P below is not normalised, dO and delta are.
//
// For each block of queries, groups of keys: the weights of a group live just long enough for dV,
// dS for dK; dS of a chunk of groups is kept for dQ, whose depth is the keys. Everything is of one
// row and head, so that no two threads add to one number.
#pragma once

#include "kernels/attention_tile.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W>
struct AttentionBackward {
  using F = Floats<W>;
  using Shape = AttentionShape<W>;
  static constexpr int kVectors = Shape::kVectors;
  static constexpr int kQueries = Shape::kQueries;
  static constexpr int kKeyRows = Shape::kKeyRows;
  static constexpr int kRows = Shape::kRows;
  static constexpr int kGroup = W == 16 ? 16 : 12;           // keys: whole tiles of both kinds
  static constexpr int kChunk = kGroup * (W == 16 ? 4 : 8);  // keys whose dS is kept
  static_assert(kGroup % kKeyRows == 0 && kGroup % kRows == 0, "a group is whole tiles");

  struct Scratch {
    float *keys, *values, *d_keys, *d_values;  // [length + kGroup][padded]
    float *queries, *d_out, *d_queries;        // [kQueries][padded]
    float *query_panel, *d_out_panel;          // [padded][kQueries]
    float* weights;                            // [kGroup][kQueries]
    float* d_scores;                           // [kChunk][kQueries]
  };

  static std::int64_t scratch_floats(std::int64_t width, std::int64_t length) {
    return (4 * (length + kGroup) + 5 * kQueries) * Shape::padded(width) +
           (kGroup + kChunk) * kQueries;
  }

  static Scratch carve(float* at, std::int64_t padded, std::int64_t length) {
    const auto take = [&at](std::int64_t count) {
      float* part = at;
      at += count;
      return part;
    };
    const std::int64_t row = (length + kGroup) * padded, block = kQueries * padded;
    Scratch s{};
    s.weights = take(kGroup * kQueries);
    s.d_scores = take(kChunk * kQueries);
    s.queries = take(block);
    s.d_out = take(block);
    s.d_queries = take(block);
    s.query_panel = take(block);
    s.d_out_panel = take(block);
    s.keys = take(row);
    s.values = take(row);
    s.d_keys = take(row);
    s.d_values = take(row);
    return s;
  }

  struct Block {
    QueryBlock queries;
    std::int64_t width, padded;
    bool causal;
    F reference[kVectors], delta[kVectors];
  };

  /// Weights and dS of a tile of keys for the vectors [from, from + NV) of the block.
  template <int NV, bool Masked>
  static void score_tile(const Scratch& s, const Block& b, int from, std::int64_t key,
                         float* weights, float* d_scores) {
    F acc[kKeyRows][NV] = {};
    attention_tile<W, kKeyRows, NV>(s.keys + key * b.padded, b.padded, 1, s.query_panel + from * W,
                                    kQueries, b.width, acc);
    for (int r = 0; r < kKeyRows; ++r) {
      for (int v = 0; v < NV; ++v) {
        F score = acc[r][v] - b.reference[from + v];
        if constexpr (Masked) {
          const std::int64_t later = key + r - (b.queries.first + (from + v) * W);
          score += causal_mask<W>(later < 0 ? 0 : later > W ? W : later, 0);
        }
        store<W>(weights + r * kQueries + (from + v) * W, exp2_of_score<W>(score));
      }
    }
    F slope[kKeyRows][NV] = {};
    attention_tile<W, kKeyRows, NV>(s.values + key * b.padded, b.padded, 1,
                                    s.d_out_panel + from * W, kQueries, b.width, slope);
    for (int r = 0; r < kKeyRows; ++r) {
      for (int v = 0; v < NV; ++v) {
        const F weight = load<W>(weights + r * kQueries + (from + v) * W);
        store<W>(d_scores + r * kQueries + (from + v) * W,
                 weight * (slope[r][v] - b.delta[from + v]));
      }
      for (int v = 0; v < from; ++v) {
        store<W>(weights + r * kQueries + v * W, F{});
        store<W>(d_scores + r * kQueries + v * W, F{});
      }
    }
  }

  template <bool Masked>
  static SEQREC_INLINE void score_vectors(int count, const Scratch& s, const Block& b, int from,
                                          std::int64_t key, float* weights, float* d_scores) {
    if constexpr (kVectors == 3) {
      if (count == 3) return score_tile<3, Masked>(s, b, from, key, weights, d_scores);
    }
    if (count == 2) return score_tile<2, Masked>(s, b, from, key, weights, d_scores);
    score_tile<1, Masked>(s, b, from, key, weights, d_scores);
  }

  /// sums[r] (+)= sum over k of a[r * row + k * depth_stride] * b[k], NV vectors of the width.
  template <int NV>
  static SEQREC_INLINE void add_product(const float* a, std::ptrdiff_t row,
                                        std::ptrdiff_t depth_stride, const float* b,
                                        std::int64_t depth, std::int64_t padded, bool fresh,
                                        float* sums) {
    F acc[kRows][NV] = {};
    if (!fresh) {
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < NV; ++v) acc[r][v] = load<W>(sums + r * padded + v * W);
      }
    }
    attention_tile<W, kRows, NV>(a, row, depth_stride, b, padded, depth, acc);
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < NV; ++v) store<W>(sums + r * padded + v * W, acc[r][v]);
    }
  }

  static SEQREC_NOINLINE void add_products(const float* a, std::ptrdiff_t row,
                                           std::ptrdiff_t depth_stride, const float* b,
                                           std::int64_t depth, std::int64_t padded, bool fresh,
                                           float* sums) {
    std::int64_t c = 0;
    for (; c + 2 * W <= padded; c += 2 * W) {
      add_product<2>(a, row, depth_stride, b + c, depth, padded, fresh, sums + c);
    }
    if (c < padded) add_product<1>(a, row, depth_stride, b + c, depth, padded, fresh, sums + c);
  }

  static SEQREC_NOINLINE void attend(const Scratch& s, const Block& b, std::int64_t length,
                                     Ahead<8>& ahead) {
    const std::int64_t first = b.queries.first, count = b.queries.count;
    const int vectors = static_cast<int>((count + W - 1) / W);
    const std::int64_t limit = b.causal ? first + count : length;
    for (std::int64_t begin = 0; begin < limit; begin += kChunk) {
      const std::int64_t end = begin + kChunk < limit ? begin + kChunk : limit;
      for (std::int64_t group = begin; group < end; group += kGroup) {
        ahead.fetch();

        for (std::int64_t key = group; key < group + kGroup; key += kKeyRows) {
          float* weights = s.weights + (key - group) * kQueries;
          float* d_scores = s.d_scores + (key - begin) * kQueries;
          if (!b.causal || key + kKeyRows <= first + 1) {
            score_vectors<false>(vectors, s, b, 0, key, weights, d_scores);
            continue;
          }
          // vectors of queries all earlier than this key are passed over
          const std::int64_t hidden = key > first ? (key - first) / W : 0;
          const int from = static_cast<int>(hidden < vectors ? hidden : vectors - 1);
          score_vectors<true>(vectors - from, s, b, from, key, weights, d_scores);
        }
        for (std::int64_t key = group; key < group + kGroup; key += kRows) {
          const std::int64_t skip = b.causal && key > first ? (key - first) : 0;
          if (skip >= count) break;
          const std::int64_t at = (key - group) * kQueries + skip;
          add_products(s.weights + at, kQueries, 1, s.d_out + skip * b.padded, count - skip,
                       b.padded, false, s.d_values + key * b.padded);
          add_products(s.d_scores + (group - begin) * kQueries + at, kQueries, 1,
                       s.queries + skip * b.padded, count - skip, b.padded, false,
                       s.d_keys + key * b.padded);
        }
      }
      for (std::int64_t row = 0; row < count; row += kRows) {
        const std::int64_t last = first + row + kRows;
        const std::int64_t seen = b.causal && last < end ? last : end;
        if (seen <= begin) continue;
        add_products(s.d_scores + row, 1, kQueries, s.keys + begin * b.padded, seen - begin,
                     b.padded, begin == 0, s.d_queries + row * b.padded);
      }
    }
  }

  /// Packs the queries, the gradient of the output and what the softmax left.
  static SEQREC_NOINLINE void begin_block(const AttentionProblem& p, const Scratch& s,
                                          std::int64_t token, std::int64_t head,
                                          AttentionStatistics statistics,
                                          const AttentionGradients& g, Block& b) {
    const std::int64_t count = b.queries.count, padded = b.padded;
    const std::int64_t whole = b.width / W * W, spare = kQueries - count;
    pack_rows<W>(p.q.at(token, head), p.q.token, count, b.width, padded, query_factor(p.scale),
                 spare, s.queries);
    transpose_rows<W, kVectors>(s.queries, padded, s.query_panel);
    const float* inverse = statistics.inverse + head * p.tokens + token;
    float delta[kQueries] = {};
    for (std::int64_t r = 0; r < count; ++r) {
      float* d_out = s.d_out + r * padded;
      pack_rows<W>(g.d_out.at(token + r, head), 0, 1, b.width, padded, {inverse[r], 0.0f}, 0,
                   d_out);
      const float* out = g.out.at(token + r, head);
      F sum{};
      for (std::int64_t c = 0; c < whole; c += W) sum += load<W>(d_out + c) * load<W>(out + c);
      if (whole < b.width) {
        sum += load<W>(d_out + whole) * load_part<W>(out + whole, b.width - whole);
      }
      delta[r] = horizontal_sum<W>(sum);
    }
    for (std::int64_t i = count * padded; i < kQueries * padded; i += W) {
      store<W>(s.d_out + i, F{});
    }
    transpose_rows<W, kVectors>(s.d_out, padded, s.d_out_panel);
    const float* reference = statistics.reference + head * p.tokens + token;
    for (int v = 0; v < kVectors; ++v) {
      const std::int64_t rest = count - v * W;
      b.reference[v] = load_part<W>(reference + v * W, rest < 0 ? 0 : rest < W ? rest : W);
      b.delta[v] = load<W>(delta + v * W);
    }
  }

  static SEQREC_NOINLINE void write_rows(const float* from, std::int64_t rows, std::int64_t width,
                                         std::int64_t padded, float factor, float* to,
                                         std::ptrdiff_t stride) {
    const std::int64_t whole = width / W * W;
    for (std::int64_t r = 0; r < rows; ++r, from += padded, to += stride) {
      for (std::int64_t c = 0; c < whole; c += W) store<W>(to + c, load<W>(from + c) * factor);
      if (whole < width) store_part<W>(to + whole, load<W>(from + whole) * factor, width - whole);
    }
  }

  static void pack_keys(const AttentionProblem& p, const Scratch& s, std::int64_t head,
                        std::int64_t start, std::int64_t first, std::int64_t count) {
    const std::int64_t padded = Shape::padded(p.width), token = start + first;
    pack_rows<W>(p.k.at(token, head), p.k.token, count, p.width, padded, {1.0f, 0.0f}, kGroup,
                 s.keys + first * padded);
    pack_rows<W>(p.v.at(token, head), p.v.token, count, p.width, padded, {1.0f, 0.0f}, kGroup,
                 s.values + first * padded);
    // rows that the block before cleared as its spare ones may have been added to since: by zeros
    pack_rows<W>(nullptr, 0, 0, p.width, padded, {}, count + kGroup, s.d_keys + first * padded);
    pack_rows<W>(nullptr, 0, 0, p.width, padded, {}, count + kGroup, s.d_values + first * padded);
  }

  /// What the next block reads and writes, and where the gradients of this one's keys will go.
  static void aim(Ahead<8>& ahead, const AttentionProblem& p, const AttentionTask& task,
                  const AttentionGradients& g, const QueryBlock& block, std::int64_t limit) {
    const NextBlock next = next_block<W>(p, task, block);
    ahead.begin(next.count, p.width, limit / kGroup);
    ahead.set(0, p.q, next.token, next.head);
    ahead.set(1, g.out, next.token, next.head);
    ahead.set(2, g.d_out, next.token, next.head);
    ahead.set(3, g.d_q, next.token, next.head);
    // without a mask the keys of this row are packed already
    const bool keys = p.causal || !next.same_row;
    ahead.set(4, keys ? p.k : p.q, next.token, next.head);
    ahead.set(5, keys ? p.v : p.q, next.token, next.head);
    ahead.set(6, g.d_k, p.offsets[task.row] + block.first, task.head);
    ahead.set(7, g.d_v, p.offsets[task.row] + block.first, task.head);
  }

  static void backward(const AttentionProblem& p, const AttentionTask& task,

                       float* scratch, AttentionStatistics statistics,
                       const AttentionGradients& g) {
    const std::int64_t head = task.head, start = p.offsets[task.row];
    const std::int64_t length = p.offsets[task.row + 1] - start;
    const std::int64_t padded = Shape::padded(p.width);
    const Scratch s = carve(scratch, padded, length);
    if (!p.causal) pack_keys(p, s, head, start, 0, length);
    Ahead<8> ahead;
    Block b{};
    b.width = p.width;
    b.padded = padded;
    b.causal = p.causal;
    for (b.queries = Shape::first_block(length); b.queries.first < length;
         b.queries = {b.queries.first + b.queries.count, kQueries}) {
      const std::int64_t token = start + b.queries.first;
      begin_block(p, s, token, head, statistics, g, b);
      if (p.causal) pack_keys(p, s, head, start, b.queries.first, b.queries.count);
      aim(ahead, p, task, g, b.queries, p.causal ? b.queries.first + b.queries.count : length);
      attend(s, b, length, ahead);
      write_rows(s.d_queries, b.queries.count, p.width, padded, static_cast<float>(p.scale),
                 g.d_q.at(token, head), g.d_q.token);
    }
    // the packed queries hold scale log2(e)
    write_rows(s.d_keys, length, p.width, padded, 0.693147181f, g.d_k.at(start, head), g.d_k.token);
    write_rows(s.d_values, length, p.width, padded, 1.0f, g.d_v.at(start, head), g.d_v.token);
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
