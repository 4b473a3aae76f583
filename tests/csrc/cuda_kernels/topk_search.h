// SPDX-License-Identifier: Apache-2.0
// A search for the best items against a sort of all scores; each buffer is as long as it must be,
// so that the address sanitizer sees a step beyond.
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "../check.h"
#include "cuda/topk.h"

namespace topk_test {

using namespace seqrec::cuda;

/// What runs, and what is too short: faults.
struct Search {
  void (*seen)(const TopkSeen&, cudaStream_t) = &launch_topk_seen;
  void (*scan)(const TopkSearch&, TopkType, cudaStream_t) = &launch_topk_scan;
  void (*merge)(const TopkSearch&, TopkType, cudaStream_t) = &launch_topk_merge;
  std::size_t lists_lacking = 0, scores_lacking = 0, sorted_lacking = 0, items_lacking = 0;
};

/// Small whole numbers, whose sums every type holds exactly.
template <typename T>
std::vector<T> numbers(std::size_t count, std::mt19937& random) {
  std::vector<T> found;
  for (std::size_t i = 0; i < count; ++i) {
    found.push_back(from_float<T>(static_cast<float>(random() % 5) - 2.0f));
  }
  return found;
}

template <typename T>
void search(TopkType type, std::int64_t queries, std::int64_t items, std::int64_t dim,
            std::int64_t k, unsigned seed, const Search& how = {}) {
  std::mt19937 random(seed);
  const auto q = numbers<T>(queries * dim, random), v = numbers<T>(items * dim, random),
             bias = numbers<T>(items, random);
  const std::vector<T> table(v.begin(), v.end() - how.items_lacking);
  std::vector<std::uint8_t> blocked(items);
  for (auto& b : blocked) b = random() % 7 == 0;
  std::vector<std::int64_t> offsets{0}, seen;
  for (std::int64_t row = 0; row < queries; ++row) {
    for (unsigned n = random() % 40; n > 0; --n) seen.push_back(random() % items);
    offsets.push_back(static_cast<std::int64_t>(seen.size()));
  }
  std::vector<std::int32_t> sorted(seen.size() - how.sorted_lacking);
  how.seen({seen.data(), offsets.data(), sorted.data(), queries,
            static_cast<std::int64_t>(seen.size()), items, true},
           nullptr);

  const TopkPlan plan = plan_topk(queries, items, dim, sizeof(T), k, 4, 167936);
  CHECK(plan.fits);
  std::vector<std::uint64_t> lists(queries * plan.splits * plan.capacity - how.lists_lacking);
  std::vector<T> scores(queries * k - how.scores_lacking);
  std::vector<std::int64_t> ids(queries * k);
  TopkSearch p{};
  p.queries = q.data();
  p.items = table.data();
  p.bias = bias.data();
  p.blocked = blocked.data();
  p.seen = sorted.data();
  p.seen_offsets = offsets.data();
  p.seen_tokens = static_cast<std::int64_t>(seen.size());
  p.query_stride = p.item_stride = dim;
  p.num_queries = queries;
  p.num_items = items;
  p.dim = dim;
  p.k = k;
  p.lists = lists.data();
  p.scores = scores.data();
  p.ids = ids.data();
  p.vectors = dim * sizeof(T) % 16 == 0;
  p.block_queries = plan.block_queries;
  p.query_row = plan.query_row;
  p.capacity = plan.capacity;
  p.splits = plan.splits;
  p.items_per_split = plan.items_per_split;
  how.scan(p, type, nullptr);
  how.merge(p, type, nullptr);

  for (std::int64_t row = 0; row < queries; ++row) {
    std::vector<std::pair<float, std::int64_t>> best;
    const auto from = seen.begin() + offsets[row], to = seen.begin() + offsets[row + 1];
    for (std::int64_t i = 0; i < items; ++i) {
      float score = to_float(bias[i]);
      for (std::int64_t c = 0; c < dim; ++c) {
        score += to_float(q[row * dim + c]) * to_float(v[i * dim + c]);
      }
      if (blocked[i] == 0 && std::find(from, to, i) == to) best.emplace_back(-score, i);
    }
    std::sort(best.begin(), best.end());
    for (std::int64_t i = 0; i < k; ++i) {
      const bool exists = i < static_cast<std::int64_t>(best.size());
      CHECK(ids[row * k + i] == (exists ? best[i].second : -1));
      if (exists) CHECK(to_float(scores[row * k + i]) == -best[i].first);
    }
  }
}

}  // namespace topk_test
