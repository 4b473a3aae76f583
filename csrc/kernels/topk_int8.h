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
// few that are left in the end are scored again from the rows themselves, whatever their form, in
// the order of summation of topk_rows.h, so that scores, ties and items are those of the float32
// scan, bit for bit. Rows that are bytes need no table beside them (topk_int8_blocks.h).
//
// The first thousands of items are scanned without a threshold (`open`): all their bounds are kept,
// and the k-th best of the lower ones, taken as the maxima of cells of items, is a threshold
// that little more than k of them reach. Later items meet it one block at a time.
//
// Sixteen items are one block, their bytes interleaved by four, so that a block's dot products fill
// the lanes and nothing is summed across them. |c| and |r| / s enter as maxima of a block.
#pragma once

#include "base/simd_int8.h"
#include "kernels/topk_int8_blocks.h"
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
  static constexpr int kChains = 4 / kVectors > 0 ? 4 / kVectors : 1;

  /// Blocks that are scanned for all queries before the next ones are read.
  ///
  /// Blocks that have to be laid out: fewer for a few queries, so that reading from memory and
  /// scanning alternate more often than the processor's own reading ahead comes to rest.
  static std::int64_t chunk_blocks(const Int8Items& t, const TopkState& s) {
    const bool often = t.blocks == nullptr && s.num_queries <= kInt8OpeningQueries;
    const std::int64_t blocks = (often ? kInt8ChunkBytes / 4 : kInt8ChunkBytes) / t.block_bytes;
    return blocks > 0 ? blocks : 1;
  }

  /// Where the blocks first .. end, at most one chunk, lie.
  static SEQREC_INLINE const std::uint8_t* blocks_at(const TopkProblem& p, const Int8Items& t,
                                                     const TopkState& s, std::int64_t first,
                                                     std::int64_t end) {
    if (t.blocks) return t.blocks + first * t.block_bytes;
    TopkInt8Blocks<W>::lay_out(p, t, first, end, s.blocks);
    return s.blocks;
  }

  // ------------------------------------------------------------------------------ bounds

  /// A query with its bytes, where they fit into registers beside all else.
  template <std::int64_t kQuads>
  struct Factors {
    static constexpr bool kHeld = W == 16 && kQuads == 16;
    const Int8Query query;  // a copy: nothing that is written can change it
    I held[kHeld ? kQuads : 1];

    SEQREC_INLINE explicit Factors(const Int8Query& q) : query(q) {
      if constexpr (kHeld) {
        for (std::int64_t j = 0; j < kQuads; ++j) held[j] = broadcast<W>(q.quads[j]);
      }
    }
    SEQREC_INLINE I operator[](std::int64_t j) const {
      return kHeld ? held[j % (kHeld ? kQuads : 1)] : broadcast<W>(query.quads[j]);
    }
  };

  /// What every item of a block may differ by from its estimate, over its scale.
  static SEQREC_INLINE float margin_of(const Int8Bounds& bounds, const Int8Query& query) {
    return bounds.norm * query.per_norm + (bounds.rest * query.per_rest + kTiny);
  }

  /// upper[v] = upper bounds of the scores of a block, before the slack.
  template <bool kVnni, bool kBias, std::int64_t kQuads>
  static SEQREC_INLINE void upper_bounds(const std::uint8_t* block, std::int64_t quads,
                                         const Factors<kQuads>& factors, float margin,
                                         F (&upper)[kVectors]) {
    // Several sums, since each product waits for the one before it in its sum.
    I part[kChains][kVectors] = {};
    for (int v = 0; v < kVectors; ++v) part[0][v] = broadcast<W>(factors.query.offset);
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 32
#endif
    for (std::int64_t j = 0; j < quads; ++j) {
      const std::uint8_t* bytes = block + j * kInt8Rows * 4;
      for (int v = 0; v < kVectors; ++v) {
        I& sum = part[j % kChains][v];
        sum = dot_bytes<W, kVnni>(sum, bytes + v * W * 4, factors[j]);
      }
    }
    const float* scale = reinterpret_cast<const float*>(block + quads * kInt8Rows * 4);
    const F step = broadcast<W>(factors.query.step);
    for (int v = 0; v < kVectors; ++v) {
      I sum = part[0][v];
      for (int c = 1; c < kChains; ++c) sum += part[c][v];
      upper[v] = load<W>(scale + v * W) * (step * to_floats<W>(sum) + broadcast<W>(margin));
      if constexpr (kBias) upper[v] += load<W>(scale + kInt8Rows + v * W);
    }
  }

  /// The bounds themselves. Those that are not numbers become such that nothing is lost.
  static SEQREC_INLINE void both_bounds(F upper, F scale, float margin, float slack, F& high,
                                        F& low) {
    const F infinity = broadcast<W>(kInfinity);
    high = minimum<W>(upper + broadcast<W>(slack), infinity);
    low = maximum<W>(upper - broadcast<W>(2.0f * margin) * scale - broadcast<W>(slack), -infinity);
  }

  // ------------------------------------------------------------------------------ opening

  /// Block b and the blocks a whole number of strides behind it share their cells, 8 k or more in
  /// all: then few of the best k items meet in one.
  static std::int64_t cell_stride(std::int64_t blocks, std::int64_t k) {
    const std::int64_t least = 64, wanted = k < kInt8Opening ? 8 * k / kInt8Rows : blocks;
    const std::int64_t stride = wanted > least ? wanted : least;
    return stride < blocks ? stride : blocks;
  }

  /// The blocks first .. end, at most kInt8Opening items, for queries q .. q + count without a
  /// threshold, at most kInt8OpeningQueries of them.
  template <bool kVnni, bool kBias, std::int64_t kQuads>
  static SEQREC_NOINLINE void open(const TopkProblem& p, const Int8Items& t, TopkState& s,
                                   const Int8Query* queries, std::int64_t q, std::int64_t count,
                                   std::int64_t first, std::int64_t end) {
    const std::int64_t stride = cell_stride(end - first, p.k);
    const std::int64_t step = chunk_blocks(t, s);
    for (std::int64_t from = first; from < end; from += step) {
      const std::int64_t to = from + step < end ? from + step : end;
      const std::uint8_t* blocks = blocks_at(p, t, s, from, to);
      for (std::int64_t i = 0; i < count; ++i) {
        open_chunk<kVnni, kBias, kQuads>(p, t, s, queries[q + i], q + i, blocks,
                                         s.opening + 2 * i * kInt8Opening, stride, first, from, to);
      }
    }
    for (std::int64_t i = 0; i < count; ++i) {
      float* upper = s.opening + 2 * i * kInt8Opening;
      raise_threshold(p, s, q + i, stride * kInt8Rows, upper + kInt8Opening);
      s.seen_next[q + i] = p.seen.values ? p.seen.offsets[s.first_query + q + i] : 0;
      visit<kBias>(p, t, s, queries[q + i], q + i, upper, first, end);
    }
  }

  /// Keeps the upper bounds of the blocks from .. to, and raises the cells to their lower bounds.
  template <bool kVnni, bool kBias, std::int64_t kQuads>
  static SEQREC_NOINLINE void open_chunk(const TopkProblem& p, const Int8Items& t, TopkState& s,
                                         const Int8Query& given, std::int64_t q,
                                         const std::uint8_t* block, float* kept,
                                         std::int64_t stride, std::int64_t first, std::int64_t from,
                                         std::int64_t to) {
    const std::int64_t quads = kQuads > 0 ? kQuads : t.quads;
    const Factors<kQuads> factors(given);
    const Int8Query query = given;
    const std::int64_t bytes = t.block_bytes;
    const bool hides = p.blocked != nullptr || p.seen.values != nullptr;
    const std::int64_t whole = p.num_items / kInt8Rows;
    std::int64_t at = (from - first) % stride;
    float* cells = kept + kInt8Opening;
    for (std::int64_t b = from; b < to; ++b, block += bytes) {
      const Int8Bounds& bounds = t.bounds[b];
      const float margin = margin_of(bounds, query);
      const float slack = kBias ? query.slack + bounds.bias_slack : query.slack;
      const float* scale = reinterpret_cast<const float*>(block + quads * kInt8Rows * 4);
      const std::int64_t place = b - first;
      float* cell = cells + at * kInt8Rows;
      at = at + 1 < stride ? at + 1 : 0;
      F upper[kVectors], low[kVectors], high;
      upper_bounds<kVnni, kBias, kQuads>(block, quads, factors, margin, upper);
      for (int v = 0; v < kVectors; ++v) {
        store<W>(kept + place * kInt8Rows + v * W, upper[v]);
        both_bounds(upper[v], load<W>(scale + v * W), margin, slack, high, low[v]);
      }
      if (__builtin_expect(hides || b >= whole, 0)) {
        const std::uint32_t hidden = hidden_bits(p, s, q, b);
        for (int i = 0; hidden != 0 && i < kInt8Rows; ++i) {
          if (hidden >> i & 1) low[i / W][i % W] = -kInfinity;
        }
      }
      for (int v = 0; v < kVectors; ++v) {
        const F before = place < stride ? low[v] : load<W>(cell + v * W);
        store<W>(cell + v * W, maximum<W>(before, low[v]));
      }
    }
  }

  /// Items of a block that must not come back, and those behind the last.
  static SEQREC_INLINE std::uint32_t hidden_bits(const TopkProblem& p, TopkState& s, std::int64_t q,
                                                 std::int64_t block) {
    const std::int64_t first = block * kInt8Rows;
    std::uint32_t bits = 0;
    if (first + kInt8Rows > p.num_items) bits |= ~0u << (p.num_items - first);
    if (p.blocked) bits |= blocked_bits(p, first);
    if (p.seen.values) bits |= seen_bits(p, s, q, first);
    return bits;
  }

  /// At least k items reach the k-th best of the cells.
  static void raise_threshold(const TopkProblem& p, TopkState& s, std::int64_t q,
                              std::int64_t cells, const float* lowest) {
    if (cells < p.k) return;
    const float bound = kth_score<W>(lowest, cells, p.k, p.k / 8).value;
    if (bound > s.threshold[q]) s.threshold[q] = bound;
    if (s.shared_bound && bound > -kInfinity) TopkCandidates<W>::export_bound(s, q, bound);
  }

  /// Makes candidates of what reaches the threshold.
  template <bool kBias>
  static SEQREC_NOINLINE void visit(const TopkProblem& p, const Int8Items& t, TopkState& s,
                                    const Int8Query& query, std::int64_t q, const float* kept,
                                    std::int64_t first, std::int64_t end) {
    // Which items of each block do, for all blocks at first: a branch for each is mispredicted.
    const std::int64_t blocks = end - first;
    std::uint16_t hits[kInt8Opening / kInt8Rows];
    for (std::int64_t b = 0; b < blocks; ++b) {
      const float slack = kBias ? query.slack + t.bounds[first + b].bias_slack : query.slack;
      const F need = broadcast<W>(s.threshold[q] - slack);
      std::uint32_t bits = 0;
      for (int v = 0; v < kVectors; ++v) {
        // Turned round, so that what is not a number stays.
        bits |= mask_bits<W>(greater<W>(need, load<W>(kept + b * kInt8Rows + v * W))) << (v * W);
      }
      hits[b] = static_cast<std::uint16_t>(~bits);
    }
    for (std::int64_t b = 0; b < blocks; ++b) {
      if (__builtin_expect(hits[b] == 0, 1)) continue;
      float laid_out[kInt8Rows * 2];
      const float* scale = laid_out;
      if (t.blocks) {
        const std::uint8_t* block = t.blocks + (first + b) * t.block_bytes;
        scale = reinterpret_cast<const float*>(block + t.quads * kInt8Rows * 4);
      } else {
        TopkInt8Blocks<W>::scales_of(p, t, first + b, laid_out);
      }
      const float slack = kBias ? query.slack + t.bounds[first + b].bias_slack : query.slack;
      collect(p, s, q, first + b, hits[b], kept + b * kInt8Rows, scale,
              margin_of(t.bounds[first + b], query), slack);
    }
  }

  // ------------------------------------------------------------------------------ scan

  /// The blocks first .. end for query `q` of the state.
  template <bool kVnni, bool kBias, std::int64_t kQuads>
  static SEQREC_NOINLINE void scan_blocks(const TopkProblem& p, const Int8Items& t, TopkState& s,
                                          const Int8Query& query, std::int64_t q,
                                          const std::uint8_t* block, std::int64_t first,
                                          std::int64_t end) {
    const std::int64_t quads = kQuads > 0 ? kQuads : t.quads;
    const Factors<kQuads> factors(query);
    for (std::int64_t b = first; b < end; ++b, block += t.block_bytes) {
      const Int8Bounds& bounds = t.bounds[b];
      const float margin = margin_of(bounds, query);
      const float slack = kBias ? query.slack + bounds.bias_slack : query.slack;
      const F need = broadcast<W>(s.threshold[q] - slack);
      F upper[kVectors];
      upper_bounds<kVnni, kBias, kQuads>(block, quads, factors, margin, upper);
      std::uint32_t bits = 0;
      for (int v = 0; v < kVectors; ++v) {
        // Turned round, so that what is not a number stays.
        bits |= mask_bits<W>(greater<W>(need, upper[v])) << (v * W);
      }
      bits ^= 0xffffu;
      if (__builtin_expect(bits != 0, 0)) {
        F kept[kVectors];
        for (int v = 0; v < kVectors; ++v) kept[v] = upper[v];
        const float* scale = reinterpret_cast<const float*>(block + quads * kInt8Rows * 4);
        collect(p, s, q, b, bits, reinterpret_cast<const float*>(kept), scale, margin, slack);
      }
    }
  }

  /// Below any rounding error in the computation of a margin, above what may underflow in it.
  static constexpr float kTiny = 0x1p-120f;

  /// Makes candidates of the items of a block whose upper bounds stand in `bits`.
  static SEQREC_NOINLINE void collect(const TopkProblem& p, TopkState& s, std::int64_t q,
                                      std::int64_t block, std::uint32_t bits, const float* upper,
                                      const float* scale, float margin, float slack) {
    const std::int64_t first = block * kInt8Rows;
    if (first + kInt8Rows > p.num_items) bits &= (1u << (p.num_items - first)) - 1;
    if (p.blocked) bits &= ~blocked_bits(p, first);
    if (p.seen.values) bits &= ~seen_bits(p, s, q, first);
    float high[kInt8Rows], low[kInt8Rows];
    for (int v = 0; v < kVectors; ++v) {
      F above, below;
      both_bounds(load<W>(upper + v * W), load<W>(scale + v * W), margin, slack, above, below);
      store<W>(high + v * W, above);
      store<W>(low + v * W, below);
    }
    std::int64_t at = q * s.capacity + s.count[q];
    for (; bits; bits &= bits - 1) {
      const int lane = __builtin_ctz(bits);
      if (high[lane] < s.threshold[q]) continue;
      s.upper[at] = high[lane];
      s.scores[at] = low[lane];
      s.ids[at] = static_cast<std::int32_t>(first + lane);
      ++at;
      if (at == q * s.capacity + s.limit) {
        s.count[q] = s.limit;
        thin_out(p, s, q);
        at = q * s.capacity + s.count[q];
      }
    }
    s.count[q] = at - q * s.capacity;
  }

  static std::uint32_t blocked_bits(const TopkProblem& p, std::int64_t first) {
    std::uint32_t bits = 0;
    for (std::int64_t i = 0; i < kInt8Rows && first + i < p.num_items; ++i) {
      bits |= static_cast<std::uint32_t>(p.blocked[first + i] != 0) << i;
    }
    return bits;
  }

  /// Items of a block that the query has seen. Blocks come in ascending order.
  static std::uint32_t seen_bits(const TopkProblem& p, TopkState& s, std::int64_t q,
                                 std::int64_t first) {
    const std::int64_t end = p.seen.offsets[s.first_query + q + 1];
    std::int64_t next = s.seen_next[q];
    while (next < end && p.seen.values[next] < first) ++next;
    std::uint32_t bits = 0;
    for (; next < end && p.seen.values[next] < first + kInt8Rows; ++next) {
      bits |= 1u << (p.seen.values[next] - first);
    }
    s.seen_next[q] = next;
    return bits;
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
    with_item_form(p.items, [&](auto form) { score_items<decltype(form)>(p, s, q); });
  }

  template <typename Item>
  static SEQREC_NOINLINE void score_items(const TopkProblem& p, TopkState& s, std::int64_t q) {
    const std::int64_t at = q * s.capacity, n = s.count[q];
    const float* const query[1] = {p.queries + (s.first_query + q) * p.dim};
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < n; i += kRowItems) {
      constexpr std::int64_t kAhead = 2 * kRowItems;
      for (std::int64_t next = i + kAhead; next < n && next < i + kAhead + kRowItems; ++next) {
        Item::fetch(p.items, s.ids[at + next], p.dim);
      }
      ScatteredItems<Item> items;
      for (int r = 0; r < kRowItems; ++r) {
        const std::int64_t place = i + r < n ? i + r : n - 1;
        items.item[r] = Item::of(p.items, s.ids[at + place], p.dim);
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

  /// The blocks first .. end for all queries.
  template <bool kVnni, bool kBias>
  static void scan_queries(const TopkProblem& p, const Int8Items& t, TopkState& s,
                           const Int8Query* queries, std::int64_t first, std::int64_t end,
                           bool opens) {
    const auto with = [&](auto number) {
      constexpr std::int64_t kQuads = decltype(number)::kValue;
      const std::int64_t together = opens ? kInt8OpeningQueries : 1;
      const std::uint8_t* blocks = opens ? nullptr : blocks_at(p, t, s, first, end);
      for (std::int64_t q = 0; q < s.num_queries; q += together) {
        if (opens) {
          const std::int64_t count = s.num_queries - q < together ? s.num_queries - q : together;
          open<kVnni, kBias, kQuads>(p, t, s, queries, q, count, first, end);
        } else {
          scan_blocks<kVnni, kBias, kQuads>(p, t, s, queries[q], q, blocks, first, end);
        }
      }
    };
    switch (t.quads) {
      case 16:
        return with(Constant<16>{});
      case 32:
        return with(Constant<32>{});
      default:
        return with(Constant<0>{});
    }
  }

  template <std::int64_t kNumber>
  struct Constant {
    static constexpr std::int64_t kValue = kNumber;
  };

  template <bool kVnni>
  static void scan_all(const TopkProblem& p, const Int8Items& t, TopkState& s,
                       const Int8Query* queries, std::int64_t first, std::int64_t end) {
    const std::int64_t opening = kInt8Opening / kInt8Rows;
    const std::int64_t chunk = chunk_blocks(t, s);
    std::int64_t to = first;
    for (std::int64_t from = first; from < end; from = to) {
      if (s.shared_bound) import_exact_bounds(s);
      // The first scan of a thread, unless more than a part of what it meets is wanted anyway.
      bool opens = from == first && s.opening != nullptr && (end - first) * kInt8Rows >= 4 * p.k;
      for (std::int64_t q = 0; q < s.num_queries; ++q)
        opens = opens && s.threshold[q] == -kInfinity;
      const std::int64_t step = opens ? opening : chunk;
      to = from + step < end ? from + step : end;
      if (p.bias) {
        scan_queries<kVnni, true>(p, t, s, queries, from, to, opens);
      } else {
        scan_queries<kVnni, false>(p, t, s, queries, from, to, opens);
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
