// SPDX-License-Identifier: Apache-2.0
// The top-k operation of every instruction set, and of the widest one's logic, against a plain
// computation in double. Buffers end where the data ends, so that the address sanitizer sees every
// read beyond them; outputs start as NaN.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "ops/topk.h"
#include "ops/topk_int8.h"
#include "tables.h"

namespace {

using seqrec::KernelTable;
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Case {
  std::int64_t queries, items, dim, k;
  bool bias = false, blocked = false, seen = false;
  bool whole = true;  // small whole numbers: exact in float32, many ties
  int threads = 1;
};

struct Data {
  std::vector<float> queries, items, bias;
  std::vector<std::uint8_t> blocked;
  std::vector<std::int32_t> seen;
  std::vector<std::int64_t> offsets;
};

Data make(const Case& c, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> whole(-3, 3);
  const auto number = [&] { return c.whole ? static_cast<float>(whole(random)) : normal(random); };
  Data d;
  d.queries.resize(static_cast<std::size_t>(c.queries * c.dim));
  d.items.resize(static_cast<std::size_t>(c.items * c.dim));
  for (float& x : d.queries) x = number();
  for (float& x : d.items) x = number();
  if (c.bias) {
    d.bias.resize(static_cast<std::size_t>(c.items));
    for (float& x : d.bias) x = number();
  }
  if (c.blocked) {
    d.blocked.resize(static_cast<std::size_t>(c.items));
    for (auto& x : d.blocked) x = random() % 3 == 0;
  }
  d.offsets.push_back(0);
  for (std::int64_t q = 0; c.seen && q < c.queries; ++q) {
    const std::int64_t count = c.items > 0 ? static_cast<std::int64_t>(random() % 60) : 0;
    for (std::int64_t i = 0; i < count; ++i) {
      d.seen.push_back(static_cast<std::int32_t>(random() % static_cast<unsigned>(c.items)));
    }
    d.offsets.push_back(static_cast<std::int64_t>(d.seen.size()));
  }
  return d;
}

template <typename T>
const T* or_null(const std::vector<T>& v) {
  return v.empty() ? nullptr : v.data();
}

struct Result {
  std::vector<float> scores;
  std::vector<std::int64_t> ids;
};

seqrec::TopkProblem problem(const Case& c, const Data& d) {
  return {d.queries.data(),
          d.items.data(),
          or_null(d.bias),
          or_null(d.blocked),
          {or_null(d.seen), d.offsets.data(), c.queries},
          c.queries,
          c.items,
          c.dim,
          c.k};
}

Result poisoned(const Case& c) {
  const auto size = static_cast<std::size_t>(c.queries * c.k);
  return {std::vector<float>(size, std::nanf("")), std::vector<std::int64_t>(size, -77)};
}

Result solve(const Case& c, const Data& d, const KernelTable& table) {
  Result r = poisoned(c);
  seqrec::score_topk(problem(c, d), c.threads, table, r.scores.data(), r.ids.data());
  return r;
}

Result solve_from_bytes(const Case& c, const Data& d, const KernelTable& table) {
  const seqrec::Int8Table bytes(d.items.data(), or_null(d.bias), c.items, c.dim, c.threads);
  Result r = poisoned(c);
  seqrec::score_topk_int8(problem(c, d), bytes.view(), c.threads, table, r.scores.data(),
                          r.ids.data());
  return r;
}

/// The best items of one query by plain computation: (-score, item), best first.
std::vector<std::pair<double, std::int64_t>> judge(const Case& c, const Data& d, std::int64_t q) {
  std::vector<char> hidden(static_cast<std::size_t>(c.items), 0);
  for (std::size_t i = 0; c.blocked && i < hidden.size(); ++i) hidden[i] = d.blocked[i] != 0;
  if (c.seen) {
    const auto row = static_cast<std::size_t>(q);
    for (std::int64_t i = d.offsets[row]; i < d.offsets[row + 1]; ++i) {
      hidden[static_cast<std::size_t>(d.seen[static_cast<std::size_t>(i)])] = 1;
    }
  }
  std::vector<std::pair<double, std::int64_t>> ranked;
  const float* query = d.queries.data() + q * c.dim;
  for (std::int64_t i = 0; i < c.items; ++i) {
    if (hidden[static_cast<std::size_t>(i)]) continue;
    const float* item = d.items.data() + i * c.dim;
    double score = c.bias ? d.bias[static_cast<std::size_t>(i)] : 0.0;
    for (std::int64_t x = 0; x < c.dim; ++x) score += double{query[x]} * double{item[x]};
    ranked.emplace_back(-score, i);
  }
  const auto kept = std::min(ranked.size(), static_cast<std::size_t>(c.k));
  std::partial_sort(ranked.begin(), ranked.begin() + static_cast<std::ptrdiff_t>(kept),
                    ranked.end());
  ranked.resize(kept);
  return ranked;
}

/// Whole numbers: scores and items must be exactly those of the plain computation.
void check_exact(const Case& c, unsigned seed) {
  const Data d = make(c, seed);
  Result expected{std::vector<float>(static_cast<std::size_t>(c.queries * c.k), -kInf),
                  std::vector<std::int64_t>(static_cast<std::size_t>(c.queries * c.k), -1)};
  for (std::int64_t q = 0; q < c.queries; ++q) {
    auto at = static_cast<std::size_t>(q * c.k);
    for (const auto& [negative, item] : judge(c, d, q)) {
      expected.scores[at] = static_cast<float>(-negative);
      expected.ids[at++] = item;
    }
  }
  for (const KernelTable* table : all_tables()) {
    const Result r = solve(c, d, *table);
    for (std::size_t at = 0; at < r.ids.size(); ++at) {
      CHECK(r.ids[at] == expected.ids[at] && r.scores[at] == expected.scores[at],
            "%s, %ld queries, %ld items, dim %ld, k %ld, %d threads: place %zu is item %ld (%g), "
            "not %ld (%g)",
            table->name, c.queries, c.items, c.dim, c.k, c.threads, at, r.ids[at],
            static_cast<double>(r.scores[at]), expected.ids[at],
            static_cast<double>(expected.scores[at]));
    }
  }
}

}  // namespace

