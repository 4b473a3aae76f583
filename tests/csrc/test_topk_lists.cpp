// SPDX-License-Identifier: Apache-2.0
// The search through lists of every instruction set beside the exact search of the same set: where
// all lists are visited, both find the same, bit for bit; where few are, what comes back has its
// exact score, and as many items come back as there are.
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "ops/topk.h"
#include "ops/topk_lists.h"
#include "tables.h"

namespace {

using seqrec::KernelTable;
using seqrec::ListProbe;
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Case {
  std::int64_t queries, items, dim, k, lists;
  bool whole = false, blocked = false, seen = false, tail = false;
  int threads = 1;
};

std::size_t size_of(std::int64_t n) { return static_cast<std::size_t>(n); }

/// Items in lists drawn at random around random centres, some perhaps in no list.
class World {
 public:
  World(const Case& c, unsigned seed) : c_(c) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto number = [&] {
      return c.whole ? static_cast<float>(static_cast<int>(random() % 7) - 3) : normal(random);
    };
    const auto fill = [&](std::vector<float>& v, std::int64_t n) {
      v.resize(size_of(n));
      for (float& x : v) x = number();
    };
    fill(queries_, c.queries * c.dim);
    fill(items_, c.items * c.dim);
    fill(centres_, c.lists * c.dim);
    spread_.assign(size_of(c.lists), 1.0f);
    covariance_.assign(size_of(c.dim * c.dim), 0.0f);
    for (std::int64_t d = 0; d < c.dim; ++d) covariance_[size_of(d * c.dim + d)] = 1.0f;
    std::vector<std::vector<std::int32_t>> members(size_of(c.lists));
    for (std::int64_t i = 0; i < c.items; ++i) {
      auto& to = c.tail && i % 11 == 5 ? tail_names_ : members[random() % members.size()];
      to.push_back(static_cast<std::int32_t>(i));
    }
    starts_.push_back(0);
    for (auto& list : members) {
      pad(list);
      names_.insert(names_.end(), list.begin(), list.end());
      starts_.push_back(static_cast<std::int64_t>(names_.size()) / seqrec::kInt8Rows);
    }
    pad(tail_names_);
    blocked_.assign(c.blocked ? size_of(c.items) : 0, 0);
    for (auto& x : blocked_) x = random() % 3 == 0;
    offsets_.push_back(0);
    for (std::int64_t q = 0; q < c.queries; ++q) {
      for (int i = 0; c.seen && c.items > 0 && i < 40; ++i) {
        seen_.push_back(static_cast<std::int32_t>(random() % size_of(c.items)));
      }
      offsets_.push_back(static_cast<std::int64_t>(seen_.size()));
    }
    using Table = seqrec::Int8Table;
    table_ = std::make_unique<Table>(items_.data(), names_.data(),
                                     static_cast<std::int64_t>(names_.size()), c.dim, 1);
    tail_ = std::make_unique<Table>(items_.data(), tail_names_.data(),
                                    static_cast<std::int64_t>(tail_names_.size()), c.dim, 1);
    const float* no_bias = nullptr;
    centre_table_ = std::make_unique<Table>(centres_.data(), no_bias, c.lists, c.dim, 1);
  }

  seqrec::TopkProblem problem() const {
    return {queries_.data(),
            items_.data(),
            nullptr,
            blocked_.empty() ? nullptr : blocked_.data(),
            {seen_.empty() ? nullptr : seen_.data(), offsets_.data(), c_.queries},
            c_.queries,
            c_.items,
            c_.dim,
            c_.k};
  }

  seqrec::ListedItems listed() const {
    return {table_.get(),
            names_.data(),
            starts_.data(),
            centre_table_.get(),
            spread_.data(),
            c_.items % 2 ? covariance_.data() : nullptr,
            c_.tail ? tail_.get() : nullptr,
            c_.tail ? tail_names_.data() : nullptr,
            c_.lists};
  }

 private:
  static void pad(std::vector<std::int32_t>& names) {
    while (names.size() % seqrec::kInt8Rows) names.push_back(-1);
  }

  Case c_;
  std::vector<float> queries_, items_, centres_, spread_, covariance_;
  std::vector<std::int32_t> names_, tail_names_, seen_;
  std::vector<std::int64_t> starts_, offsets_;
  std::vector<std::uint8_t> blocked_;
  std::unique_ptr<seqrec::Int8Table> table_, tail_, centre_table_;
};

struct Result {
  std::vector<float> scores;
  std::vector<std::int64_t> ids;
  explicit Result(const Case& c)
      : scores(size_of(c.queries * c.k), std::nanf("")), ids(size_of(c.queries * c.k), -77) {}
};

