// SPDX-License-Identifier: Apache-2.0
// The lists of candidates that a scan for the best items fills: who enters, when they shrink.
#pragma once

#include "base/simd.h"
#include "kernels/topk_select.h"
#include "kernels/topk_types.h"

namespace seqrec {
namespace SEQREC_ISA {

/// Whether item `id` may be chosen.
SEQREC_INLINE bool is_open(const std::uint64_t* open, std::int32_t id) {
  return open[id / 64] >> (id % 64) & 1;
}

template <int W>
struct TopkCandidates {
  /// Raises the thresholds to what other threads have already found.
  ///
  /// Another thread's k-th best score bounds ours from below, but an item of ours with that very
  /// score may have a lower id, so the bound is the next lower float.
  static void import_bounds(TopkState& s) {
    for (std::int64_t q = 0; q < s.num_queries; ++q) {
      const std::int32_t key =
          __atomic_load_n(s.shared_bound + s.first_query + q, __ATOMIC_RELAXED);
      const float value = unordered(key);
      if (!(value > s.threshold[q])) continue;
      const float below = value == 0.0f ? -__FLT_MIN__ : unordered(key - 1);
      if (below > s.threshold[q]) s.threshold[q] = below;
    }
  }

  static void export_bound(TopkState& s, std::int64_t q, float value) {
    std::int32_t* bound = s.shared_bound + s.first_query + q;
    const std::int32_t key = ordered(value);
    std::int32_t old = __atomic_load_n(bound, __ATOMIC_RELAXED);
    while (old < key && !__atomic_compare_exchange_n(bound, &old, key, true, __ATOMIC_RELAXED,
                                                     __ATOMIC_RELAXED)) {
    }
  }

  static SEQREC_NOINLINE void shrink(const TopkProblem& p, TopkState& s, std::int64_t q) {
    const std::int64_t at = q * s.capacity;
    const float worst = keep_best<W>(s.scores + at, s.ids + at, s.count[q], p.k);
    s.count[q] = p.k;
    if (worst > s.threshold[q]) s.threshold[q] = worst;
    if (s.shared_bound) export_bound(s, q, worst);
  }

  static SEQREC_INLINE void push(const TopkProblem& p, TopkState& s, std::int64_t q, float score,
                                 std::int32_t id) {
    if (p.open && !is_open(p.open, id)) return;
    if (p.seen.values) {
      const std::int64_t end = p.seen.offsets[s.first_query + q + 1];
      std::int64_t next = s.seen_next[q];
      while (next < end && p.seen.values[next] < id) ++next;
      s.seen_next[q] = next;
      if (next < end && p.seen.values[next] == id) return;
    }
    const std::int64_t n = s.count[q];
    s.scores[q * s.capacity + n] = score;
    s.ids[q * s.capacity + n] = id;
    s.count[q] = n + 1;
    if (n + 1 == s.limit && n + 1 > p.k) shrink(p, s, q);
  }

  /// Items `first .. first + count` of the table, or the ones named by `ids`, side by side.
  struct Rows {
    const float* data;
    const float* bias;        // or null
    const std::int32_t* ids;  // or null: first, first + 1, …
    std::int32_t first;
    std::int64_t count;

    SEQREC_INLINE std::int32_t id(std::int64_t row) const {
      return ids ? ids[row] : first + static_cast<std::int32_t>(row);
    }
  };
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