TEST(topk_around_the_edges_of_tiles) {
  unsigned seed = 0;
  for (std::int64_t queries : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 47, 49}) {
    for (std::int64_t items : {1, 3, 4, 5, 11, 12, 13, 15, 16, 17, 31, 32, 33, 95, 96, 97, 130}) {
      Case c{queries, items, 1 + static_cast<std::int64_t>(seed % 9), 1 + (seed * 7) % 20};
      c.bias = seed % 2;
      c.blocked = seed % 3 == 0;
      c.seen = seed % 5 < 2;
      check_exact(c, ++seed);
    }
  }
}

TEST(topk_over_several_chunks) {
  unsigned seed = 100;
  for (std::int64_t queries : {1, 3, 9, 20, 50}) {
    for (std::int64_t items : {479, 480, 481, 1921, 4000}) {
      for (std::int64_t k : {1, 10, 300, 700, 5000}) {
        Case c{queries, items, 1 + static_cast<std::int64_t>(seed % 5), k};
        c.bias = seed % 2;
        c.blocked = seed % 3 == 0;
        c.seen = seed % 5 < 2;
        check_exact(c, ++seed);
      }
    }
  }
}

TEST(topk_of_long_vectors) {
  unsigned seed = 200;
  for (std::int64_t dim : {15, 16, 17, 31, 33, 63, 64, 65, 257, 1030}) {
    for (std::int64_t queries : {1, 6, 20}) {
      Case c{queries, 150, dim, 20};
      c.bias = true;
      check_exact(c, ++seed);
    }
  }
}

TEST(topk_of_nothing) {
  check_exact({0, 10, 3, 4}, 1);
  check_exact({3, 0, 3, 4}, 1);
  check_exact({20, 0, 3, 4}, 1);
}

TEST(topk_threads_share_the_work) {
  unsigned seed = 300;
  for (std::int64_t queries : {1, 5, 40, 200}) {
    for (int threads : {2, 3, 7}) {
      Case c{queries, queries < 50 ? 12000 : 3000, queries < 50 ? 32 : 16, 50};
      c.bias = seed % 2;
      c.blocked = seed % 3 == 0;
      c.seen = true;
      c.threads = threads;
      check_exact(c, ++seed);
    }
  }
}

