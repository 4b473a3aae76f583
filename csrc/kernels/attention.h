// SPDX-License-Identifier: Apache-2.0
// Softmax attention of one row and head, forward.
//
// Keys and values are packed once. For each block of queries the keys are taken in chunks whose
// scores stay in the first-level cache: scores and their maximum, exponentials and their sum, then
// the product with the values, rescaled where a later chunk raised the maximum (Milakov and
// Gimelshein 2018; Dao et al. 2022). What a causal mask hides is skipped, but for the tiles on the
// diagonal.
#pragma once

#include "kernels/attention_tile.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W>
struct Attention {
  using F = Floats<W>;
  using Shape = AttentionShape<W>;
  static constexpr int kVectors = Shape::kVectors;
  static constexpr int kQueries = Shape::kQueries;
  static constexpr int kKeyRows = Shape::kKeyRows;
  static constexpr int kRows = Shape::kRows;
  static constexpr std::int64_t kSpare = Shape::kSpareRows;
  static constexpr std::int64_t kChunk = 4096 / kQueries / 8 * 8;  // keys: 16 KiB of scores

  struct Scratch {
    float *keys, *values, *queries, *panel, *scores, *sums;
  };

  static std::int64_t scratch_floats(std::int64_t width, std::int64_t length) {
    const std::int64_t padded = Shape::padded(width);
    return (2 * (length + kSpare) + 3 * kQueries) * padded + (kChunk + kSpare) * kQueries;
  }

  static Scratch carve(float* at, std::int64_t padded, std::int64_t length) {
    Scratch s{};
    s.keys = at;
    s.values = s.keys + (length + kSpare) * padded;
    s.queries = s.values + (length + kSpare) * padded;
    s.panel = s.queries + kQueries * padded;
    s.sums = s.panel + kQueries * padded;
    s.scores = s.sums + kQueries * padded;
    return s;
  }

  /// Scores of keys [begin, end) for the vectors [from, from + NV) of the block, and their maximum
  /// over whole tiles of keys.
  template <int NV>
  static SEQREC_NOINLINE void score_keys(const Scratch& s, std::int64_t width, std::int64_t padded,
                                         int from, std::int64_t begin, std::int64_t end,
                                         float* scores, float* tops, Ahead<4>& ahead) {
    F top[NV];
    for (int v = 0; v < NV; ++v) top[v] = broadcast<W>(-__builtin_inff());
    for (std::int64_t key = begin; key < end; key += kKeyRows) {
      ahead.fetch();
      F acc[kKeyRows][NV] = {};
      attention_tile<W, kKeyRows, NV>(s.keys + key * padded, padded, 1, s.panel + from * W,
                                      kQueries, width, acc);
      float* to = scores + (key - begin) * kQueries + from * W;
      for (int r = 0; r < kKeyRows; ++r) {
        for (int v = 0; v < NV; ++v) {
          store<W>(to + r * kQueries + v * W, acc[r][v]);
          top[v] = maximum<W>(top[v], acc[r][v]);
        }
      }
    }
    for (int v = 0; v < NV; ++v) store<W>(tops + (from + v) * W, top[v]);
  }

  static void score_vectors(int count, const Scratch& s, std::int64_t width, std::int64_t padded,
                            int from, std::int64_t begin, std::int64_t end, float* scores,
                            float* tops, Ahead<4>& ahead) {
    if (begin >= end) return;
    if constexpr (kVectors == 3) {
      if (count == 3) return score_keys<3>(s, width, padded, from, begin, end, scores, tops, ahead);
    }
    if (count == 2) return score_keys<2>(s, width, padded, from, begin, end, scores, tops, ahead);
    score_keys<1>(s, width, padded, from, begin, end, scores, tops, ahead);
  }

