// SPDX-License-Identifier: Apache-2.0
// Score + bias + exclude + top-k in one pass over the item table.
//
//   score[q, i] = sum_d queries[q, d] * items[i, d] + bias[i]
//
// A register tile of scores is compared with the thresholds of its queries while it is still in
// registers, so scores are never written to memory unless one of them can enter a list. Nothing
// else of an item is looked at (seen, blocked, buffers) before that.
//
// Two forms share everything but the tile:
// * many queries: queries in the lanes, packed once; items are broadcast where they lie;
// * up to kFewQueries: items in the lanes, transposed four columns at a time in registers.
//
// Each score is summed in one way, whichever form, tile or thread computes it: chains of kChain
// fused multiply-adds over ascending d, the chains added in ascending order. A query therefore gets
// bit for bit the same answer alone and in any batch, and rounding errors stay near those of a
// matrix-vector product, far below those of one long chain.
#pragma once

#include "base/simd.h"
#include "kernels/topk_candidates.h"
#include "kernels/topk_types.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W>
struct Topk : TopkCandidates<W> {
  using typename TopkCandidates<W>::Rows;
  using TopkCandidates<W>::import_bounds;
  using TopkCandidates<W>::push;
  using TopkCandidates<W>::shrink;
  using F = Floats<W>;
  using I = Ints<W>;
  using M = Mask<W>;

  static constexpr std::int64_t kFewQueries = W == 16 ? 8 : 4;
  static constexpr std::int64_t kPrefetchFloats = 1024;  // a page: 16 items of dimension 64
  static constexpr std::int64_t kChain = 16;
  static constexpr std::int64_t kChunkFloats = 32 * 1024;  // 128 KiB of items: stays in L2

  static constexpr bool kManyRegisters = W == 16;  // 32 vector registers rather than 16
  static constexpr int kTallItems = 12;            // items a tile with 1, 2 and 3 query vectors
  static constexpr int kPairItems = kManyRegisters ? 12 : 6;
  static constexpr int kWideItems = kManyRegisters ? 8 : 4;

  /// Every tile height divides this, so that whole chunks have no ragged end.
  static constexpr std::int64_t kChunkStep = 96;

  /// Items scanned for all queries before the next ones are read.
  static std::int64_t chunk_rows(std::int64_t dim) {
    const std::int64_t rows = kChunkFloats / dim / kChunkStep * kChunkStep;
    return rows < kChunkStep ? kChunkStep : rows > 1920 ? 1920 : rows;
  }

  // ------------------------------------------------------------------------------ begin

  /// Query vectors of the tile that starts at vector `v` of `n`: tiles of up to 3, evenly cut.
  static SEQREC_INLINE int tile_vectors(std::int64_t v, std::int64_t n) {
    const std::int64_t left = n - v;
    return left == 4 ? 2 : left >= 3 ? 3 : static_cast<int>(left);
  }

  static void begin(const TopkProblem& p, TopkState& s) {
    for (std::int64_t q = 0; q < s.num_queries; ++q) {
      s.count[q] = 0;
      s.threshold[q] = -kInfinity;
      s.seen_next[q] = p.seen.values ? p.seen.offsets[s.first_query + q] : 0;
    }
    if (s.num_queries <= kFewQueries) return;
    const std::int64_t vectors = (s.num_queries + W - 1) / W;
    for (std::int64_t q = s.num_queries; q < vectors * W; ++q) s.threshold[q] = kInfinity;
    const float* queries = p.queries + s.first_query * p.dim;
    for (std::int64_t v = 0; v < vectors;) {
      const int wide = tile_vectors(v, vectors) * W;
      float* to = s.packed + v * W * p.dim;
      for (std::int64_t lane = 0; lane < wide; ++lane) {
        const std::int64_t q = v * W + lane;
        for (std::int64_t d = 0; d < p.dim; ++d) {
          to[d * wide + lane] = q < s.num_queries ? queries[q * p.dim + d] : 0.0f;
        }
      }
      v += wide / W;
    }
  }

  // ------------------------------------------------------------------------------ many queries

