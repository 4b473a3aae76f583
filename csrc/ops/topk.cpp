// SPDX-License-Identifier: Apache-2.0
#include "ops/topk.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "base/round_up.h"
#include "base/scratch.h"
#include "base/thread_pool.h"
#include "ops/topk_filter.h"

namespace seqrec {
namespace {

constexpr std::int64_t kScratchBytes = std::int64_t{256} << 20;  // for the candidates of a group
constexpr std::int64_t kGroupQueries = 256;                      // queries scanned together
constexpr std::int64_t kOwnQueries = 64;  // a thread with this many scans the table for itself
constexpr std::int64_t kPieces = 8;       // pieces of the item table for each thread

/// The memory behind a TopkState.
class Workspace {
 public:
  Workspace(const TopkProblem& p, const KernelTable& table, std::int64_t queries,
            std::int64_t limit, std::int64_t capacity, std::int32_t* bound)
      : Workspace(p, round_up(queries, kTopkQueryPad),
                  std::min(table.topk->chunk_rows(p.dim), scanned_rows(p)) + kTopkRowPad, queries,
                  limit, capacity, bound) {}

  void begin(const TopkProblem& p, const KernelTable& table, std::int64_t first,
             std::int64_t queries) {
    state_.first_query = first;
    state_.num_queries = queries;
    table.topk->begin(p, state_);
  }

  TopkState& state() { return state_; }

 private:
  Workspace(const TopkProblem& p, std::int64_t padded, std::int64_t rows, std::int64_t queries,
            std::int64_t limit, std::int64_t capacity, std::int32_t* bound)
      : floats_(size(padded * p.dim) + size(padded) + size(queries * capacity) +
                size(rows * p.dim) + size(rows)),
        ints_(size(queries * capacity) + size(rows)),
        longs_(size(queries) * 2) {
    state_.limit = limit;
    state_.capacity = capacity;
    state_.packed = take(floats_, float_used_, padded * p.dim);
    state_.threshold = take(floats_, float_used_, padded);
    state_.scores = take(floats_, float_used_, queries * capacity);
    state_.rows = take(floats_, float_used_, rows * p.dim);
    state_.row_bias = take(floats_, float_used_, rows);
    state_.ids = take(ints_, int_used_, queries * capacity);
    state_.row_ids = take(ints_, int_used_, rows);
    state_.count = take(longs_, long_used_, queries);
    state_.seen_next = take(longs_, long_used_, queries);
    state_.shared_bound = bound;
  }

  static std::int64_t size(std::int64_t n) { return round_up(n, 16); }

  template <typename T>
  static T* take(Scratch<T>& from, std::int64_t& used, std::int64_t n) {
    T* part = from.data() + used;
    used += size(n);
    return part;
  }

  Scratch<float> floats_;
  Scratch<std::int32_t> ints_;
  Scratch<std::int64_t> longs_;
  std::int64_t float_used_ = 0, int_used_ = 0, long_used_ = 0;
  TopkState state_{};
};

struct Plan {
  const TopkProblem& p;
  const KernelTable& table;
  int threads;
  std::int64_t limit;
  std::int64_t capacity;
  std::int64_t group;
  float* out_scores;
  std::int64_t* out_ids;

