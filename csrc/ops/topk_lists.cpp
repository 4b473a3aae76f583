// SPDX-License-Identifier: Apache-2.0
#include "ops/topk_lists.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "base/round_up.h"
#include "base/scratch.h"
#include "base/thread_pool.h"
#include "ops/topk.h"
#include "ops/topk_filter.h"

namespace seqrec {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kMost = std::numeric_limits<float>::max();
constexpr std::int64_t kGroupQueries = 64;  // queries that share the reading of lists
constexpr std::int64_t kScratchBytes = std::int64_t{64} << 20;
constexpr std::int64_t kFirstLists = 4;   // visited before the first threshold is taken
constexpr float kOrderReach = 3.0f;       // orders the lists where all are visited
constexpr std::int64_t kRoundGrowth = 4;  // lists of a round of many queries, over the last

/// Standard deviation, in the direction of the query, of items about the centres of their lists.
float deviation(const float* query, const float* covariance, std::int64_t dim, float* sums) {
  double square = 0.0;
  if (covariance == nullptr) {
    for (std::int64_t d = 0; d < dim; ++d) square += double{query[d]} * double{query[d]};
  } else {
    std::fill_n(sums, dim, 0.0f);
    for (std::int64_t i = 0; i < dim; ++i) {
      const float* row = covariance + i * dim;
      const float factor = query[i];
      for (std::int64_t d = 0; d < dim; ++d) sums[d] += factor * row[d];
    }
    for (std::int64_t d = 0; d < dim; ++d) square += double{sums[d]} * double{query[d]};
  }
  return static_cast<float>(std::sqrt(std::max(square, 0.0)));
}

/// The search of one thread for up to `room` queries at a time.
class Searcher {
 public:
  Searcher(const TopkProblem& p, const ListedItems& listed, const ListProbe& probe,
           const KernelTable& table, std::int64_t room, std::int64_t capacity, std::int64_t limit)
      : p_(p),
        listed_(listed),
        probe_(probe),
        topk_(*table.topk),
        vnni_(has_vnni()),
        lists_(listed.num_lists),
        padded_(round_up(std::max<std::int64_t>(lists_, 1), kInt8Rows)),
        candidates_(room, capacity, limit, nullptr),
        promises_(room * padded_),
        visited_(room),
        places_(padded_),
        sums_(p.dim) {
    items_ = listed.lists->view();
    items_.names = listed.names;
    if (listed.tail != nullptr) {
      tail_ = listed.tail->view();
      tail_.names = listed.tail_names;
    }
  }

  void search(std::int64_t first, std::int64_t count, float* out_scores, std::int64_t* out_ids) {
    const Int8Queries queries(p_.queries + first * p_.dim, count, p_.dim, topk_.int8_levels(vnni_));
    queries_ = queries.data();
    TopkState& all = candidates_.state();
    all.first_query = first;
    all.num_queries = count;
    topk_.int8_begin(p_, all);
    for (std::int64_t q = 0; q < count; ++q) begin(q);
    if (count == 1) {
      visit_rest(0);
    } else {
      visit_rest_together(count);
    }
    for (std::int64_t q = 0; q < count; ++q) {
      fill_up(q);
      finish(q, out_scores + (first + q) * p_.k, out_ids + (first + q) * p_.k);
    }
  }

 private:
  /// The state of one query, to scan for it alone.
  TopkState alone(std::int64_t q) {
    TopkState s = candidates_.state();
    s.first_query += q;
    s.num_queries = 1;
    s.threshold += q;
    s.scores += q * s.capacity;
    s.upper += q * s.capacity;
    s.ids += q * s.capacity;
    s.count += q;
    s.seen_next += q;
    return s;
  }

  void scan(TopkState& s, std::int64_t q, std::int64_t list) {
    topk_.int8_scan(p_, items_, s, queries_ + q, vnni_, listed_.starts[list],
                    listed_.starts[list + 1]);
  }

  bool stops() const { return probe_.reach < kInf; }
  const float* promises(std::int64_t q) const { return promises_.data() + q * padded_; }