Result exact(const Case& c, const World& w, const KernelTable& table) {
  Result r(c);
  seqrec::score_topk(w.problem(), 1, table, r.scores.data(), r.ids.data());
  return r;
}

Result through_lists(const Case& c, const World& w, const KernelTable& table,
                     const ListProbe& probe) {
  Result r(c);
  seqrec::score_topk_lists(w.problem(), w.listed(), probe, c.threads, table, r.scores.data(),
                           r.ids.data());
  return r;
}

}  // namespace

TEST(topk_lists_all_of_them_are_the_exact_search) {
  unsigned seed = 0;
  for (std::int64_t dim : {1, 7, 64, 100}) {
    for (std::int64_t items : {0, 1, 40, 1500, 6001}) {
      for (std::int64_t k : {1, 100, 1700}) {
        Case c{1 + static_cast<std::int64_t>(seed % 3) * 4, items, dim, k, 1 + (seed * 5) % 23};
        c.whole = seed % 3 == 1;
        c.blocked = seed % 4 > 1;
        c.seen = seed % 5 > 2;
        c.tail = seed % 2;
        const World w(c, ++seed);
        for (const KernelTable* table : all_tables()) {
          const Result expected = exact(c, w, *table);
          const Result r = through_lists(c, w, *table, {c.lists, kInf});
          CHECK(r.ids == expected.ids && r.scores == expected.scores,
                "%s, %ld queries, %ld items, dim %ld, k %ld, %ld lists", table->name, c.queries,
                items, dim, k, c.lists);
        }
      }
    }
  }
}

TEST(topk_lists_give_k_items_with_their_scores) {
  unsigned seed = 100;
  for (std::int64_t queries : {1, 9}) {
    for (const ListProbe probe : {ListProbe{1, kInf}, ListProbe{3, 1.0f}, ListProbe{99, 0.0f}}) {
      Case c{queries, 3000, 24, 50, 40};
      c.blocked = c.seen = c.tail = true;
      for (std::int64_t k : {50, 2500}) {
        c.k = k;
        const World w(c, ++seed);
        Case all = c;
        all.k = c.items;
        const World whole(all, seed);  // the same items and queries
        for (const KernelTable* table : all_tables()) {
          const Result expected = exact(all, whole, *table), r = through_lists(c, w, *table, probe);
          for (std::int64_t q = 0; q < queries; ++q) {
            std::int64_t place = 0;  // what was found is a part of the ranking, in its order
            for (std::int64_t i = 0; i < c.k; ++i) {
              const auto at = size_of(q * c.k + i);
              if (r.ids[at] < 0) {
                CHECK(expected.ids[size_of(q * all.k + i)] < 0, "place %ld is empty", i);
                continue;
              }
              while (place < all.k && expected.ids[size_of(q * all.k + place)] != r.ids[at])
                ++place;
              CHECK(place < all.k, "item %ld is out of order", r.ids[at]);
              CHECK(r.scores[at] == expected.scores[size_of(q * all.k + place)]);
            }
          }
        }
      }
    }
  }
}

TEST(topk_lists_threads_share_the_queries) {
  for (std::int64_t queries : {1, 20, 150}) {
    Case c{queries, 5000, 16, 30, 60};
    c.seen = true;
    const World w(c, 200);
    const KernelTable& table = *all_tables().back();
    const Result expected = through_lists(c, w, table, {60, kInf});
    for (int threads : {2, 5}) {
      c.threads = threads;
      const Result r = through_lists(c, w, table, {60, kInf});
      CHECK(r.ids == expected.ids && r.scores == expected.scores, "%d threads", threads);
    }
  }
}

TEST(topk_lists_serve_queries_beyond_the_bounds) {
  Case c{5, 300, 8, 20, 6};
  World w(c, 300);
  for (const KernelTable* table : all_tables()) {
    seqrec::TopkProblem p = w.problem();
    std::vector<float> queries(p.queries, p.queries + 40);
    for (int d = 8; d < 16; ++d) queries[size_of(d)] *= 1e25f;
    queries[32] = std::nanf("");
    p.queries = queries.data();
    Result expected(c), r(c);
    seqrec::score_topk(p, 1, *table, expected.scores.data(), expected.ids.data());
    seqrec::score_topk_lists(p, w.listed(), {6, kInf}, 1, *table, r.scores.data(), r.ids.data());
    CHECK(r.ids == expected.ids && r.scores == expected.scores, "%s", table->name);
  }
}
