// SPDX-License-Identifier: Apache-2.0
// Gather and scatter of embeddings of every instruction set. Buffers end where the data ends;
// outputs start as NaN. Whole numbers and a dropout of one half keep every sum exact.
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "ops/dropout.h"
#include "ops/embedding.h"
#include "tables.h"

namespace {

using Numbers = std::vector<float>;

Numbers numbers(std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> whole(-8, 8);
  Numbers made(static_cast<std::size_t>(count));
  for (float& x : made) x = static_cast<float>(whole(random));
  return made;
}

void check_case(const std::vector<std::int64_t>& lengths, std::int64_t items, std::int64_t dim,
                double p, int threads) {
  std::vector<std::int64_t> offsets{0}, ids, places;
  std::mt19937 random(3);
  std::int64_t positions = 0;
  for (std::int64_t length : lengths) {
    offsets.push_back(offsets.back() + length);
    positions = length > positions ? length : positions;
    for (std::int64_t i = 0; i < length; ++i) {
      ids.push_back(static_cast<std::int64_t>(random() % static_cast<unsigned>(items)));
      places.push_back(i);
    }
  }
  const std::int64_t tokens = offsets.back(), rows = static_cast<std::int64_t>(lengths.size());
  const Numbers table = numbers(items * dim, 1), second = numbers(positions * dim, 2);
  const Numbers gradient = numbers(tokens * dim, 4);
  const Numbers ones(static_cast<std::size_t>(tokens * dim), 1.0f);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const seqrec::Dropout drop = seqrec::make_dropout(9, p);
  for (const seqrec::KernelTable* kernels : all_tables()) {
    Numbers factors(ones), out(ones.size(), nan), d_table(table.size(), nan);
    Numbers d_second(second.size(), nan);
    seqrec::dropout({ones.data(), factors.data(), dim, drop}, tokens, 1, *kernels);
    const seqrec::EmbeddingProblem problem{ids.data(), tokens,    items, offsets.data(),
                                           rows,       positions, dim,   drop};
    seqrec::embed(problem, table.data(), second.data(), out.data(), threads, *kernels);
    seqrec::embed_backward(problem, gradient.data(), d_table.data(), d_second.data(), threads,
                           *kernels);
    Numbers want_table(table.size()), want_second(second.size());
    for (std::int64_t t = 0; t < tokens; ++t) {
      const std::int64_t id = ids[static_cast<std::size_t>(t)];
      const std::int64_t place = places[static_cast<std::size_t>(t)];
      for (std::int64_t j = 0; j < dim; ++j) {
        const auto i = static_cast<std::size_t>(t * dim + j);
        const auto a = static_cast<std::size_t>(id * dim + j);
        const auto b = static_cast<std::size_t>(place * dim + j);
        CHECK(out[i] == (table[a] + second[b]) * factors[i], "%s", kernels->name);
        want_table[a] += gradient[i] * factors[i];
        want_second[b] += gradient[i] * factors[i];
      }
    }
    CHECK(d_table == want_table, "%s", kernels->name);
    CHECK(d_second == want_second, "%s", kernels->name);
  }
}

}  // namespace

TEST(embedding_sizes) {
  for (std::int64_t dim : {1, 3, 4, 5, 8, 15, 16, 17, 33}) {
    for (double p : {0.0, 0.5}) {
      check_case({}, 3, dim, p, 1);
      check_case({4, 0, 1, 7}, 5, dim, p, 1);
    }
  }
}

TEST(embedding_threads) { check_case(std::vector<std::int64_t>(300, 12), 2000, 48, 0.5, 3); }

TEST(embedding_refuses) {
  const std::vector<std::int64_t> offsets{0, 2, 1};
  const std::vector<std::int64_t> ids{0, 7};
  const Numbers table(14, 0.0f);
  Numbers out(4);
  const auto refused = [&](std::int64_t items, std::int64_t rows, std::int64_t tokens) {
    try {
      seqrec::embed({ids.data(), tokens, items, offsets.data(), rows, 1, 2, {}}, table.data(),
                    table.data(), out.data(), 1, seqrec::kernels());
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  CHECK(refused(7, 1, 2), "a number outside the table");
  CHECK(refused(8, 1, 2), "a row longer than the positions");
  CHECK(refused(8, 2, 1), "offsets that decrease");
  CHECK(refused(8, 1, 1), "offsets that end elsewhere");
}
