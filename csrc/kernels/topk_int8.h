// SPDX-License-Identifier: Apache-2.0
// The best items by inner product from a table of bytes, with the exact result of the float32 scan.
//
// An item is x = s c + r with a scale s, whole numbers c within ±127 and a small rest r; a query is
// q = t u + e likewise. Then x·q = s t (c·u) + s (c·e) + r·q, and by Cauchy and Schwarz the exact
// score lies within
//
//   s (t (c·u) ± g),   g = |c| |e| + (|r| / s) |q| + what float32 arithmetic may round away.
//
// The scan reads a quarter of the memory of float32 and keeps every item whose upper bound reaches
// the k-th best lower bound met so far: whatever it drops has k items above it for certain. Those
// few that are left in the end are scored again from the float32 rows in the order of summation of
// topk_rows.h, so that scores, ties and items are those of the float32 scan, bit for bit.
//
// Sixteen items are one block, their bytes interleaved by four, so that a block's dot products fill
// the lanes and nothing is summed across them. |c| and |r| / s enter as maxima of a block.
#pragma once

#include "base/simd_int8.h"
#include "kernels/topk_rows.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W>
struct TopkInt8 : TopkRows<W> {
  using TopkRows<W>::L;
  using TopkRows<W>::P;
  using typename TopkRows<W>::V;
  using F = Floats<W>;
  using I = Ints<W>;

  static constexpr int kVectors = kInt8Rows / W;  // that hold one number for each item of a block
  static constexpr std::int64_t kChunkBytes = 16 * 1024;  // scanned for all queries: stays in L1

  // ------------------------------------------------------------------------------ scan

  /// The blocks first .. end for query `q` of the state.
  template <bool kVnni, bool kBias, std::int64_t kQuads>
  static SEQREC_NOINLINE void scan_blocks(const TopkProblem& p, const Int8Items& t, TopkState& s,
                                          const Int8Query& query, std::int64_t q,
                                          std::int64_t first, std::int64_t end) {
    const std::int64_t quads = kQuads > 0 ? kQuads : t.quads;
    const F step = broadcast<W>(query.step);
    const std::uint8_t* block = t.blocks + first * t.block_bytes;
    for (std::int64_t b = first; b < end; ++b, block += t.block_bytes) {
      I sum[kVectors];
      for (int v = 0; v < kVectors; ++v) sum[v] = broadcast<W>(query.offset);
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 32
#endif
      for (std::int64_t j = 0; j < quads; ++j) {
        const std::uint8_t* bytes = block + j * kInt8Rows * 4;
        for (int v = 0; v < kVectors; ++v) {
          sum[v] = dot_bytes<W, kVnni>(sum[v], bytes + v * W * 4, query.quads[j]);
        }
      }
      const float* scale = reinterpret_cast<const float*>(block + quads * kInt8Rows * 4);
      const Int8Bounds& bounds = t.bounds[b];
      const float margin = bounds.norm * query.per_norm + (bounds.rest * query.per_rest + kTiny);
      const float slack = kBias ? query.slack + bounds.bias_slack : query.slack;
      const F need = broadcast<W>(s.threshold[q] - slack);
      F upper[kVectors];
      std::uint32_t bits = 0;
      for (int v = 0; v < kVectors; ++v) {
        upper[v] = load<W>(scale + v * W) * (step * to_floats<W>(sum[v]) + broadcast<W>(margin));
        if constexpr (kBias) upper[v] += load<W>(scale + kInt8Rows + v * W);
        // Turned round, so that what is not a number stays.
        bits |= mask_bits<W>(greater<W>(need, upper[v])) << (v * W);
      }
      bits ^= 0xffffu;
      if (__builtin_expect(bits != 0, 0)) {
        F kept[kVectors];
        for (int v = 0; v < kVectors; ++v) kept[v] = upper[v];
        collect(p, s, q, b, bits, reinterpret_cast<const float*>(kept), scale, margin, slack);
      }
    }
  }

