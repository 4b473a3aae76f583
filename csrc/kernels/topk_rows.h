// SPDX-License-Identifier: Apache-2.0
// The scores of eight items at a time for up to kRowQueries queries, dimensions in the lanes.
//
// This file defines the one order in which a score is summed, whoever computes it:
//
//   score = block[0] + block[1] + …               blocks of kBlockDims dimensions, ascending
//   block = chain[0] + chain[1] + … + chain[7]    ascending
//   chain[c] = 0 + the terms of dimensions c, c + 8, c + 16, … of the block, fused multiply-adds
//
// (A chain begins with 0 because of a sum of two products the compiler may fuse either.)
//
// Chains suit both forms: here they are the lanes of one vector, so that an item is read where it
// lies, in the order of memory, and shuffled only once at the end of a block; with queries in the
// lanes (topk.h) they cost seven additions a block. A query therefore gets bit for bit the same
// answer alone, in any batch and from the re-ranking of another scan. Rounding errors stay far
// below those of one long chain.
#pragma once

#include "base/simd.h"
#include "kernels/item_rows.h"
#include "kernels/topk_candidates.h"
#include "kernels/topk_types.h"

namespace seqrec {
namespace SEQREC_ISA {

inline constexpr std::int64_t kChains = 8;
inline constexpr std::int64_t kBlockDims = 256;
inline constexpr int kRowItems = 8;

/// Where eight items lie: side by side from row `first` on.
template <typename Item>
struct AdjacentItems {
  const ItemRows& rows;
  std::int64_t first, dim;
  SEQREC_INLINE Item operator()(int row) const { return Item::of(rows, first + row, dim); }
};

/// Where eight items lie: anywhere.
template <typename Item>
struct ScatteredItems {
  Item item[kRowItems];
  SEQREC_INLINE Item operator()(int row) const { return item[row]; }
};

template <int W>
struct TopkRows : TopkCandidates<W> {
  using typename TopkCandidates<W>::Rows;
  using TopkCandidates<W>::push;

  static constexpr int L = W < 8 ? W : 8;  // lanes: a vector of 8 suits the widest machine too
  static constexpr int P = 8 / L;          // vectors that hold the chains of an item
  using V = Floats<L>;

  static constexpr int kRowQueries = 4;  // queries that share the reading of an item

  /// The chains of dimensions from .. to of one item.
  ///
  /// One item after the other: memory is read in the order in which it lies, which prefetchers
  /// need. The next items' chains run beside this one's, as the processor reorders them.
  template <int QR, typename Item>
  static SEQREC_INLINE void chain_item(const float* const (&query)[QR], const Item& item,
                                       std::int64_t from, std::int64_t to, V (&chain)[QR][P]) {
    const std::int64_t whole = from + (to - from) / kChains * kChains;
    for (int q = 0; q < QR; ++q) {
      for (int p = 0; p < P; ++p) chain[q][p] = V{};
    }
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 32
#endif
    for (std::int64_t d = from; d < whole; d += kChains) {
      for (int p = 0; p < P; ++p) {
        const V values = item.template get<L>(d + p * L);
        for (int q = 0; q < QR; ++q) chain[q][p] += load<L>(query[q] + d + p * L) * values;
      }
    }
    // Beyond the end lies another item or nothing: only what belongs to this one is read.
    for (int p = 0; p < P && whole + p * L < to; ++p) {
      const std::int64_t left = to - whole - p * L;
      const V values = item.template first<L>(whole + p * L, left < L ? left : L);
      for (int q = 0; q < QR; ++q) {
        chain[q][p] += load_first<L>(query[q] + whole + p * L, left < L ? left : L) * values;
      }
    }
  }

  /// Adds up the chains of eight items, in ascending order of chain; sums of L items a vector.
  static SEQREC_INLINE void add_chains(const V (&chain)[kRowItems][P], V (&sum)[P]) {
    for (int part = 0; part < P; ++part) {
      for (int p = 0; p < P; ++p) {
        V column[L];
        V rows[L];
        for (int i = 0; i < L; ++i) rows[i] = chain[part * L + i][p];
        transpose_vectors<L>(rows, column);
        sum[part] = p == 0 ? column[0] : sum[part] + column[0];
        for (int c = 1; c < L; ++c) sum[part] += column[c];
      }
    }
  }

  /// The scores, without bias, of eight items for QR queries; `kDim` is their dimension, or 0.
  template <int QR, std::int64_t kDim, typename Items>
  static SEQREC_INLINE void multiply_items(const float* const (&query)[QR], const Items& items,
                                           std::int64_t any_dim, V (&score)[QR][P]) {
    const std::int64_t dim = kDim > 0 ? kDim : any_dim;
    for (int q = 0; q < QR; ++q) {
      for (int p = 0; p < P; ++p) score[q][p] = V{};
    }
    std::int64_t from = 0;
    do {
      const std::int64_t to = from + kBlockDims < dim ? from + kBlockDims : dim;
      V all[QR][kRowItems][P];
      for (int r = 0; r < kRowItems; ++r) {
        V chain[QR][P];
        chain_item<QR>(query, items(r), from, to, chain);
        for (int q = 0; q < QR; ++q) {
          for (int p = 0; p < P; ++p) all[q][r][p] = chain[q][p];
        }
      }
      for (int q = 0; q < QR; ++q) {
        V block[P];
        add_chains(all[q], block);
        for (int p = 0; p < P; ++p) score[q][p] = from == 0 ? block[p] : score[q][p] + block[p];
      }
      from = to;
    } while (from < dim);
  }