  void finish(float* scores, std::int32_t* ids, std::int64_t count, std::int64_t query) const {
    table.topk->finish(scores, ids, count, p.k, out_scores + query * p.k, out_ids + query * p.k);
  }
};

/// Each thread takes groups of queries and scans all items for them.
void split_queries(const Plan& plan) {
  const TopkProblem& p = plan.p;
  const std::int64_t groups = (p.num_queries + plan.group - 1) / plan.group;
  std::atomic<std::int64_t> next{0};
  parallel(std::min<std::int64_t>(plan.threads, groups), plan.threads, [&](std::int64_t) {
    Workspace work(p, plan.table, plan.group, plan.limit, plan.capacity, nullptr);
    for (;;) {
      const std::int64_t first = next.fetch_add(1, std::memory_order_relaxed) * plan.group;
      if (first >= p.num_queries) return;
      work.begin(p, plan.table, first, std::min(plan.group, p.num_queries - first));
      TopkState& s = work.state();
      plan.table.topk->scan(p, s, 0, scanned_rows(p));
      for (std::int64_t q = 0; q < s.num_queries; ++q) {
        plan.finish(s.scores + q * s.capacity, s.ids + q * s.capacity, s.count[q], first + q);
      }
    }
  });
}

/// The threads share the items, piece by piece, and tell each other their thresholds.
void split_items(const Plan& plan) {
  const TopkProblem& p = plan.p;
  const std::int64_t chunk = plan.table.topk->chunk_rows(p.dim);
  const std::int64_t rows = scanned_rows(p), wanted = rows / (plan.threads * kPieces);
  const std::int64_t piece = std::max(chunk, round_up(wanted, chunk));
  Scratch<std::int32_t> bound(p.num_queries);
  std::fill_n(bound.data(), p.num_queries, INT32_MIN);
  std::vector<std::unique_ptr<Workspace>> work(static_cast<std::size_t>(plan.threads));
  for (auto& each : work) {
    each = std::make_unique<Workspace>(p, plan.table, plan.group, plan.limit, plan.capacity,
                                       bound.data());
  }
  for (std::int64_t first = 0; first < p.num_queries; first += plan.group) {
    const std::int64_t queries = std::min(plan.group, p.num_queries - first);
    std::atomic<std::int64_t> next{0};
    parallel(plan.threads, plan.threads, [&](std::int64_t worker) {
      auto& mine = work[static_cast<std::size_t>(worker)];
      mine->begin(p, plan.table, first, queries);
      for (;;) {
        const std::int64_t from = next.fetch_add(1, std::memory_order_relaxed) * piece;
        if (from >= rows) return;
        plan.table.topk->scan(p, mine->state(), from, std::min(from + piece, rows));
      }
    });
    const auto merge = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t q = begin; q < end; ++q) {
        std::int64_t total = 0;
        for (const auto& each : work) total += each->state().count[q];
        const std::int64_t room = round_up(total, kTopkPad);
        Scratch<float> scores(room);
        Scratch<std::int32_t> ids(room);
        std::int64_t at = 0;
        for (const auto& each : work) {
          const TopkState& s = each->state();
          std::copy_n(s.scores + q * s.capacity, s.count[q], scores.data() + at);
          std::copy_n(s.ids + q * s.capacity, s.count[q], ids.data() + at);
          at += s.count[q];
        }
        plan.finish(scores.data(), ids.data(), total, first + q);
      }
    };
    const double cost = 60.0 * static_cast<double>(queries * std::min(p.k, rows));
    const int shares = threads_worth(cost, plan.threads);
    parallel(shares, shares, [&](std::int64_t share) {
      merge(queries * share / shares, queries * (share + 1) / shares);
    });
  }
}

}  // namespace

void score_topk(const TopkProblem& problem, int threads, const KernelTable& table,
                float* out_scores, std::int64_t* out_ids) {
  if (problem.num_queries == 0) return;
  const ReadyTopk ready(problem, false, threads);
  const TopkProblem& p = ready.problem();
  const std::int64_t rows = scanned_rows(p);
  // Twice k, so that a list is cut down once in k candidates; never more than there are items.
  const std::int64_t limit = std::max(2 * std::min(p.k, rows), std::int64_t{64});
  const std::int64_t capacity = round_up(std::max(limit, std::min(kTopkFirst, rows)), kTopkPad);

  // On one thread: about 30 multiply-adds a nanosecond, or 12 bytes of items.
  const double flops =
      static_cast<double>(p.num_queries) * static_cast<double>(rows) * static_cast<double>(p.dim);
  const double width = p.items.floats != nullptr ? 4.0 : p.items.halves != nullptr ? 2.0 : 1.0;
  const double bytes = width * static_cast<double>(rows) * static_cast<double>(p.dim);
  const int worth = threads_worth(std::max(flops / 30.0, bytes / 12.0), threads);

  Plan plan{p, table, worth, limit, capacity, 1, out_scores, out_ids};
  const bool own = worth == 1 || p.num_queries >= kOwnQueries * worth;
  const std::int64_t lists = own ? 1 : worth;  // of each query, in the split of items
  const std::int64_t fit = std::max<std::int64_t>(1, kScratchBytes / (lists * capacity * 8));
  if (own) {
    const std::int64_t share = (p.num_queries + worth - 1) / worth;
    const std::int64_t rounds = (share + kGroupQueries - 1) / kGroupQueries;
    const std::int64_t even = round_up((share + rounds - 1) / rounds, table.lanes);
    plan.group = std::min({even, std::max<std::int64_t>(1, fit / worth), p.num_queries});
    split_queries(plan);
  } else {
    plan.group = std::min({kGroupQueries * worth, fit, p.num_queries});
    split_items(plan);
  }
}

}  // namespace seqrec
