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
// * up to kFewQueries: dimensions in the lanes, items read once in the order of memory
//   (topk_rows.h, which also says in which one order every score is summed).
//
// A table of fewer bits is widened: for many queries a chunk at a time, into memory that stays in
// the second-level cache; for a few queries in registers.
#pragma once

#include "base/simd.h"
#include "kernels/topk_rows.h"
#include "kernels/topk_types.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W>
struct Topk : TopkRows<W> {
  using typename TopkRows<W>::Rows;
  using TopkRows<W>::import_bounds;
  using TopkRows<W>::push;
  using TopkRows<W>::shrink;
  using F = Floats<W>;
  using M = Mask<W>;

  static constexpr std::int64_t kFewQueries = W == 16 ? 16 : 8;
  static constexpr std::int64_t kChunkFloats = 32 * 1024;  // 128 KiB of items: stays in L2

  // Items in a tile of 3 and of 2 query vectors. Twelve chains hide the latency of an addition;
  // with 32 registers their sums stay in registers too.
  static constexpr int kWideItems = 4;
  static constexpr int kPairItems = W == 16 ? 8 : 4;

  /// Every tile height divides this, so that whole chunks have no ragged end.
  static constexpr std::int64_t kChunkStep = 96;

  /// Items scanned for all queries before the next ones are read.
  static std::int64_t chunk_rows(std::int64_t dim) {
    const std::int64_t rows = kChunkFloats / dim / kChunkStep * kChunkStep;
    return rows < kChunkStep ? kChunkStep : rows > 1920 ? 1920 : rows;
  }

  static std::int64_t widened_rows(std::int64_t dim) {
    const std::int64_t rows = chunk_rows(dim) / 2 / kChunkStep * kChunkStep;
    return rows < kChunkStep ? kChunkStep : rows;
  }

  // ------------------------------------------------------------------------------ begin

  /// Query vectors of the tile that starts at vector `v` of `n` > 1: 2, 3 or, on machines with
  /// 32 registers, 4.
  static SEQREC_INLINE int tile_vectors(std::int64_t v, std::int64_t n) {
    const std::int64_t left = n - v;
    if (W == 16 && left % 4 == 0) return 4;
    return left == 4 || left == 2 ? 2 : 3;
  }