  // ------------------------------------------------------------------------------ scan

  static SEQREC_NOINLINE void collect_items(const TopkProblem& p, TopkState& s, std::int64_t q,
                                            const Rows& rows, std::int64_t row, std::uint32_t bits,
                                            const float* scores) {
    for (; bits; bits &= bits - 1) {
      const int lane = __builtin_ctz(bits);
      // The threshold may have risen since the vector was compared.
      if (scores[lane] > s.threshold[q]) push(p, s, q, scores[lane], rows.id(row + lane));
    }
  }

  /// Eight items, of which the first `valid` are real, for the queries q0 .. q0 + QR.
  template <int QR, std::int64_t kDim, typename Items>
  static SEQREC_INLINE void scan_items(const TopkProblem& p, TopkState& s, std::int64_t q0,
                                       const float* const (&query)[QR], const Rows& rows,
                                       const Items& items, std::int64_t row, std::int64_t valid) {
    V score[QR][P];
    multiply_items<QR, kDim>(query, items, p.dim, score);
    if (p.bias) {
      float bias[kRowItems];
      for (int r = 0; r < kRowItems; ++r) bias[r] = r < valid ? p.bias[rows.id(row + r)] : 0.0f;
      for (int part = 0; part < P; ++part) {
        const V add = load<L>(bias + part * L);
        for (int q = 0; q < QR; ++q) score[q][part] += add;
      }
    }
    for (int q = 0; q < QR; ++q) {
      const V threshold = broadcast<L>(s.threshold[q0 + q]);
      std::uint32_t bits = 0;
      for (int part = 0; part < P; ++part) {
        bits |= lane_bits<L>(score[q][part] > threshold) << (part * L);
      }
      if (__builtin_expect(bits != 0, 0)) {
        float kept[kRowItems];
        for (int part = 0; part < P; ++part) store<L>(kept + part * L, score[q][part]);
        collect_items(p, s, q0 + q, rows, row, bits & ((1u << valid) - 1), kept);
      }
    }
  }

  /// The items that `rows` names, or rows.first and the following ones.
  template <int QR, std::int64_t kDim, typename Item>
  static SEQREC_NOINLINE void scan_rows(const TopkProblem& p, TopkState& s, std::int64_t q0,
                                        const Rows& rows) {
    const float* query[QR];
    for (int q = 0; q < QR; ++q) query[q] = p.queries + (s.first_query + q0 + q) * p.dim;
    const ItemRows table = p.items;
    std::int64_t row = 0;
    if (rows.ids == nullptr) {
      const std::int64_t dim = kDim > 0 ? kDim : p.dim;
      for (; row + kRowItems <= rows.count; row += kRowItems) {
        const AdjacentItems<Item> items = {table, rows.first + row, dim};
        scan_items<QR, kDim>(p, s, q0, query, rows, items, row, kRowItems);
      }
    }
    for (; row < rows.count; row += kRowItems) {
      ScatteredItems<Item> items;
      for (int r = 0; r < kRowItems; ++r) {
        const std::int64_t at = row + r < rows.count ? row + r : rows.count - 1;
        items.item[r] = Item::of(table, rows.id(at), p.dim);
      }
      const std::int64_t left = rows.count - row;
      scan_items<QR, 0>(p, s, q0, query, rows, items, row, left < kRowItems ? left : kRowItems);
    }
  }

  /// Bytes come here only for queries that their bounds do not hold for: one form is enough.
  template <int QR, typename Item>
  static void scan_rows_of(const TopkProblem& p, TopkState& s, std::int64_t q0, const Rows& rows) {
    if constexpr (!Item::kScaled) {
      if (p.dim == 64) return scan_rows<QR, 64, Item>(p, s, q0, rows);
      if (p.dim == 128) return scan_rows<QR, 128, Item>(p, s, q0, rows);
    }
    scan_rows<QR, 0, Item>(p, s, q0, rows);
  }

  /// A chunk of items for all queries of the state, up to kRowQueries at a time.
  template <typename Item>
  static void scan_few(const TopkProblem& p, TopkState& s, const Rows& rows) {
    for (std::int64_t q = 0; q < s.num_queries;) {
      const std::int64_t left = s.num_queries - q;
      switch (left) {
        case 1:
          scan_rows_of<1, Item>(p, s, q, rows);
          return;
        case 2:
          scan_rows_of<2, Item>(p, s, q, rows);
          return;
        case 3:
        case 6:
        case 5:
          scan_rows_of<3, Item>(p, s, q, rows);
          q += 3;
          break;
        default:
          scan_rows_of<4, Item>(p, s, q, rows);
          q += 4;
      }
    }
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