  /// Pushes the scores of a tile that beat their thresholds, in order of ascending item.
  ///
  /// The outcomes of many comparisons are put into one word first: a loop over its bits mispredicts
  /// once a word instead of once a vector.
  template <int QV, int IR>
  static SEQREC_NOINLINE void collect_tile(const TopkProblem& p, TopkState& s, std::int64_t q0,
                                           const Rows& rows, std::int64_t row, std::int64_t valid,
                                           const F (&score)[IR][QV]) {
    constexpr int kVectors = 64 / W;
    const float* values = reinterpret_cast<const float*>(&score[0][0]);
    const int count = (valid < IR ? static_cast<int>(valid) : IR) * QV;
    for (int first = 0; first < count; first += kVectors) {
      std::uint64_t bits = 0;
      for (int i = 0; i < kVectors && first + i < count; ++i) {
        const F threshold = load<W>(s.threshold + q0 + (first + i) % QV * W);
        const F vector = load<W>(values + (first + i) * W);
        bits |= std::uint64_t{mask_bits<W>(greater<W>(vector, threshold))} << (i * W);
      }
      for (; bits; bits &= bits - 1) {
        const int at = __builtin_ctzll(bits) + first * W;
        const std::int64_t q = q0 + at % (QV * W);
        // The threshold may have risen since the comparison.
        if (values[at] > s.threshold[q]) push(p, s, q, values[at], rows.id(row + at / (QV * W)));
      }
    }
  }

  /// Keeps all scores of a tile where the candidates of this chunk will begin.
  template <int QV, int IR>
  static SEQREC_INLINE void keep_tile(TopkState& s, std::int64_t q0, std::int64_t row,
                                      std::int64_t valid, const F (&score)[IR][QV]) {
    const float* values = reinterpret_cast<const float*>(&score[0][0]);
    const std::int64_t queries = s.num_queries - q0 < QV * W ? s.num_queries - q0 : QV * W;
    for (std::int64_t q = 0; q < queries; ++q) {
      float* to = s.scores + (q0 + q) * s.capacity + s.count[q0 + q] + row;
      for (int r = 0; r < IR; ++r) {
        if (r < valid) to[r] = values[r * QV * W + q];
      }
    }
  }

  /// Whether all scores of a chunk can simply be kept: there is no threshold yet, but room.
  static bool keeps_all(const TopkState& s, std::int64_t q0, std::int64_t queries,
                        std::int64_t rows) {
    if (rows > kTopkFirst) return false;
    for (std::int64_t q = q0; q < q0 + queries && q < s.num_queries; ++q) {
      if (s.threshold[q] > -kInfinity || s.count[q] + rows > s.capacity) return false;
    }
    return true;
  }

  /// Turns the kept scores of a chunk into candidates of query `q`.
  static SEQREC_NOINLINE void admit(const TopkProblem& p, TopkState& s, std::int64_t q,
                                    const Rows& rows) {
    float* scores = s.scores + q * s.capacity + s.count[q];
    std::int32_t* ids = s.ids + q * s.capacity + s.count[q];
    for (std::int64_t row = 0; row < rows.count; ++row) ids[row] = rows.id(row);
    if (p.seen.values) {
      const std::int64_t end = p.seen.offsets[s.first_query + q + 1];
      std::int64_t next = s.seen_next[q];
      for (std::int64_t row = 0; next < end && row < rows.count; ++next) {
        while (row < rows.count && ids[row] < p.seen.values[next]) ++row;
        if (row < rows.count && ids[row] == p.seen.values[next]) scores[row] = -kInfinity;
      }
      // What lies beyond this chunk is looked at again.
      while (next > s.seen_next[q] && p.seen.values[next - 1] > ids[rows.count - 1]) --next;
      s.seen_next[q] = next;
    }
    std::int64_t kept = 0;
    for (std::int64_t row = 0; row < rows.count; ++row) {
      const float score = scores[row];
      const std::int32_t id = ids[row];
      scores[kept] = score;
      ids[kept] = id;
      kept += score > -kInfinity;
    }
    s.count[q] += kept;
    if (s.count[q] > p.k) shrink(p, s, q);
  }

  /// acc[r][v] = the terms from .. to of the scores of a tile, one chain each.
  template <int QV, int IR>
  static SEQREC_INLINE void chain_tile(const float* packed, const float* rows, std::int64_t dim,
                                       std::int64_t from, std::int64_t to, F (&acc)[IR][QV]) {
    for (int r = 0; r < IR; ++r) {
      for (int v = 0; v < QV; ++v) acc[r][v] = F{};
    }
    for (std::int64_t d = from; d < to; ++d) {
      F query[QV];
      for (int v = 0; v < QV; ++v) query[v] = load<W>(packed + (d * QV + v) * W);
      for (int r = 0; r < IR; ++r) {
        const F item = broadcast<W>(rows[r * dim + d]);
        for (int v = 0; v < QV; ++v) acc[r][v] += query[v] * item;
      }
    }
  }