  /// Dimensions in the order in which chains take them: calls `visit(d, place)` for each.
  template <typename Visit>
  static SEQREC_INLINE void in_order_of_chains(std::int64_t dim, const Visit& visit) {
    std::int64_t place = 0;
    for (std::int64_t from = 0; from < dim; from += kBlockDims) {
      const std::int64_t to = from + kBlockDims < dim ? from + kBlockDims : dim;
      for (std::int64_t c = 0; c < kChains; ++c) {
        for (std::int64_t d = from + c; d < to; d += kChains) visit(d, place++);
      }
    }
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
        in_order_of_chains(p.dim, [&](std::int64_t d, std::int64_t place) {
          to[place * wide + lane] = q < s.num_queries ? queries[q * p.dim + d] : 0.0f;
        });
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

  /// acc[r][v] = one chain of a tile: the dimensions from, from + kChains, … below `to`.
  ///
  /// `packed` is where their queries lie and moves on behind them.
  template <int QV, int IR>
  static SEQREC_INLINE void chain_tile(const float*& packed, const float* rows, std::int64_t dim,
                                       std::int64_t from, std::int64_t to, F (&acc)[IR][QV]) {
    for (int r = 0; r < IR; ++r) {
      for (int v = 0; v < QV; ++v) acc[r][v] = F{};
    }
    const float* at = packed;
    for (std::int64_t d = from; d < to; d += kChains) {
      F query[QV];
      for (int v = 0; v < QV; ++v) query[v] = load<W>(at + v * W);
      for (int r = 0; r < IR; ++r) {
        const F item = broadcast<W>(rows[r * dim + d]);
        for (int v = 0; v < QV; ++v) acc[r][v] += query[v] * item;
      }
      at += QV * W;
    }
    packed = at;
  }

  /// sum[r][v] = the dimensions from .. to of the scores of a tile.
  template <int QV, int IR>
  static SEQREC_INLINE void block_tile(const float*& packed, const float* rows, std::int64_t dim,
                                       std::int64_t from, std::int64_t to, F (&sum)[IR][QV]) {
    chain_tile<QV, IR>(packed, rows, dim, from, to, sum);
    const std::int64_t chains = to - from < kChains ? to - from : kChains;
    for (std::int64_t c = 1; c < chains; ++c) {
      F chain[IR][QV];
      chain_tile<QV, IR>(packed, rows, dim, from + c, to, chain);
      for (int r = 0; r < IR; ++r) {
        for (int v = 0; v < QV; ++v) sum[r][v] += chain[r][v];
      }
    }
    if (chains == kChains) return;
    // A chain without terms is 0, which makes 0 of a sum that is -0.
    for (int r = 0; r < IR; ++r) {
      for (int v = 0; v < QV; ++v) sum[r][v] += F{};
    }
  }

  /// A copy, so that the compiler can hold the tile itself in registers.
  template <int QV, int IR>
  static SEQREC_INLINE void copy_tile(const F (&from)[IR][QV], F (&to)[IR][QV]) {
    for (int r = 0; r < IR; ++r) {
      for (int v = 0; v < QV; ++v) to[r][v] = from[r][v];
    }
  }

  template <int QV, int IR>
  static SEQREC_INLINE void multiply_tile(const float* packed, const float* rows, std::int64_t dim,
                                          F (&score)[IR][QV]) {
    block_tile<QV, IR>(packed, rows, dim, 0, dim < kBlockDims ? dim : kBlockDims, score);
    if (__builtin_expect(dim > kBlockDims, 0)) {
      F sum[IR][QV];
      copy_tile<QV, IR>(score, sum);
      add_blocks<QV, IR>(packed, rows, dim, sum);
      copy_tile<QV, IR>(sum, score);
    }
  }

  /// Adds the blocks behind the first one.
  template <int QV, int IR>
  static SEQREC_NOINLINE void add_blocks(const float* packed, const float* rows, std::int64_t dim,
                                         F (&score)[IR][QV]) {
    for (std::int64_t from = kBlockDims; from < dim; from += kBlockDims) {
      const std::int64_t to = from + kBlockDims < dim ? from + kBlockDims : dim;
      F block[IR][QV];
      block_tile<QV, IR>(packed, rows, dim, from, to, block);
      for (int r = 0; r < IR; ++r) {
        for (int v = 0; v < QV; ++v) score[r][v] += block[r][v];
      }
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
    // The first pass over a chunk asks for the next one: across the rows of a tile, the order of
    // memory is hidden from the prefetchers.
    const bool in_place = rows.data != s.rows;
    const float* next = q0 == 0 && in_place ? rows.data + rows.count * p.dim : nullptr;
    for (; row + IR <= rows.count; row += IR) {
      if (next) {
        for (std::int64_t d = 0; d < IR * p.dim; d += 16) __builtin_prefetch(next + d, 0, 2);
        next += IR * p.dim;
      }
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

  // ------------------------------------------------------------------------------ scan

  /// Rows from here on are also in the padded copy that the last tiles of a chunk read.
  static SEQREC_INLINE std::int64_t tail_start(std::int64_t count) {
    return count > kTopkRowPad ? count - kTopkRowPad : 0;
  }

  static void scan_many(const TopkProblem& p, TopkState& s, const Rows& rows, const float* tail) {
    const std::int64_t vectors = (s.num_queries + W - 1) / W;
    for (std::int64_t v = 0; v < vectors;) {
      const int wide = tile_vectors(v, vectors);
      if (wide == 3) {
        scan_queries<3, kWideItems>(p, s, v * W, rows, tail);
      } else if (W == 16 && wide == 4) {
        scan_queries<W == 16 ? 4 : 3, kWideItems>(p, s, v * W, rows, tail);
      } else {
        scan_queries<2, kPairItems>(p, s, v * W, rows, tail);
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
      // Widened rows lie in the second-level cache beside the queries and less predictably.
      const std::int64_t most = p.items.floats ? chunk_rows(p.dim) : widened_rows(p.dim);
      const std::int64_t step = first && most > kTopkFirst ? kTopkFirst : most;
      to = from + step < end ? from + step : end;
      if (s.shared_bound) import_bounds(s);
      Rows rows = {nullptr, p.bias ? p.bias + from : nullptr, nullptr,
                   static_cast<std::int32_t>(from), to - from};
      if (p.blocked) list_open(p, s, from, to, rows);
      if (rows.count == 0) continue;
      if (s.num_queries <= kFewQueries) {
        with_item_form(p.items, [&](auto form) {
          TopkRows<W>::template scan_few<decltype(form)>(p, s, rows);
        });
        continue;
      }
      if (p.items.floats && rows.ids == nullptr) {
        rows.data = p.items.floats + from * p.dim;
      } else {
        lay_out(p, s, rows);
      }
      scan_many(p, s, rows, copy_tail(p, s, rows));
    }
  }

  /// Names the rows that are not blocked, if any is blocked.
  static void list_open(const TopkProblem& p, TopkState& s, std::int64_t from, std::int64_t to,
                        Rows& rows) {
    std::int64_t open = 0;
    for (std::int64_t i = from; i < to; ++i) {
      s.row_ids[open] = static_cast<std::int32_t>(i);
      open += p.blocked[i] == 0;
    }
    if (open < to - from) rows = {nullptr, nullptr, s.row_ids, 0, open};
  }

  /// Lays the rows side by side as float32.
  static SEQREC_NOINLINE void lay_out(const TopkProblem& p, TopkState& s, Rows& rows) {
    WidenRows<W>::widen(p.items, p.dim, rows.ids, rows.first, rows.count, s.rows);
    rows.data = s.rows;
    if (p.bias == nullptr || rows.ids == nullptr) return;
    for (std::int64_t i = 0; i < rows.count; ++i) s.row_bias[i] = p.bias[rows.ids[i]];
    rows.bias = s.row_bias;
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
    }
    for (std::int64_t i = 0; i < kTopkRowPad * p.dim; ++i) {
      s.rows[rows.count * p.dim + i] = 0.0f;
    }
    return tail;
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