  /// Below any rounding error in the computation of a margin, above what may underflow in it.
  static constexpr float kTiny = 0x1p-120f;

  static SEQREC_NOINLINE void collect(const TopkProblem& p, TopkState& s, std::int64_t q,
                                      std::int64_t block, std::uint32_t bits, const float* upper,
                                      const float* scale, float margin, float slack) {
    for (; bits; bits &= bits - 1) {
      const int lane = __builtin_ctz(bits);
      const std::int64_t item = block * kInt8Rows + lane;
      if (item >= p.num_items) return;
      const auto id = static_cast<std::int32_t>(item);
      if (p.blocked && p.blocked[item]) continue;
      if (upper[lane] + slack < s.threshold[q]) continue;
      if (is_seen(p, s, q, id)) continue;
      const std::int64_t at = q * s.capacity + s.count[q]++;
      const float high = upper[lane] + slack;
      const float low = upper[lane] - 2.0f * scale[lane] * margin - slack;
      s.upper[at] = high == high ? high : kInfinity;
      s.scores[at] = low == low ? low : -kInfinity;
      s.ids[at] = id;
      if (s.count[q] == s.limit) thin_out(p, s, q);
    }
  }

  static SEQREC_INLINE bool is_seen(const TopkProblem& p, TopkState& s, std::int64_t q,
                                    std::int32_t id) {
    if (p.seen.values == nullptr) return false;
    const std::int64_t end = p.seen.offsets[s.first_query + q + 1];
    std::int64_t next = s.seen_next[q];
    while (next < end && p.seen.values[next] < id) ++next;
    s.seen_next[q] = next;
    return next < end && p.seen.values[next] == id;
  }

  /// Raises the threshold to the k-th best lower bound and drops what cannot reach it.
  ///
  /// Where more than half is left, the exact scores decide: at most k candidates then stay.
  static SEQREC_NOINLINE void thin_out(const TopkProblem& p, TopkState& s, std::int64_t q) {
    drop_hopeless(p, s, q);
    if (s.count[q] > s.limit / 2) {
      const std::int64_t at = q * s.capacity;
      score_exactly(p, s, q);
      if (s.count[q] > p.k) {
        keep_best<W>(s.scores + at, s.ids + at, s.count[q], p.k);
        s.count[q] = p.k;
      }
      for (std::int64_t i = at; i < at + s.count[q]; ++i) s.upper[i] = s.scores[i];
      drop_hopeless(p, s, q);
    }
    if (s.shared_bound && s.threshold[q] > -kInfinity) {
      TopkCandidates<W>::export_bound(s, q, s.threshold[q]);
    }
  }

