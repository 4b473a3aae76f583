// SPDX-License-Identifier: Apache-2.0
// Keeping the best k of n candidates, and putting them in order.
//
// A candidate is better with a higher score, at equal scores with a lower id. Scores are neither
// NaN nor -inf. The k-th best score is found by bisection over the bit patterns of floats, each
// step a vectorised count: no branch depends on the data, so it beats a quickselect.
#pragma once

#include "base/order.h"
#include "base/simd.h"
#include "kernels/topk_types.h"

namespace seqrec {
namespace SEQREC_ISA {

inline constexpr float kInfinity = __builtin_inff();

/// Maps a float to an integer so that order is kept; its own inverse.
SEQREC_INLINE std::int32_t flip_order(std::int32_t bits) {
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
SEQREC_INLINE std::int32_t ordered(float x) {
  std::int32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return flip_order(bits);
}
SEQREC_INLINE float unordered(std::int32_t key) {
  const std::int32_t bits = flip_order(key);
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

template <int W>
SEQREC_INLINE std::int64_t sum_lanes(Ints<W> v) {
  std::int64_t sum = 0;
  for (int i = 0; i < W; ++i) sum += v[i];
  return sum;
}

/// Fills up the last vector with candidates that lose against every real one.
template <int W>
SEQREC_INLINE std::int64_t pad_candidates(float* scores, std::int32_t* ids, std::int64_t n) {
  const std::int64_t padded = (n + W - 1) / W * W;
  for (std::int64_t i = n; i < padded; ++i) {
    scores[i] = -kInfinity;
    ids[i] = 0x7fffffff;
  }
  return padded;
}

template <int W>
SEQREC_INLINE std::int64_t count_at_least(const float* scores, std::int64_t padded, float pivot) {
  Ints<W> negative{};
  const Floats<W> p = broadcast<W>(pivot);
  for (std::int64_t i = 0; i < padded; i += W) negative += load<W>(scores + i) >= p;
  return -sum_lanes<W>(negative);
}

/// Candidates whose score equals `value` and whose id is at most `id`.
template <int W>
SEQREC_INLINE std::int64_t count_equal_up_to(const float* scores, const std::int32_t* ids,
                                             std::int64_t padded, float value, std::int32_t id) {
  Ints<W> negative{};
  const Floats<W> v = broadcast<W>(value);
  const Ints<W> last = broadcast<W>(id);
  for (std::int64_t i = 0; i < padded; i += W) {
    negative += (load<W>(scores + i) == v) & (load<W>(ids + i) <= last);
  }
  return -sum_lanes<W>(negative);
}

template <int W>
SEQREC_INLINE float least(const float* scores, std::int64_t n) {
  float low = kInfinity;
  std::int64_t i = 0;
  if (n >= W) {
    Floats<W> lowest = load<W>(scores);
    for (i = W; i + W <= n; i += W) {
      const Floats<W> other = load<W>(scores + i);
      lowest = other < lowest ? other : lowest;
    }
    for (int lane = 0; lane < W; ++lane) low = lowest[lane] < low ? lowest[lane] : low;
  }
  for (; i < n; ++i) low = scores[i] < low ? scores[i] : low;
  return low;
}

struct KthScore {
  float value;
  std::int64_t reach;  // how many scores are at least `value`
};

/// The k-th best of `n >= k` scores, behind which -inf fills up the last vector; or, to save time,
/// a lower number that at most `spare` more of them reach.
template <int W>
SEQREC_INLINE KthScore kth_score(const float* scores, std::int64_t n, std::int64_t k,
                                 std::int64_t spare = 0) {
  const std::int64_t padded = (n + W - 1) / W * W;
  const float low = least<W>(scores, n);
  float high = -kInfinity;
  {
    Floats<W> highest = load<W>(scores);
    for (std::int64_t i = W; i < padded; i += W) {
      const Floats<W> other = load<W>(scores + i);
      highest = other > highest ? other : highest;
    }
    for (int i = 0; i < W; ++i) high = highest[i] > high ? highest[i] : high;
  }
  // Invariant: at least k candidates reach `lo`, fewer than k exceed `hi`.
  std::int64_t lo = ordered(low), hi = ordered(high), reach = n;
  while (lo < hi && reach - k > spare) {
    const std::int64_t mid = lo + (hi - lo + 1) / 2;
    const std::int64_t found =
        count_at_least<W>(scores, padded, unordered(static_cast<std::int32_t>(mid)));
    if (found >= k) {
      lo = mid;
      reach = found;
    } else {
      hi = mid - 1;
    }
  }
  return {unordered(static_cast<std::int32_t>(lo)), reach};
}

/// Moves the best `k` of `n > k` candidates to the front, without changing their order.
///
/// Returns the score of the worst of them. The arrays have room up to the next multiple of W.
template <int W>
SEQREC_NOINLINE inline float keep_best(float* scores, std::int32_t* ids, std::int64_t n,
                                       std::int64_t k) {
  const std::int64_t padded = pad_candidates<W>(scores, ids, n);
  const KthScore kth = kth_score<W>(scores, n, k);
  const float value = kth.value;
  const std::int64_t reach = kth.reach;
  std::int32_t last_id = 0x7ffffffe;
  if (reach > k) {  // equal scores straddle the k-th place: the lower ids stay
    const std::int64_t equal = count_equal_up_to<W>(scores, ids, padded, value, last_id);
    const std::int64_t wanted = equal - (reach - k);
    std::int64_t from = 0, to = last_id;
    while (from < to) {
      const std::int64_t mid = from + (to - from) / 2;
      if (count_equal_up_to<W>(scores, ids, padded, value, static_cast<std::int32_t>(mid)) >=
          wanted) {
        to = mid;
      } else {
        from = mid + 1;
      }
    }
    last_id = static_cast<std::int32_t>(to);
  }
  std::int64_t kept = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const float score = scores[i];
    const std::int32_t id = ids[i];
    scores[kept] = score;
    ids[kept] = id;
    kept += (score > value) | ((score == value) & (id <= last_id));
  }
  return least<W>(scores, kept);
}

inline constexpr std::int64_t kRankSortLimit = 256;

/// How many of the n candidates are better than each of them.
///
/// With kTies, an equal score with a lower id is better; without, only a higher score.
template <int W, bool kTies>
SEQREC_INLINE void count_better(const float* scores, const std::int32_t* ids, std::int64_t n,
                                std::int64_t padded, std::int32_t* better) {
  for (std::int64_t i = 0; i < padded; i += W) {
    const Floats<W> score = load<W>(scores + i);
    const Ints<W> id = load<W>(ids + i);
    Ints<W> negative{};
    for (std::int64_t j = 0; j < n; ++j) {
      const Floats<W> other = broadcast<W>(scores[j]);
      negative += other > score;
      if constexpr (kTies) negative += (other == score) & (broadcast<W>(ids[j]) < id);
    }
    store<W>(better + i, -negative);
  }
}

/// Sorts up to kRankSortLimit candidates: the place of each is the number of better ones.
///
/// Quadratic, but all in lanes and free of branches.
template <int W>
SEQREC_NOINLINE inline void rank_candidates(float* scores, std::int32_t* ids, std::int64_t n,
                                            float* out_scores, std::int64_t* out_ids) {
  alignas(64) std::int32_t better[kRankSortLimit + W];
  const std::int64_t padded = pad_candidates<W>(scores, ids, n);
  count_better<W, false>(scores, ids, n, padded, better);
  std::int64_t sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += better[i];
  // Ties leave gaps: then the places do not add up to 0 + 1 + … + (n - 1).
  if (sum != n * (n - 1) / 2) count_better<W, true>(scores, ids, n, padded, better);
  for (std::int64_t i = 0; i < n; ++i) {
    out_scores[better[i]] = scores[i];
    out_ids[better[i]] = ids[i];
  }
}

/// Writes the best k of n candidates in order, then -inf and -1 up to k places.
///
/// The arrays have room up to the next multiple of W and are used up.
template <int W>
inline void finish_topk(float* scores, std::int32_t* ids, std::int64_t n, std::int64_t k,
                        float* out_scores, std::int64_t* out_ids) {
  if (n > k) {
    keep_best<W>(scores, ids, n, k);
    n = k;
  }
  if (n <= kRankSortLimit) {
    rank_candidates<W>(scores, ids, n, out_scores, out_ids);
  } else {
    order_candidates(scores, ids, n, out_scores, out_ids);
  }
  for (std::int64_t i = n; i < k; ++i) {
    out_scores[i] = -kInfinity;
    out_ids[i] = -1;
  }
}

}  // namespace SEQREC_ISA
}  // namespace seqrec