  template <int QV, int IR>
  static SEQREC_INLINE void multiply_tile(const float* packed, const float* rows, std::int64_t dim,
                                          F (&score)[IR][QV]) {
    chain_tile<QV, IR>(packed, rows, dim, 0, dim < kChain ? dim : kChain, score);
    for (std::int64_t from = kChain; from < dim; from += kChain) {
      const std::int64_t to = from + kChain < dim ? from + kChain : dim;
      F acc[IR][QV];
      chain_tile<QV, IR>(packed, rows, dim, from, to, acc);
      for (int r = 0; r < IR; ++r) {
        for (int v = 0; v < QV; ++v) score[r][v] += acc[r][v];
      }
    }
  }

  /// A copy, so that the compiler can hold the tile itself in registers.
  template <int QV, int IR>
  static SEQREC_INLINE void copy_tile(const F (&from)[IR][QV], F (&to)[IR][QV]) {
    for (int r = 0; r < IR; ++r) {
      for (int v = 0; v < QV; ++v) to[r][v] = from[r][v];
    }
  }

  /// One register tile: IR items against QV vectors of queries.
  template <int QV, int IR, bool kKeep>
  static SEQREC_INLINE void scan_tile(const TopkProblem& p, TopkState& s, std::int64_t q0,
                                      const Rows& rows, std::int64_t row, const float* data,
                                      std::int64_t valid) {
    F score[IR][QV];
    multiply_tile<QV, IR>(s.packed + q0 * p.dim, data, p.dim, score);
    if (rows.bias) {
      for (int r = 0; r < IR; ++r) {
        const F bias = broadcast<W>(r < valid ? rows.bias[row + r] : 0.0f);
        for (int v = 0; v < QV; ++v) score[r][v] += bias;
      }
    }
    if constexpr (kKeep) {
      F kept[IR][QV];
      copy_tile<QV, IR>(score, kept);
      keep_tile<QV, IR>(s, q0, row, valid, kept);
      return;
    }
    M any{};
    for (int v = 0; v < QV; ++v) {
      const F threshold = load<W>(s.threshold + q0 + v * W);
      for (int r = 0; r < IR; ++r) any |= greater<W>(score[r][v], threshold);
    }
    if (__builtin_expect(mask_bits<W>(any) != 0, 0)) {
      F kept[IR][QV];
      copy_tile<QV, IR>(score, kept);
      collect_tile<QV, IR>(p, s, q0, rows, row, valid, kept);
    }
  }

  template <int QV, int IR, bool kKeep>
  static SEQREC_NOINLINE void scan_tiles(const TopkProblem& p, TopkState& s, std::int64_t q0,
                                         const Rows& rows, const float* tail) {
    std::int64_t row = 0;
    for (; row + IR <= rows.count; row += IR) {
      scan_tile<QV, IR, kKeep>(p, s, q0, rows, row, rows.data + row * p.dim, IR);
    }
    if (row < rows.count) {
      const std::int64_t copied = row - tail_start(rows.count);
      scan_tile<QV, IR, kKeep>(p, s, q0, rows, row, tail + copied * p.dim, rows.count - row);
    }
  }

  template <int QV, int IR>
  static void scan_queries(const TopkProblem& p, TopkState& s, std::int64_t q0, const Rows& rows,
                           const float* tail) {
    if (!keeps_all(s, q0, QV * W, rows.count)) {
      return scan_tiles<QV, IR, false>(p, s, q0, rows, tail);
    }
    scan_tiles<QV, IR, true>(p, s, q0, rows, tail);
    for (std::int64_t q = q0; q < q0 + QV * W && q < s.num_queries; ++q) admit(p, s, q, rows);
  }

  // ------------------------------------------------------------------------------ few queries

  /// Asks for a later tile, in the order of memory, while columns d .. d + 4 of this one are used.
  ///
  /// The columns of a tile are read across its rows, a pattern that prefetchers do not recognise.
  template <int R>
  static SEQREC_INLINE void prefetch_rows(const float* rows, std::int64_t dim, std::int64_t d) {
    const std::int64_t ahead = R * dim <= kPrefetchFloats ? 2 : 1;  // tiles
    const float* next = rows + ahead * R * dim + d * R;
    for (int line = 0; line < R * 4; line += 16) __builtin_prefetch(next + line);
  }

