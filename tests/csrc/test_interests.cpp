// SPDX-License-Identifier: Apache-2.0
// Several interests of a user on every instruction set against a plain computation in double; their
// merged rankings against a sort of all items.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "engine/interests.h"
#include "tables.h"

namespace {

std::vector<float> numbers(std::int64_t count, unsigned seed, float scale) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> made(static_cast<std::size_t>(count));
  for (float& x : made) x = normal(random);
  return made;
}

void check_head(std::int64_t dim, std::int64_t interests, std::int64_t window, int threads) {
  const std::int64_t items = 300, width = 4 * interests, rows = 70;
  const std::vector<float> table = numbers(items * dim, 1, 0.5f);
  const std::vector<float> w1 = numbers(width * dim, 2, 0.3f), b1 = numbers(width, 3, 0.3f);
  const std::vector<float> w2 = numbers((interests - 1) * width, 4, 0.5f);
  const std::vector<float> gain = numbers((interests - 1) * dim, 5, 0.5f);
  const std::vector<float> hidden = numbers(rows * dim, 6, 1.0f);
  seqrec::Tensors tensors;
  const auto set = [&](const char* name, const std::vector<float>& data) {
    tensors.set(name, seqrec::ItemRows(data.data()), static_cast<std::int64_t>(data.size()));
  };
  set("item_embedding.weight", table);
  set("interest_head.hidden.weight", w1);
  set("interest_head.hidden.bias", b1);
  set("interest_head.scores.weight", w2);
  set("interest_head.gain", gain);
  std::mt19937 random(7);
  std::vector<std::int32_t> values;
  std::vector<std::int64_t> offsets{0};
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t length = 1 + static_cast<std::int64_t>(random() % 90);
    for (std::int64_t i = 0; i < length; ++i) {
      values.push_back(static_cast<std::int32_t>(random() % items));
    }
    offsets.push_back(offsets.back() + length);
  }
  const auto at = [&](const std::vector<float>& from, std::int64_t i) {
    return double{from[static_cast<std::size_t>(i)]};
  };
  for (const seqrec::KernelTable* kernels : all_tables()) {
    const seqrec::InterestHead head({items, dim, interests, window, false}, tensors, *kernels);
    std::vector<float> out(static_cast<std::size_t>(rows * interests * dim),
                           std::numeric_limits<float>::quiet_NaN());
    head.apply({values.data(), offsets.data(), rows}, hidden.data(), out.data(), threads);
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t end = offsets[static_cast<std::size_t>(row + 1)];
      std::int64_t begin = offsets[static_cast<std::size_t>(row)];
      if (window > 0) begin = std::max(begin, end - window);
      for (std::int64_t k = 0; k < interests; ++k) {
        std::vector<double> pooled(static_cast<std::size_t>(dim));
        double mass = 0;
        for (std::int64_t s = begin; k > 0 && s < end; ++s) {
          const std::int64_t item = values[static_cast<std::size_t>(s)];
          double logit = 0;
          for (std::int64_t j = 0; j < width; ++j) {
            double inner = at(b1, j);
            for (std::int64_t d = 0; d < dim; ++d) {
              inner += at(w1, j * dim + d) * at(table, item * dim + d);
            }
            logit += at(w2, (k - 1) * width + j) * std::tanh(inner);
          }
          const double weight = std::exp(std::fmin(std::fmax(logit, -20.0), 20.0));
          mass += weight;
          for (std::int64_t d = 0; d < dim; ++d) {
            pooled[static_cast<std::size_t>(d)] += weight * at(table, item * dim + d);
          }
        }
        for (std::int64_t e = 0; e < dim; ++e) {
          double want = at(hidden, row * dim + e);
          if (k > 0) {
            want += at(gain, (k - 1) * dim + e) * pooled[static_cast<std::size_t>(e)] / mass;
          }
          const double found = at(out, (row * interests + k) * dim + e);
          CHECK(std::fabs(found - want) <= 1e-5, "%s %ld %ld %ld: %g, not %g", kernels->name, row,
                k, e, found, want);
        }
      }
    }
  }
}

}  // namespace

TEST(interests_head_is_a_plain_loop) {
  check_head(1, 2, 0, 1);
  check_head(17, 3, 20, 1);
}

TEST(interests_threads_change_nothing) { check_head(16, 2, 0, 3); }

TEST(interests_merge_is_a_sort_of_all_items) {
  const std::int64_t users = 40, interests = 3, items = 23;
  std::mt19937 random(1);
  for (const std::int64_t k : {std::int64_t{1}, std::int64_t{7}, items + 2}) {
    std::vector<float> each, scores(static_cast<std::size_t>(users * k));
    std::vector<std::int64_t> ids, found(scores.size());
    std::vector<std::vector<float>> best;
    for (std::int64_t user = 0; user < users; ++user) {
      best.emplace_back(static_cast<std::size_t>(items), -1e30f);
      for (std::int64_t interest = 0; interest < interests; ++interest) {
        std::vector<std::pair<float, std::int64_t>> list;
        for (std::int64_t item = 0; item < items; ++item) {
          if (random() % 5 == 0) continue;  // left out of this list
          const float score = static_cast<float>(random() % 6);
          list.emplace_back(-score, item);
        }
        std::sort(list.begin(), list.end());
        for (std::int64_t i = 0; i < k; ++i) {
          const auto place = static_cast<std::size_t>(i);
          const bool there = place < list.size();
          each.push_back(there ? -list[place].first : -std::numeric_limits<float>::infinity());
          ids.push_back(there ? list[place].second : -1);
          if (!there) continue;
          float& known = best.back()[static_cast<std::size_t>(list[place].second)];
          known = std::fmax(known, -list[place].first);
        }
      }
    }
    seqrec::merge_interests(each.data(), ids.data(), users, interests, k, 2, scores.data(),
                            found.data());
    for (std::int64_t user = 0; user < users; ++user) {
      std::vector<std::pair<float, std::int64_t>> order;
      for (std::int64_t item = 0; item < items; ++item) {
        const float score = best[static_cast<std::size_t>(user)][static_cast<std::size_t>(item)];
        if (score > -1e30f) order.emplace_back(-score, item);
      }
      std::sort(order.begin(), order.end());
      for (std::int64_t i = 0; i < k; ++i) {
        const auto at = static_cast<std::size_t>(user * k + i);
        const bool there = static_cast<std::size_t>(i) < order.size();
        const std::int64_t want = there ? order[static_cast<std::size_t>(i)].second : -1;
        CHECK(found[at] == want, "%ld %ld: %ld, not %ld", user, i, found[at], want);
        CHECK(there ? scores[at] == -order[static_cast<std::size_t>(i)].first
                    : std::isinf(scores[at]),
              "%ld %ld: score %g", user, i, double{scores[at]});
      }
    }
  }
}