  /// Turns one vector of scores down `keys` keys into weights; updates its maximum and sum. The
  /// maximum of these scores may be known.
  ///
  /// Returns by how much sums of earlier chunks shrink.
  static SEQREC_NOINLINE F soften(float* scores, std::int64_t keys, const float* known,
                                  F& reference, F& total) {
    constexpr int kUnroll = 4;
    F highest = reference;
    if (known != nullptr) {
      highest = maximum<W>(highest, load<W>(known));
    } else {
      for (std::int64_t k = 0; k < keys; ++k) {
        highest = maximum<W>(highest, load<W>(scores + k * kQueries));
      }
    }
    const F shrink = exp2_of_score<W>(reference - highest);
    F sum[kUnroll] = {};
    std::int64_t k = 0;
    for (; k + kUnroll <= keys; k += kUnroll) {
      for (int i = 0; i < kUnroll; ++i) {
        float* at = scores + (k + i) * kQueries;
        const F weight = exp2_of_score<W>(load<W>(at) - highest);
        store<W>(at, weight);
        sum[i] += weight;
      }
    }
    for (; k < keys; ++k) {
      float* at = scores + k * kQueries;
      const F weight = exp2_of_score<W>(load<W>(at) - highest);
      store<W>(at, weight);
      sum[0] += weight;
    }
    reference = highest;
    total = total * shrink + ((sum[0] + sum[1]) + (sum[2] + sum[3]));
    return shrink;
  }