  /// The same with G vectors of items in the lanes and QR queries broadcast.
  template <int QR, int G>
  static SEQREC_INLINE void chain_lanes(const float* const (&query)[QR], const float* rows,
                                        std::int64_t dim, std::int64_t from, std::int64_t to,
                                        F (&acc)[G][QR]) {
    for (int g = 0; g < G; ++g) {
      for (int q = 0; q < QR; ++q) acc[g][q] = F{};
    }
    std::int64_t d = from;
    for (; d + 4 <= to; d += 4) {
      for (int g = 0; g < G; ++g) {
        F column[4];
        transpose4<W>(rows + g * W * dim + d, dim, column);
        for (int j = 0; j < 4; ++j) {
          for (int q = 0; q < QR; ++q) acc[g][q] += broadcast<W>(query[q][d + j]) * column[j];
        }
      }
      prefetch_rows<G * W>(rows, dim, d);
    }
    for (; d < to; ++d) {
      for (int g = 0; g < G; ++g) {
        F column{};
        for (int i = 0; i < W; ++i) column[i] = rows[(g * W + i) * dim + d];
        for (int q = 0; q < QR; ++q) acc[g][q] += broadcast<W>(query[q][d]) * column;
      }
    }
  }

  template <int QR, int G>
  static SEQREC_INLINE void multiply_lanes(const float* const (&query)[QR], const float* rows,
                                           std::int64_t dim, F (&score)[G][QR]) {
    chain_lanes<QR, G>(query, rows, dim, 0, dim < kChain ? dim : kChain, score);
    for (std::int64_t from = kChain; from < dim; from += kChain) {
      const std::int64_t to = from + kChain < dim ? from + kChain : dim;
      F acc[G][QR];
      chain_lanes<QR, G>(query, rows, dim, from, to, acc);
      for (int g = 0; g < G; ++g) {
        for (int q = 0; q < QR; ++q) score[g][q] += acc[g][q];
      }
    }
  }

  template <int QR, int G>
  static SEQREC_INLINE void scan_lanes(const TopkProblem& p, TopkState& s, std::int64_t q0,
                                       const float* const (&query)[QR], const Rows& rows,
                                       std::int64_t row, const float* data, std::int64_t valid) {
    F score[G][QR];
    multiply_lanes<QR, G>(query, data, p.dim, score);
    for (int g = 0; g < G; ++g) {
      if (rows.bias) {
        // The tail is read up to a whole vector only from memory that has this room.
        const F bias = load<W>(valid < G * W ? s.row_bias + row + g * W : rows.bias + row + g * W);
        for (int q = 0; q < QR; ++q) score[g][q] += bias;
      }
      const std::int64_t left = valid - g * W;
      if (left <= 0) return;
      const std::uint32_t real = left >= W ? ~0u : (1u << left) - 1;
      for (int q = 0; q < QR; ++q) {
        const F threshold = broadcast<W>(s.threshold[q0 + q]);
        std::uint32_t bits = mask_bits<W>(greater<W>(score[g][q], threshold)) & real;
        if (__builtin_expect(bits != 0, 0)) {
          const F kept = score[g][q];
          collect_lanes(p, s, q0 + q, rows, row + g * W, bits, kept);
        }
      }
    }
  }

  static SEQREC_NOINLINE void collect_lanes(const TopkProblem& p, TopkState& s, std::int64_t q,
                                            const Rows& rows, std::int64_t row, std::uint32_t bits,
                                            const F& score) {
    const float* values = reinterpret_cast<const float*>(&score);
    for (; bits; bits &= bits - 1) {
      const int lane = __builtin_ctz(bits);
      // The threshold may have risen since the vector was compared.
      if (values[lane] > s.threshold[q]) push(p, s, q, values[lane], rows.id(row + lane));
    }
  }

  template <int QR>
  static SEQREC_NOINLINE void scan_items(const TopkProblem& p, TopkState& s, std::int64_t q0,
                                         const Rows& rows, const float* tail) {
    constexpr int kItems = 16;
    constexpr int G = kItems / W;
    const float* query[QR];
    for (int q = 0; q < QR; ++q) query[q] = p.queries + (s.first_query + q0 + q) * p.dim;
    std::int64_t row = 0;
    for (; row + kItems <= rows.count; row += kItems) {
      scan_lanes<QR, G>(p, s, q0, query, rows, row, rows.data + row * p.dim, kItems);
    }
    if (row < rows.count) {
      const std::int64_t copied = row - tail_start(rows.count);
      scan_lanes<QR, G>(p, s, q0, query, rows, row, tail + copied * p.dim, rows.count - row);
    }
  }