  static void drop_hopeless(const TopkProblem& p, TopkState& s, std::int64_t q) {
    const std::int64_t at = q * s.capacity, n = s.count[q];
    float* lower = s.scores + at;
    if (n >= p.k) {
      for (std::int64_t i = n; i % W; ++i) lower[i] = -kInfinity;
      const float bound = kth_score<W>(lower, n, p.k).value;
      if (bound > s.threshold[q]) s.threshold[q] = bound;
    }
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const float low = lower[i], high = s.upper[at + i];
      const std::int32_t id = s.ids[at + i];
      lower[kept] = low;
      s.upper[at + kept] = high;
      s.ids[at + kept] = id;
      kept += high >= s.threshold[q];
    }
    s.count[q] = kept;
  }

  /// Replaces the lower bounds by the scores; scores that are NaN or -inf are dropped.
  static void score_exactly(const TopkProblem& p, TopkState& s, std::int64_t q) {
    const std::int64_t at = q * s.capacity, n = s.count[q];
    const float* const query[1] = {p.queries + (s.first_query + q) * p.dim};
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < n; i += kRowItems) {
      constexpr std::int64_t kAhead = 2 * kRowItems;
      for (std::int64_t next = i + kAhead; next < n && next < i + kAhead + kRowItems; ++next) {
        const float* item = p.items + std::int64_t{s.ids[at + next]} * p.dim;
        for (std::int64_t d = 0; d < p.dim; d += 16) __builtin_prefetch(item + d);
      }
      ScatteredItems items;
      for (int r = 0; r < kRowItems; ++r) {
        const std::int64_t place = i + r < n ? i + r : n - 1;
        items.item[r] = p.items + std::int64_t{s.ids[at + place]} * p.dim;
      }
      V vectors[1][P];
      TopkRows<W>::template multiply_items<1, 0>(query, items, p.dim, vectors);
      float score[kRowItems];
      for (int part = 0; part < P; ++part) store<L>(score + part * L, vectors[0][part]);
      for (int r = 0; r < kRowItems && i + r < n; ++r) {
        const std::int32_t id = s.ids[at + i + r];
        const float whole = p.bias ? score[r] + p.bias[id] : score[r];
        s.scores[at + kept] = whole;
        s.ids[at + kept] = id;
        kept += whole > -kInfinity;
      }
    }
    s.count[q] = kept;
  }

  template <bool kVnni, bool kBias>
  static void scan_query(const TopkProblem& p, const Int8Items& t, TopkState& s,
                         const Int8Query& query, std::int64_t q, std::int64_t first,
                         std::int64_t end) {
    switch (t.quads) {
      case 16:
        return scan_blocks<kVnni, kBias, 16>(p, t, s, query, q, first, end);
      case 32:
        return scan_blocks<kVnni, kBias, 32>(p, t, s, query, q, first, end);
      default:
        return scan_blocks<kVnni, kBias, 0>(p, t, s, query, q, first, end);
    }
  }

  template <bool kVnni>
  static void scan_all(const TopkProblem& p, const Int8Items& t, TopkState& s,
                       const Int8Query* queries, std::int64_t first, std::int64_t end) {
    const std::int64_t step = kChunkBytes / t.block_bytes > 0 ? kChunkBytes / t.block_bytes : 1;
    for (std::int64_t from = first; from < end; from += step) {
      const std::int64_t to = from + step < end ? from + step : end;
      if (s.shared_bound) import_exact_bounds(s);
      for (std::int64_t q = 0; q < s.num_queries; ++q) {
        if (p.bias) {
          scan_query<kVnni, true>(p, t, s, queries[q], q, from, to);
        } else {
          scan_query<kVnni, false>(p, t, s, queries[q], q, from, to);
        }
      }
    }
  }

  /// What reaches another thread's bound stays, so that the bound can be taken as it is.
  static void import_exact_bounds(TopkState& s) {
    for (std::int64_t q = 0; q < s.num_queries; ++q) {
      const float value =
          unordered(__atomic_load_n(s.shared_bound + s.first_query + q, __ATOMIC_RELAXED));
      if (value > s.threshold[q]) s.threshold[q] = value;
    }
  }

  // ------------------------------------------------------------------------------ interface

  static void begin(const TopkProblem& p, TopkState& s) {
    for (std::int64_t q = 0; q < s.num_queries; ++q) {
      s.count[q] = 0;
      s.threshold[q] = -kInfinity;
      s.seen_next[q] = p.seen.values ? p.seen.offsets[s.first_query + q] : 0;
    }
  }

#if defined(__AVX512BW__)
  static constexpr bool kKnowsVnni = W == 16;
#else
  static constexpr bool kKnowsVnni = false;
#endif

  static int levels(bool vnni) { return vnni && kKnowsVnni ? 127 : kByteLevels; }

  static void scan(const TopkProblem& p, const Int8Items& t, TopkState& s, const Int8Query* queries,
                   bool vnni, std::int64_t first, std::int64_t end) {
    if (vnni && kKnowsVnni) return scan_all<kKnowsVnni>(p, t, s, queries, first, end);
    scan_all<false>(p, t, s, queries, first, end);
  }

  /// Leaves the exact scores of the candidates that may be among the best k.
  static void settle(const TopkProblem& p, TopkState& s, std::int64_t q) {
    drop_hopeless(p, s, q);
    score_exactly(p, s, q);
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