  /// The lowest promise of the `count` best lists.
  float promise_of(std::int64_t q, std::int64_t count) const {
    return count < lists_ ? topk_.kth(promises(q), lists_, count) : -kMost;
  }

  /// Lists whose promise is at least `least`, but below `before`; the best first.
  std::int64_t between(std::int64_t q, float least, float before) {
    const float* promise = promises(q);
    std::int32_t* places = places_.data();
    const std::int64_t found = topk_.reaching(promise, lists_, least, places);
    std::int32_t* end = std::remove_if(
        places, places + found, [&](std::int32_t list) { return !(promise[list] < before); });
    std::sort(places, end, [&](std::int32_t a, std::int32_t b) {
      return promise[a] > promise[b] || (promise[a] == promise[b] && a < b);
    });
    return end - places;
  }

  /// Orders the lists, visits the first ones and what is in no list.
  void begin(std::int64_t q) {
    float* promise = promises_.data() + q * padded_;
    topk_.int8_estimate(listed_.centres->view(), queries_[q], vnni_, promise);
    const std::int64_t query = candidates_.state().first_query + q;
    const float width =
        deviation(p_.queries + query * p_.dim, listed_.covariance, p_.dim, sums_.data()) *
        (stops() ? probe_.reach : kOrderReach);
    for (std::int64_t list = 0; list < lists_; ++list) {
      const float sum = promise[list] + width * listed_.spread[list];
      // What is not a number may be anything: such a list is visited.
      const float kept = sum >= -kMost ? std::min(sum, kMost) : sum < 0.0f ? -kMost : kMost;
      promise[list] = listed_.starts[list] < listed_.starts[list + 1] ? kept : -kInf;
    }
    std::fill(promise + lists_, promise + padded_, -kInf);
    const std::int64_t first = std::min(kFirstLists, probe_.most);
    visited_[q] = promise_of(q, first);
    TopkState s = alone(q);
    const std::int64_t count = between(q, visited_[q], kInf);
    for (std::int64_t i = 0; i < count; ++i) scan(s, q, places_[i]);
    topk_.int8_tighten(p_, s, 0);
    if (listed_.tail != nullptr) {
      topk_.int8_scan(p_, tail_, s, queries_ + q, vnni_, 0, tail_.num_blocks);
    }
  }

  /// Visits one list after the other until none promises enough.
  void visit_rest(std::int64_t q) {
    TopkState s = alone(q);
    const float least = promise_of(q, probe_.most);
    const float from = stops() ? std::max(least, s.threshold[0]) : least;
    const std::int64_t count = between(q, from, visited_[q]);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t list = places_[i];
      if (stops() && promises(q)[list] < s.threshold[0]) break;
      scan(s, q, list);
    }
    visited_[q] = std::min(visited_[q], least);
  }

  /// The same for many queries: each round takes further lists of every query, and reads a list
  /// once for all that visit it.
  void visit_rest_together(std::int64_t count) {
    bool last = false;
    for (std::int64_t best = kFirstLists * kRoundGrowth; !last; best *= kRoundGrowth) {
      pairs_.clear();
      last = best >= std::min(probe_.most, lists_);
      for (std::int64_t q = 0; q < count; ++q) {
        TopkState s = alone(q);
        topk_.int8_tighten(p_, s, 0);
        const float least = promise_of(q, std::min(best, probe_.most));
        const float from = stops() ? std::max(least, s.threshold[0]) : least;
        const std::int64_t found = topk_.reaching(promises(q), lists_, from, places_.data());
        for (std::int64_t i = 0; i < found; ++i) {
          if (promises(q)[places_[i]] < visited_[q]) {
            pairs_.push_back(std::int64_t{places_[i]} << 32 | q);
          }
        }
        visited_[q] = std::min(visited_[q], least);
      }
      std::sort(pairs_.begin(), pairs_.end());
      for (const std::int64_t pair : pairs_) {
        const std::int64_t q = pair & 0xffffffff, list = pair >> 32;
        TopkState s = alone(q);
        if (stops() && promises(q)[list] < s.threshold[0]) continue;
        scan(s, q, list);
      }
    }
  }

