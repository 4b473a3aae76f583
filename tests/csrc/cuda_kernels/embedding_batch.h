// SPDX-License-Identifier: Apache-2.0
// The embedding kernels on memory of exactly their sizes.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "../check.h"
#include "cuda/embedding.h"

namespace embedding_test {

using namespace seqrec::cuda;

/// What runs, and faults: what is too short, offsets that are not the true ones.
struct Embedding {
  void (*gather)(const EmbeddingGather&, Number, cudaStream_t) = &launch_embedding_gather;
  void (*scatter)(const EmbeddingScatter&, Number, cudaStream_t) = &launch_embedding_scatter;
  std::size_t out_lacking = 0, d_table_lacking = 0, scratch_lacking = 0, d_places_lacking = 0;
  std::vector<std::int64_t> lies;  // of five rows; nothing is compared
};

/// A batch with an empty row, sums compared with those of whole numbers, which are exact.
template <typename T>
void check_embedding(Number number, std::int64_t dim, bool ordered, const Embedding& how = {}) {
  const std::vector<std::int64_t> lengths = {3, 0, 1, 40, 27};
  constexpr std::int64_t kItems = 5, kPositions = 40;
  std::vector<std::int64_t> offsets = {0};
  for (const std::int64_t n : lengths) offsets.push_back(offsets.back() + n);
  const std::int64_t tokens = offsets.back(), rows = static_cast<std::int64_t>(lengths.size());
  const auto size = [&](std::int64_t n) { return static_cast<std::size_t>(n * dim); };
  std::vector<std::int64_t> ids, order(static_cast<std::size_t>(tokens));
  for (std::int64_t t = 0; t < tokens; ++t) ids.push_back(t < 60 ? 2 : t % kItems);
  std::iota(order.begin(), order.end(), 0);
  const auto id_of = [&](std::int64_t t) { return ids[static_cast<std::size_t>(t)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return id_of(a) < id_of(b); });
  std::vector<std::int64_t> sorted;
  for (const std::int64_t t : order) sorted.push_back(id_of(t));
  const auto numbers = [&](std::int64_t count, int salt) {
    std::vector<T> made;
    for (std::size_t i = 0; i < size(count); ++i) {
      made.push_back(from_float<T>(static_cast<float>((static_cast<int>(i) * 7 + salt) % 4)));
    }
    return made;
  };
  const std::vector<T> table = numbers(kItems, 1), places = numbers(kPositions, 2),
                       gradient = numbers(tokens, 3);
  std::vector<T> out(size(tokens) - how.out_lacking), d_table(size(kItems) - how.d_table_lacking),
      d_places(size(kPositions) - how.d_places_lacking);
  const EmbeddingTokens batch = {ids.data(), how.lies.empty() ? offsets.data() : how.lies.data(),
                                 tokens,     kItems,
                                 rows,       kPositions,
                                 dim,        {nullptr, 0, 1.0f}};
  const EmbeddingPlan plan =
      plan_embedding(tokens, dim, rows, kPositions, static_cast<int>(sizeof(T)), false, ordered);
  std::vector<float> scratch(static_cast<std::size_t>(plan.scratch) - how.scratch_lacking);
  how.gather({batch, plan, table.data(), places.data(), out.data()}, number, nullptr);
  const EmbeddingScatter scatter = {batch,
                                    plan,
                                    gradient.data(),
                                    ordered ? sorted.data() : nullptr,
                                    ordered ? order.data() : nullptr,
                                    d_table.data(),
                                    d_places.data(),
                                    scratch.data()};
  how.scatter(scatter, number, nullptr);
  launch_embedding_positions(scatter, number, nullptr);
  if (!how.lies.empty()) return;

  std::vector<float> sums(size(kItems)), place_sums(size(kPositions));
  for (std::size_t row = 0; row < lengths.size(); ++row) {
    for (std::int64_t t = offsets[row]; t < offsets[row + 1]; ++t) {
      for (std::int64_t c = 0; c < dim; ++c) {
        const auto at = [&](std::int64_t r) { return static_cast<std::size_t>(r * dim + c); };
        const std::int64_t place = t - offsets[row];
        CHECK(to_float(out[at(t)]) == to_float(table[at(id_of(t))]) + to_float(places[at(place)]));
        sums[at(id_of(t))] += to_float(gradient[at(t)]);
        place_sums[at(place)] += to_float(gradient[at(t)]);
      }
    }
  }
  for (std::size_t i = 0; i < sums.size(); ++i) CHECK(to_float(d_table[i]) == sums[i]);
  for (std::size_t i = 0; i < place_sums.size(); ++i) CHECK(to_float(d_places[i]) == place_sums[i]);
}

}  // namespace embedding_test
