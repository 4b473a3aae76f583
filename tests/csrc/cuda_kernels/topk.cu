// SPDX-License-Identifier: Apache-2.0
// The search for the best items against a sort of all scores; each buffer is as long as it must be,
// so that the address sanitizer sees a step beyond.
#include <algorithm>
#include <random>
#include <vector>

#include "../check.h"
#include "cuda/topk.h"

using namespace seqrec::cuda;

namespace {

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
            std::int64_t k, unsigned seed) {
  std::mt19937 random(seed);
  const auto q = numbers<T>(queries * dim, random), v = numbers<T>(items * dim, random),
             bias = numbers<T>(items, random);
  std::vector<std::uint8_t> blocked(items);
  for (auto& b : blocked) b = random() % 7 == 0;
  std::vector<std::int64_t> offsets{0}, seen;
  for (std::int64_t row = 0; row < queries; ++row) {
    for (unsigned n = random() % 40; n > 0; --n) seen.push_back(random() % items);
    offsets.push_back(static_cast<std::int64_t>(seen.size()));
  }
  std::vector<std::int32_t> sorted(seen.size());
  launch_topk_seen({seen.data(), offsets.data(), sorted.data(), queries,
                    static_cast<std::int64_t>(seen.size()), items, true},
                   nullptr);

  const TopkPlan plan = plan_topk(queries, items, dim, sizeof(T), k, 4, 167936);
  CHECK(plan.fits);
  std::vector<std::uint64_t> lists(queries * plan.splits * plan.capacity);
  std::vector<T> scores(queries * k);
  std::vector<std::int64_t> ids(queries * k);
  TopkSearch p{};
  p.queries = q.data();
  p.items = v.data();
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
  launch_topk_scan(p, type, nullptr);
  launch_topk_merge(p, type, nullptr);

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

}  // namespace

#ifndef SEQREC_SHIM_THREADS  // which would take minutes

TEST(topk_all_types) {
  search<float>(TopkType::kFloat, 3, 300, 20, 7, 1);
  search<float>(TopkType::kTf32, 17, 140, 16, 90, 2);
  search<Half>(TopkType::kHalf, 65, 129, 32, 5, 3);
  search<BFloat16>(TopkType::kBFloat16, 2, 700, 9, 30, 4);
}

TEST(topk_lists_of_a_block) { search<float>(TopkType::kFloat, 2, 1500, 4, 400, 5); }

TEST(topk_ranges_of_items) { search<BFloat16>(TopkType::kBFloat16, 1, 2100, 8, 12, 6); }

#endif

/// As few items as fill a list and have it cut.
TEST(topk_small) {
  search<Half>(TopkType::kHalf, 5, 300, 40, 3, 7);
  search<float>(TopkType::kFloat, 2, 700, 4, 300, 8);
}