TEST(topk_is_the_same_alone_and_in_a_batch) {
  for (std::int64_t dim : {5, 37, 64, 128, 256, 300}) {
    Case c{70, 1500, dim, 40};
    c.whole = false;
    c.bias = true;
    const Data d = make(c, 5);
    for (const KernelTable* table : all_tables()) {
      const Result all = solve(c, d, *table);
      for (std::int64_t batch : {1, 2, 3, 4, 5, 8, 9, 20}) {
        Case part = c;
        part.queries = batch;
        Data some = d;
        const std::int64_t first = 70 - batch;
        some.queries.assign(d.queries.begin() + first * c.dim, d.queries.end());
        const Result r = solve(part, some, *table);
        const auto size = static_cast<std::size_t>(batch * c.k);
        const auto from = static_cast<std::size_t>(first * c.k);
        CHECK(std::memcmp(r.scores.data(), all.scores.data() + from, size * 4) == 0,
              "%s dim %ld batch %ld", table->name, dim, batch);
        CHECK(std::memcmp(r.ids.data(), all.ids.data() + from, size * 8) == 0);
      }
    }
  }
}

TEST(topk_from_bytes_is_that_of_float32) {
  unsigned seed = 400;
  for (std::int64_t dim : {1, 3, 30, 64, 128, 260}) {
    for (std::int64_t items : {0, 1, 15, 16, 17, 700, 3000}) {
      for (std::int64_t k : {1, 100, 1000}) {
        Case c{1 + static_cast<std::int64_t>(seed % 4), items, dim, k};
        c.bias = seed % 2;
        c.blocked = seed % 3 == 0;
        c.seen = seed % 5 < 2;
        c.whole = seed % 7 < 2;  // ties: the exact scores have to thin the lists out
        const Data d = make(c, ++seed);
        for (const KernelTable* table : all_tables()) {
          const Result expected = solve(c, d, *table), r = solve_from_bytes(c, d, *table);
          CHECK(r.ids == expected.ids && r.scores == expected.scores,
                "%s, %ld queries, %ld items, dim %ld, k %ld", table->name, c.queries, items, dim,
                k);
        }
      }
    }
  }
}

TEST(topk_threads_share_a_table_of_bytes) {
  unsigned seed = 500;
  for (std::int64_t queries : {1, 5, 70}) {
    Case c{queries, 30000, 24, 50};
    c.whole = false;
    c.seen = true;
    const Data d = make(c, ++seed);
    const KernelTable& table = *all_tables().back();
    const Result expected = solve(c, d, table);
    for (int threads : {2, 3, 7}) {
      c.threads = threads;
      const Result r = solve_from_bytes(c, d, table);
      CHECK(r.ids == expected.ids && r.scores == expected.scores, "%d threads", threads);
    }
  }
}

/// Items in few bits, in buffers that end where they end.
struct Compact {
  std::vector<std::uint16_t> halves;
  std::vector<std::int8_t> bytes;
  std::vector<float> scales;
};

/// Turns the items of `d` into numbers that both forms hold, among them scales that cannot be
/// bounded.
Compact compact(const Case& c, Data& d, bool bytes, unsigned seed) {
  std::mt19937 random(seed);
  Compact found;
  if (!bytes) {
    for (float& x : d.items) {
      std::uint32_t bits;
      std::memcpy(&bits, &x, sizeof(bits));
      found.halves.push_back(static_cast<std::uint16_t>(bits >> 16));
      bits &= 0xffff0000u;
      std::memcpy(&x, &bits, sizeof(bits));
    }
    return found;
  }
  for (std::int64_t i = 0; i < c.items; ++i) {
    const unsigned kind = random() % 50;
    found.scales.push_back(kind == 0   ? 0.0f
                           : kind == 1 ? 0x1p-120f
                           : kind == 2 ? 0x1p58f
                                       : static_cast<float>(random() % 1000) * 1e-3f);
    for (std::int64_t x = 0; x < c.dim; ++x) {
      const auto value = static_cast<std::int8_t>(static_cast<int>(random() % 256) - 128);
      found.bytes.push_back(value);
      d.items[static_cast<std::size_t>(i * c.dim + x)] = value * found.scales.back();
    }
  }
  return found;
}