  /// Visits the lists that are left, as long as fewer than k items were found.
  void fill_up(std::int64_t q) {
    TopkState s = alone(q);
    // A threshold means that k items were found, even if fewer than k may be left as candidates.
    if (s.count[0] < p_.k && s.threshold[0] == -kInf) {
      const std::int64_t count = between(q, -kMost, visited_[q]);
      for (std::int64_t i = 0; i < count && s.count[0] < p_.k && s.threshold[0] == -kInf; ++i) {
        scan(s, q, places_[i]);
      }
    }
  }

  void finish(std::int64_t q, float* scores, std::int64_t* ids) {
    TopkState s = alone(q);
    topk_.int8_settle(p_, s, 0);
    topk_.finish(s.scores, s.ids, s.count[0], p_.k, scores, ids);
  }

  const TopkProblem& p_;
  const ListedItems& listed_;
  const ListProbe probe_;
  const TopkKernels& topk_;
  const bool vnni_;
  const std::int64_t lists_, padded_;
  Int8Items items_{}, tail_{};
  const Int8Query* queries_ = nullptr;
  Int8Candidates candidates_;
  Scratch<float> promises_;  // [room, padded_]
  Scratch<float> visited_;   // [room]: lists with at least this promise were visited or left out
  Scratch<std::int32_t> places_;
  Scratch<float> sums_;
  std::vector<std::int64_t> pairs_;  // list and query
};

}  // namespace

void score_topk_lists(const TopkProblem& problem, const ListedItems& listed, const ListProbe& probe,
                      int threads, const KernelTable& table, float* out_scores,
                      std::int64_t* out_ids) {
  if (problem.num_queries == 0) return;
  const ReadyTopk ready(problem, true, threads);
  const TopkProblem& p = ready.problem();
  // Few open items are scored exactly, without the lists.
  if (p.listed != nullptr) return score_topk(p, threads, table, out_scores, out_ids);
  const std::int64_t wanted = std::max<std::int64_t>(4 * std::min(p.k, p.num_items), 512);
  const std::int64_t capacity = round_up(std::min(wanted, p.num_items + 1), kTopkPad);
  const std::int64_t limit = wanted > p.num_items ? p.num_items + 1 : capacity;
  // About 100 µs a query; a group reads lists together, but threads come first.
  const double cost = 100e3 * static_cast<double>(p.num_queries);
  const int worth = threads_worth(cost, threads);
  const std::int64_t fit = std::max<std::int64_t>(
      1, kScratchBytes / (12 * capacity + 4 * listed.num_lists + 64) / worth);
  const std::int64_t share = (p.num_queries + worth - 1) / worth;
  const std::int64_t group = std::min({kGroupQueries, fit, share});
  const std::int64_t groups = (p.num_queries + group - 1) / group;
  std::atomic<std::int64_t> next{0};
  parallel(std::min<std::int64_t>(worth, groups), worth, [&](std::int64_t) {
    Searcher searcher(p, listed, probe, table, group, capacity, limit);
    for (;;) {
      const std::int64_t from = next.fetch_add(1, std::memory_order_relaxed) * group;
      if (from >= p.num_queries) return;
      const std::int64_t end = std::min(from + group, p.num_queries);
      // Runs of queries whose bounds hold, and single others, which the exact search serves.
      for (std::int64_t first = from, to = from; first < end; first = to) {
        while (to < end && Int8Queries::bounded(p.queries + to * p.dim, p.dim)) ++to;
        if (to > first) {
          searcher.search(first, to - first, out_scores, out_ids);
          continue;
        }
        to = first + 1;
        TopkProblem one = p;
        one.queries += first * p.dim;
        one.num_queries = 1;
        if (one.seen.values != nullptr) one.seen = {p.seen.values, p.seen.offsets + first, 1};
        score_topk(one, 1, table, out_scores + first * p.k, out_ids + first * p.k);
      }
    }
  });
}

}  // namespace seqrec
