// SPDX-License-Identifier: Apache-2.0
// Decode attention of one row and head: one query against cached keys and values.
//
// Each cached number is used once, so that memory sets the pace and nothing is packed. Lanes run
// along the width; W keys are multiplied into W vectors, which a transposition adds up to one
// vector of W scores. Chunks of keys with a running maximum keep the scores in the first-level
// cache.
#pragma once

#include "kernels/attention_tile.h"
#include "kernels/decode_types.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W>
struct Decode {
  using F = Floats<W>;
  static constexpr std::int64_t kChunk = 256;  // keys

  static std::int64_t padded(std::int64_t width) { return (width + W - 1) / W * W; }

  static std::int64_t scratch_floats(std::int64_t width) {
    return 2 * padded(width) + kChunk + W * W;
  }

  /// Scores of `count` of the `room` keys left into `scores`, of which whole vectors are written.
  /// Fetches the keys that come next, and the values.
  static SEQREC_NOINLINE void score(const DecodeProblem& p, const float* query, const float* keys,
                                    const float* values, std::int64_t room, std::int64_t count,
                                    float* part, float* scores) {
    const std::int64_t whole = p.width / W * W, rest = p.width - whole;
    for (std::int64_t first = 0; first < count; first += W) {
      // a head's numbers lie in pieces far apart, which no processor foresees
      const std::int64_t soon = first + 2 * W < room ? first + 2 * W : room;
      const std::int64_t until = soon + W < room ? soon + W : room;
      for (std::int64_t j = soon; j < until; ++j) {
        for (std::int64_t c = 0; c < p.width; c += 16) {
          __builtin_prefetch(keys + j * p.keys.token + c);
        }
      }
      for (std::int64_t j = first; j < first + W && j < count; ++j) {
        for (std::int64_t c = 0; c < p.width; c += 16) {
          __builtin_prefetch(values + j * p.values.token + c, 0, 2);
        }
      }
      for (std::int64_t i = 0; i < W; i += 4) {
        F sum[4] = {};
        const float* key[4];
        for (int j = 0; j < 4; ++j) {
          const std::int64_t at = first + i + j < count ? first + i + j : count - 1;
          key[j] = keys + at * p.keys.token;
        }
        for (std::int64_t c = 0; c < whole; c += W) {
          const F q = load<W>(query + c);
          for (int j = 0; j < 4; ++j) sum[j] += load<W>(key[j] + c) * q;
        }
        if (rest > 0) {
          const F q = load<W>(query + whole);
          for (int j = 0; j < 4; ++j) sum[j] += load_part<W>(key[j] + whole, rest) * q;
        }
        for (int j = 0; j < 4; ++j) store<W>(part + (i + j) * W, sum[j]);
      }
      F total{};
      for (int c = 0; c < W; c += 4) {
        F column[4];
        transpose4<W>(part + c, W, column);
        total += (column[0] + column[1]) + (column[2] + column[3]);
      }
      store<W>(scores + first, total);
    }
  }

  /// sums[0 .. W) = sums * shrink + weights x values, over one vector of the width.
  static SEQREC_INLINE F mix(const float* weights, const float* values, std::ptrdiff_t stride,
                             std::int64_t count, std::int64_t lanes) {
    F sum[4] = {};
    std::int64_t k = 0;
    if (lanes == W) {
      for (; k + 4 <= count; k += 4) {
        for (int j = 0; j < 4; ++j) {
          sum[j] += broadcast<W>(weights[k + j]) * load<W>(values + (k + j) * stride);
        }
      }
      for (; k < count; ++k) sum[0] += broadcast<W>(weights[k]) * load<W>(values + k * stride);
    }
    for (; k < count; ++k) {
      sum[0] += broadcast<W>(weights[k]) * load_part<W>(values + k * stride, lanes);
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  /// Where the keys and values of tokens `first` and on lie, and how many lie there in one piece.
  struct Piece {
    const float *keys, *values;
    std::int64_t count;
  };

  static Piece piece(const DecodeProblem& p, std::int64_t row, std::int64_t head,
                     std::int64_t first, std::int64_t left) {
    if (p.pages.rows == nullptr) {
      const std::int64_t token = p.offsets[row] + first;
      return {p.keys.at(token, head), p.values.at(token, head), left};
    }
    const float* page = p.pages.rows[row][first / p.pages.tokens];
    return {page + p.pages.keys + head * p.keys.head, page + p.pages.values + head * p.values.head,
            left < p.pages.tokens ? left : p.pages.tokens};
  }

  static void decode(const DecodeProblem& p, std::int64_t row, std::int64_t head, float* scratch,
                     HeadsView<float> out) {
    const std::int64_t length = p.length(row), wide = padded(p.width);
    float* query = scratch;
    float* sums = query + wide;
    float* part = sums + wide;
    float* scores = part + W * W;
    pack_rows<W>(p.q.at(row, head), 0, 1, p.width, wide, query_factor(p.scale), 0, query);
    for (std::int64_t c = 0; c < wide; c += W) store<W>(sums + c, F{});
    float reference = -__builtin_inff(), total = 0.0f;
    for (std::int64_t begin = 0; begin < length; begin += kChunk) {
      const std::int64_t count = length - begin < kChunk ? length - begin : kChunk;
      for (std::int64_t done = 0; done < count;) {
        const Piece at = piece(p, row, head, begin + done, count - done);
        // what lies behind a chunk in one piece is fetched ahead
        const std::int64_t room = p.pages.rows == nullptr ? length - begin : at.count;
        score(p, query, at.keys, at.values, room, at.count, part, scores + done);
        done += at.count;
      }
      const std::int64_t vectors = (count + W - 1) / W;
      // lanes beyond the last key repeat it: they change no maximum, and are cleared before the sum
      F top = broadcast<W>(reference);
      for (std::int64_t i = 0; i < vectors; ++i) top = maximum<W>(top, load<W>(scores + i * W));
      const float highest = horizontal_max<W>(top);
      const F old = broadcast<W>(reference - highest);
      const float shrink = exp2_of_score<W>(old)[0];
      F sum{};
      for (std::int64_t i = 0; i < vectors; ++i) {
        const F weight = exp2_of_score<W>(load<W>(scores + i * W) - highest);
        store<W>(scores + i * W, weight);
        sum += load_part<W>(scores + i * W, count - i * W < W ? count - i * W : W);
      }
      reference = highest;
      total = total * shrink + horizontal_sum<W>(sum);
      for (std::int64_t c = 0; c < wide; c += W) {
        const std::int64_t lanes = p.width - c < W ? p.width - c : W;
        F mixed{};
        for (std::int64_t done = 0; done < count;) {
          const Piece at = piece(p, row, head, begin + done, count - done);
          mixed += mix(scores + done, at.values + c, p.values.token, at.count, lanes);
          done += at.count;
        }
        store<W>(sums + c, load<W>(sums + c) * shrink + mixed);
      }
    }
    const float inverse = total > 0.0f ? 1.0f / total : total != total ? total : 0.0f;
    float* to = out.at(row, head);
    for (std::int64_t c = 0; c < wide; c += W) {
      const std::int64_t lanes = p.width - c < W ? p.width - c : W;
      store_part<W>(to + c, load<W>(sums + c) * inverse, lanes);
    }
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
