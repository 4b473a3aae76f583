// SPDX-License-Identifier: Apache-2.0
#include "ops/topk_filter.h"

#include <algorithm>

#include "base/thread_pool.h"
#include "ops/topk.h"

namespace seqrec {
namespace {

// Nanoseconds for 64 dimensions on one thread of a current server: to bring a row from anywhere in
// memory; to bring one that is next to the one before; and to multiply a row with one query of
// many.
constexpr double kFetchRow = 45.0, kNextRow = 8.0, kScoreRow = 1.2;
constexpr double kNextBytes = 1.5, kScoreBytes = 0.6;

/// Where a list of no items lies.
constexpr std::int32_t kNothing[1] = {0};

/// The seen lists in ascending order: empty where they are so already, else a sorted copy. An id
/// that stands twice in a list does so there, or its largest one does.
std::vector<std::int32_t> sorted_seen(const JaggedView<std::int32_t>& seen, std::int64_t num_items,
                                      int threads) {
  if (seen.values == nullptr) return {};
  const auto row_sorted = [&](std::int64_t row) {
    return std::is_sorted(seen.values + seen.offsets[row], seen.values + seen.offsets[row + 1]);
  };
  bool sorted = true;
  for (std::int64_t row = 0; row < seen.rows && sorted; ++row) sorted = row_sorted(row);
  if (sorted) return {};
  std::vector<std::int32_t> copy(seen.values, seen.values + seen.offsets[seen.rows]);
  const int worth = threads_worth(10.0 * static_cast<double>(copy.size()), threads);
  parallel(seen.rows, worth, [&](std::int64_t row) {
    if (row_sorted(row)) return;
    std::int32_t* ids = copy.data() + seen.offsets[row];
    const std::int64_t count = seen.offsets[row + 1] - seen.offsets[row];
    const std::int64_t fresh = sort_ids(ids, count, num_items);
    for (std::int64_t i = fresh; i < count; ++i) ids[i] = ids[fresh - 1];
  });
  return copy;
}

}  // namespace

bool worth_listing(const TopkProblem& p, std::int64_t open, bool bytes) {
  const auto queries = static_cast<double>(p.num_queries);
  const double one = kFetchRow + kScoreRow * queries;
  const double all = bytes ? kNextBytes + kScoreBytes * queries : kNextRow + kScoreRow * queries;
  return static_cast<double>(open) * one < static_cast<double>(p.num_items) * all;
}

OpenRows::OpenRows(TopkProblem& p, bool bytes)
    : bits_(p.blocked && !p.open && !p.listed ? words_of(p.num_items) : 0), ids_(places(p, bytes)) {
  if (p.listed != nullptr || ids_.size() == 0) return;
  list_bits(p.open, words_of(p.num_items), ids_.data());
  p.listed = ids_.data();
  p.open = nullptr;
}

/// Room for a list, or 0 where there will be none.
std::int64_t OpenRows::places(TopkProblem& p, bool bytes) {
  if (p.listed != nullptr) return 0;
  if (p.open == nullptr) {
    if (p.blocked == nullptr) return 0;
    pack_flags(p.blocked, p.num_items, false, bits_.data());
    p.open = bits_.data();
  }
  const std::int64_t open = count_bits(p.open, words_of(p.num_items));
  if (open == p.num_items) {
    p.open = nullptr;
    return 0;
  }
  if (open == 0) {
    p.listed = kNothing;
    p.num_listed = 0;
    p.open = nullptr;
    return 0;
  }
  if (!worth_listing(p, open, bytes)) return 0;
  p.num_listed = open;
  return open;
}

ReadyTopk::ReadyTopk(const TopkProblem& given, bool bytes, int threads)
    : problem_(given),
      seen_(sorted_seen(given.seen, given.num_items, threads)),
      open_(problem_, bytes) {
  if (!seen_.empty()) problem_.seen.values = seen_.data();
}

void score_topk_allowed(const TopkProblem& problem, const Int8Items* bytes,
                        const JaggedView<std::int32_t>& allowed, int threads,
                        const KernelTable& table, float* out_scores, std::int64_t* out_ids) {
  const std::int64_t items = problem.num_items, words = words_of(items);
  Scratch<std::uint64_t> common(problem.blocked && !problem.open ? words : 0);
  const std::uint64_t* open = problem.open;
  if (common.size() > 0) {
    pack_flags(problem.blocked, items, false, common.data());
    open = common.data();
  }
  const auto one = [&](std::int64_t query, int each) {
    const std::int32_t* given = allowed.values + allowed.offsets[query];
    const std::int64_t count = allowed.offsets[query + 1] - allowed.offsets[query];
    Scratch<std::int32_t> ids(count);
    std::copy_n(given, count, ids.data());
    std::int64_t left = std::is_sorted(given, given + count)
                            ? std::unique(ids.data(), ids.data() + count) - ids.data()
                            : sort_ids(ids.data(), count, items);
    if (open != nullptr) {
      left = std::remove_if(ids.data(), ids.data() + left,
                            [&](std::int32_t id) { return !(open[id / 64] >> (id % 64) & 1); }) -
             ids.data();
    }
    TopkProblem p = problem;
    p.queries += query * p.dim;
    p.num_queries = 1;
    p.blocked = nullptr;
    p.open = nullptr;
    if (p.seen.values != nullptr) p.seen = {p.seen.values, p.seen.offsets + query, 1};
    float* scores = out_scores + query * p.k;
    std::int64_t* found = out_ids + query * p.k;
    if (worth_listing(p, left, bytes != nullptr)) {
      p.listed = left > 0 ? ids.data() : kNothing;
      p.num_listed = left;
      return score_topk(p, each, table, scores, found);
    }
    Scratch<std::uint64_t> marks(words);
    std::fill_n(marks.data(), words, 0);
    for (std::int64_t i = 0; i < left; ++i) {
      marks[ids[i] / 64] |= std::uint64_t{1} << (ids[i] % 64);
    }
    p.open = marks.data();
    if (bytes != nullptr) return score_topk_int8(p, *bytes, each, table, scores, found);
    score_topk(p, each, table, scores, found);
  };
  const std::int64_t queries = problem.num_queries;
  if (queries < threads) {
    for (std::int64_t query = 0; query < queries; ++query) one(query, threads);
    return;
  }
  const double cost = 30.0 * static_cast<double>(allowed.offsets[queries] - allowed.offsets[0]);
  parallel(queries, threads_worth(cost, threads), [&](std::int64_t query) { one(query, 1); });
}

}  // namespace seqrec