  /// Adds weights x values to the sums of queries [row, row + kRows), NV vectors of the width.
  template <int NV>
  static SEQREC_NOINLINE void mix(const float* weights, std::int64_t keys, const float* values,
                                  std::int64_t padded, bool fresh, const float* shrink,
                                  float* sums) {
    F acc[kRows][NV] = {};
    if (!fresh) {
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < NV; ++v) {
          acc[r][v] = load<W>(sums + r * padded + v * W) * shrink[r];
        }
      }
    }
    attention_tile<W, kRows, NV>(weights, 1, kQueries, values, padded, keys, acc);
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < NV; ++v) store<W>(sums + r * padded + v * W, acc[r][v]);
    }
  }

  static SEQREC_NOINLINE void attend(const AttentionProblem& p, const Scratch& s,
                                     const QueryBlock& block, std::int64_t length,
                                     std::int64_t padded, float* reference_out, float* inverse_out,
                                     Ahead<4>& ahead) {
    const int vectors = static_cast<int>((block.count + W - 1) / W);
    const std::int64_t limit = p.causal ? block.first + block.count : length;
    F reference[kVectors], total[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      reference[v] = broadcast<W>(-__builtin_inff());
      total[v] = F{};
    }
    const std::int64_t chunks = (limit + kChunk - 1) / kChunk;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      // even chunks, so that the last is not a stump
      const std::int64_t begin = limit * chunk / chunks / 8 * 8;
      const std::int64_t end = chunk + 1 == chunks ? limit : limit * (chunk + 1) / chunks / 8 * 8;
      float shrink[kQueries], tops[kQueries];
      // whole tiles of keys that every query sees: the maximum came with the scores
      const bool whole = end % kKeyRows == 0 && (!p.causal || end <= block.first + 1);
      for (int v = 0; v < vectors; ++v) {
        const std::int64_t query = block.first + v * W;
        // queries of this vector see keys before `seen`, all of them those before `query` + 1
        const std::int64_t seen = p.causal && query + W < end ? query + W : end;
        float* scores = s.scores + v * W;
        if (!p.causal) {
          if (v == 0)
            score_vectors(vectors, s, p.width, padded, 0, begin, end, s.scores, tops, ahead);
        } else {
          // this vector and the later ones together, over the keys that no earlier vector saw
          const std::int64_t from = v == 0 || query < begin ? begin : query;
          if (v == 0 || seen > from) {
            score_vectors(vectors - v, s, p.width, padded, v, from, seen,
                          s.scores + (from - begin) * kQueries, tops, ahead);
          }
          for (std::int64_t key = query > begin ? query : begin; key < seen; ++key) {
            float* at = scores + (key - begin) * kQueries;
            store<W>(at, load<W>(at) + causal_mask<W>(key, query));
          }
        }
        const std::int64_t keys = seen > begin ? seen - begin : 0;
        store<W>(shrink + v * W,
                 soften(scores, keys, whole ? tops + v * W : nullptr, reference[v], total[v]));
        for (std::int64_t key = keys; key < end - begin; ++key) {
          store<W>(scores + key * kQueries, F{});
        }
      }
      for (std::int64_t row = 0; row < block.count; row += kRows) {
        const std::int64_t last = block.first + row + kRows;
        const std::int64_t seen = p.causal && last < end ? last : end;
        if (seen <= begin) continue;
        std::int64_t c = 0;
        for (; c + 2 * W <= padded; c += 2 * W) {
          mix<2>(s.scores + row, seen - begin, s.values + begin * padded + c, padded, chunk == 0,
                 shrink + row, s.sums + row * padded + c);
        }
        if (c < padded) {
          mix<1>(s.scores + row, seen - begin, s.values + begin * padded + c, padded, chunk == 0,
                 shrink + row, s.sums + row * padded + c);
        }
      }
    }
    for (int v = 0; v < vectors; ++v) {
      const std::int64_t count = block.count - v * W < W ? block.count - v * W : W;
      const F inverse = 1.0f / total[v];
      store<W>(inverse_out + v * W, inverse);
      store_part<W>(reference_out + v * W, reference[v], count);
    }
  }

  static void pack_keys(const AttentionProblem& p, const Scratch& s, std::int64_t head,
                        std::int64_t start, std::int64_t first, std::int64_t count) {
    const std::int64_t padded = Shape::padded(p.width), token = start + first;
    pack_rows<W>(p.k.at(token, head), p.k.token, count, p.width, padded, {1.0f, 0.0f}, kSpare,
                 s.keys + first * padded);
    pack_rows<W>(p.v.at(token, head), p.v.token, count, p.width, padded, {1.0f, 0.0f}, kSpare,
                 s.values + first * padded);
  }

  /// What the next block reads and writes.
  static void aim(Ahead<4>& ahead, const AttentionProblem& p, const AttentionTask& task,
                  HeadsView<float> out, const QueryBlock& block, std::int64_t limit) {
    const NextBlock next = next_block<W>(p, task, block);
    ahead.begin(next.count, p.width, limit / kKeyRows);
    ahead.set(0, p.q, next.token, next.head);
    ahead.set(1, out, next.token, next.head);
    // without a mask the keys of this row are packed already
    const bool keys = p.causal || !next.same_row;
    ahead.set(2, keys ? p.k : p.q, next.token, next.head);
    ahead.set(3, keys ? p.v : p.q, next.token, next.head);
  }

  static void forward(const AttentionProblem& p, const AttentionTask& task,

                      float* scratch, HeadsView<float> out, AttentionStatistics statistics) {
    const std::int64_t head = task.head, start = p.offsets[task.row];
    const std::int64_t length = p.offsets[task.row + 1] - start;
    const std::int64_t padded = Shape::padded(p.width);
    const Scratch s = carve(scratch, padded, length);
    if (!p.causal) pack_keys(p, s, head, start, 0, length);
    Ahead<4> ahead;
    const Factor factor = query_factor(p.scale);
    const std::int64_t whole = p.width / W * W;
    for (QueryBlock block = Shape::first_block(length); block.first < length;
         block = {block.first + block.count, kQueries}) {
      const std::int64_t token = start + block.first;
      pack_rows<W>(p.q.at(token, head), p.q.token, block.count, p.width, padded, factor,
                   kQueries - block.count, s.queries);
      transpose_rows<W, kVectors>(s.queries, padded, s.panel);
      if (p.causal) pack_keys(p, s, head, start, block.first, block.count);
      aim(ahead, p, task, out, block, p.causal ? block.first + block.count : length);
      float inverse[kQueries];
      attend(p, s, block, length, padded, statistics.reference + head * p.tokens + token, inverse,
             ahead);
      for (std::int64_t r = 0; r < block.count; ++r) {
        const float* from = s.sums + r * padded;
        float* to = out.at(token + r, head);
        statistics.inverse[head * p.tokens + token + r] = inverse[r];
        for (std::int64_t c = 0; c < whole; c += W) {
          store<W>(to + c, load<W>(from + c) * inverse[r]);
        }
        if (whole < p.width) {
          store_part<W>(to + whole, load<W>(from + whole) * inverse[r], p.width - whole);
        }
      }
    }
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