Result solve_compact(const Case& c, const Data& d, const Compact& from, const KernelTable& table) {
  seqrec::TopkProblem p = problem(c, d);
  Result r = poisoned(c);
  if (from.bytes.empty()) {
    p.items = seqrec::ItemRows(from.halves.data());
    seqrec::score_topk(p, c.threads, table, r.scores.data(), r.ids.data());
    return r;
  }
  p.items = seqrec::ItemRows(from.bytes.data(), from.scales.data());
  const seqrec::ByteItemBounds bounds(p.items, p.bias, c.items, c.dim, c.threads);
  seqrec::score_topk_int8(p, bounds.view(), c.threads, table, r.scores.data(), r.ids.data());
  return r;
}

TEST(topk_of_compact_items_is_that_of_the_numbers_they_stand_for) {
  unsigned seed = 700;
  for (const bool bytes : {false, true}) {
    for (std::int64_t dim : {1, 5, 16, 30, 64, 130}) {
      for (std::int64_t items : {1, 15, 16, 33, 700}) {
        for (std::int64_t queries : {1, 3, 9, 40}) {
          Case c{queries, items, dim, seed % 4 == 0 ? items + 3 : 20};
          c.whole = false;
          c.bias = seed % 2;
          c.blocked = seed % 3 == 0;
          c.seen = seed % 5 < 2;
          Data d = make(c, ++seed);
          if (seed % 6 == 0) d.queries[0] = 0x1p60f;  // too large to bound
          const Compact from = compact(c, d, bytes, seed);
          for (const KernelTable* table : all_tables()) {
            const Result expected = solve(c, d, *table), r = solve_compact(c, d, from, *table);
            CHECK(r.ids == expected.ids && r.scores == expected.scores,
                  "%s, %s, %ld queries, %ld items, dim %ld, k %ld", table->name,
                  bytes ? "int8" : "bfloat16", queries, items, dim, c.k);
          }
        }
      }
    }
  }
}

TEST(topk_threads_share_compact_items) {
  for (const bool bytes : {false, true}) {
    for (std::int64_t queries : {1, 70}) {
      Case c{queries, 30000, 24, 50};
      c.whole = false;
      c.seen = true;
      Data d = make(c, 900);
      const Compact from = compact(c, d, bytes, 901);
      const KernelTable& table = *all_tables().back();
      const Result expected = solve(c, d, table);
      for (int threads : {2, 5}) {
        c.threads = threads;
        const Result r = solve_compact(c, d, from, table);
        CHECK(r.ids == expected.ids && r.scores == expected.scores, "%d threads", threads);
      }
    }
  }
}

TEST(topk_fused_instruction_sets_agree_bit_for_bit) {
  Case c{30, 2000, 300, 50};
  c.whole = false;
  const Data d = make(c, 6);
  const KernelTable* first = nullptr;
  Result expected;
  for (const KernelTable* table : all_tables()) {
    if (std::string(table->name) == "baseline") continue;  // rounds each product
    const Result r = solve(c, d, *table);
    if (first == nullptr) {
      first = table;
      expected = r;
    }
    CHECK(r.ids == expected.ids && r.scores == expected.scores, "%s and %s differ", table->name,
          first->name);
  }
}

TEST(topk_never_chooses_nan_and_survives_infinities) {
  for (std::int64_t queries : {1, 5, 30}) {
    Case c{queries, 1000, 8, 1000};
    Data d = make(c, 7);
    for (std::int64_t i = 0; i < c.items; ++i) {
      float* item = &d.items[static_cast<std::size_t>(i * c.dim)];
      if (i % 4 == 0) item[i % 8] = std::nanf("");
      if (i % 4 == 1) std::fill(item, item + 8, i % 8 == 1 ? kInf : -kInf);
    }
    std::fill(d.queries.begin(), d.queries.end(), 1.0f);
    for (const KernelTable* table : all_tables()) {
      const Result r = solve(c, d, *table);
      for (std::int64_t q = 0; q < queries; ++q) {
        const std::int64_t* ids = &r.ids[static_cast<std::size_t>(q * c.k)];
        const float* scores = &r.scores[static_cast<std::size_t>(q * c.k)];
        for (std::int64_t j = 0; j < c.k; ++j) {
          if (j < 125) CHECK(ids[j] == 8 * j + 1 && scores[j] == kInf, "place %ld", j);
          if (j >= 125 && j < 625) CHECK(ids[j] % 4 >= 2 && std::isfinite(scores[j]));
          if (j >= 625) CHECK(ids[j] == -1 && scores[j] == -kInf);
        }
      }
    }
  }
}
