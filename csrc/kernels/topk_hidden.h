// SPDX-License-Identifier: Apache-2.0
// Which items of a block of bytes may not be found: closed, seen, or none at all.
#pragma once

#include "base/simd.h"
#include "kernels/topk_types.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W>
struct TopkHidden {
  static constexpr std::uint32_t kAll = (1u << kInt8Rows) - 1;

  /// Items of a block that must not come back, and those behind the last.
  static SEQREC_INLINE std::uint32_t hidden_bits(const TopkProblem& p, const Int8Items& t,
                                                 TopkState& s, std::int64_t q, std::int64_t block) {
    const std::int64_t first = block * kInt8Rows;
    if (t.names) return hidden_names(p, s, q, t.names + first, kAll);
    std::uint32_t bits = 0;
    if (first + kInt8Rows > p.num_items) bits |= ~0u << (p.num_items - first);
    if (p.open) bits |= ~open_bits(p, block);
    if (p.seen.values) bits |= seen_bits(p, s, q, first);
    return bits;
  }

  /// Those of the places in `bits` that hold no item, or one that is closed or seen.
  static std::uint32_t hidden_names(const TopkProblem& p, const TopkState& s, std::int64_t q,
                                    const std::int32_t* names, std::uint32_t bits) {
    std::uint32_t hidden = 0;
    for (int v = 0; v < kInt8Rows / W; ++v) {
      hidden |= lane_bits<W>(load<W>(names + v * W) < 0) << (v * W);
    }
    if (!p.open && !p.seen.values) return hidden;
    for (std::uint32_t left = bits & ~hidden; left; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      const std::int32_t id = names[lane];
      const bool hides = (p.open && !(p.open[id / 64] >> (id % 64) & 1)) ||
                         (p.seen.values && has_seen(p, s.first_query + q, id));
      hidden |= std::uint32_t{hides} << lane;
    }
    return hidden;
  }

  static bool has_seen(const TopkProblem& p, std::int64_t query, std::int32_t id) {
    std::int64_t from = p.seen.offsets[query], to = p.seen.offsets[query + 1];
    const std::int64_t end = to;
    while (from < to) {
      const std::int64_t mid = from + (to - from) / 2;
      if (p.seen.values[mid] < id) {
        from = mid + 1;
      } else {
        to = mid;
      }
    }
    return from < end && p.seen.values[from] == id;
  }

  /// Whether the bits of the filter of all queries stand in the order of the blocks.
  static SEQREC_INLINE bool opens(const TopkProblem& p, const Int8Items& t) {
    return p.open != nullptr && t.names == nullptr;
  }

  /// Items of a block that may be chosen, so far as the filter of all queries says.
  static SEQREC_INLINE std::uint32_t open_bits(const TopkProblem& p, std::int64_t block) {
    constexpr std::int64_t kBlocks = 64 / kInt8Rows;  // of a word
    return p.open[block / kBlocks] >> (block % kBlocks * kInt8Rows) & 0xffffu;
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
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