  // ------------------------------------------------------------------------------ scan

  /// Rows from here on are also in the padded copy that the last tiles of a chunk read.
  static SEQREC_INLINE std::int64_t tail_start(std::int64_t count) {
    return count > kTopkRowPad ? count - kTopkRowPad : 0;
  }

  template <int QR>
  static void scan_few(const TopkProblem& p, TopkState& s, const Rows& rows, const float* tail) {
    if (s.num_queries == QR) return scan_items<QR>(p, s, 0, rows, tail);
    if constexpr (QR < kFewQueries) return scan_few<QR + 1>(p, s, rows, tail);
  }

  static void scan_chunk(const TopkProblem& p, TopkState& s, const Rows& rows, const float* tail) {
    if (s.num_queries <= kFewQueries) {
      return scan_few<1>(p, s, rows, tail);
    }
    const std::int64_t vectors = (s.num_queries + W - 1) / W;
    for (std::int64_t v = 0; v < vectors;) {
      const int wide = tile_vectors(v, vectors);
      switch (wide) {
        case 1:
          scan_queries<1, kTallItems>(p, s, v * W, rows, tail);
          break;
        case 2:
          scan_queries<2, kPairItems>(p, s, v * W, rows, tail);
          break;
        default:
          scan_queries<3, kWideItems>(p, s, v * W, rows, tail);
          break;
      }
      v += wide;
    }
  }

  /// Scans the items begin .. end for the queries of the state. Calls come in ascending order.
  static void scan(const TopkProblem& p, TopkState& s, std::int64_t begin, std::int64_t end) {
    std::int64_t to = begin;
    for (std::int64_t from = begin; from < end; from = to) {
      // A short first chunk, as long as all scores are kept.
      const bool first = from == 0 && s.num_queries > kFewQueries;
      const std::int64_t most = chunk_rows(p.dim);
      const std::int64_t step = first && most > kTopkFirst ? kTopkFirst : most;
      to = from + step < end ? from + step : end;
      if (s.shared_bound) import_bounds(s);
      Rows rows = {p.items + from * p.dim, p.bias ? p.bias + from : nullptr, nullptr,
                   static_cast<std::int32_t>(from), to - from};
      if (p.blocked) gather_open(p, s, from, to, rows);
      if (rows.count == 0) continue;
      scan_chunk(p, s, rows, copy_tail(p, s, rows));
    }
  }

  /// Lays the rows that are not blocked side by side, if any is blocked.
  static void gather_open(const TopkProblem& p, TopkState& s, std::int64_t from, std::int64_t to,
                          Rows& rows) {
    std::int64_t open = 0;
    for (std::int64_t i = from; i < to; ++i) {
      s.row_ids[open] = static_cast<std::int32_t>(i);
      open += p.blocked[i] == 0;
    }
    if (open == to - from) return;
    for (std::int64_t i = 0; i < open; ++i) {
      const std::int64_t id = s.row_ids[i];
      __builtin_memcpy(s.rows + i * p.dim, p.items + id * p.dim,
                       static_cast<std::size_t>(p.dim) * sizeof(float));
      if (p.bias) s.row_bias[i] = p.bias[id];
    }
    rows = {s.rows, p.bias ? s.row_bias : nullptr, s.row_ids, 0, open};
  }

  /// A copy of the last rows of a chunk, with room for whole tiles after them.
  ///
  /// What lies in that room is finite or not, it does not matter: no tile uses those scores.
  static const float* copy_tail(const TopkProblem& p, TopkState& s, const Rows& rows) {
    if (rows.count % kChunkStep == 0) return nullptr;
    const std::int64_t start = tail_start(rows.count);
    float* tail = s.rows + start * p.dim;
    if (rows.data != s.rows) {
      const std::size_t size = static_cast<std::size_t>((rows.count - start) * p.dim);
      __builtin_memcpy(tail, rows.data + start * p.dim, size * sizeof(float));
      if (rows.bias) {
        for (std::int64_t i = start; i < rows.count; ++i) s.row_bias[i] = rows.bias[i];
      }
    }
    for (std::int64_t i = 0; i < kTopkRowPad * p.dim; ++i) {
      s.rows[rows.count * p.dim + i] = 0.0f;
    }
    for (std::int64_t i = 0; i < kTopkRowPad; ++i) s.row_bias[rows.count + i] = 0.0f;
    return tail;
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
