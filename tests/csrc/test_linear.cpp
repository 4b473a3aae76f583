// SPDX-License-Identifier: Apache-2.0
// The linear layer of every instruction set against a plain computation in double. Buffers end
// where the data ends, so that the address sanitizer sees every access beyond them.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "ops/linear.h"
#include "tables.h"

namespace {

std::vector<float> numbers(std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> made(static_cast<std::size_t>(count));
  for (float& x : made) x = normal(random);
  return made;
}

void check_sizes(std::int64_t rows, std::int64_t inputs, std::int64_t outputs, int threads) {
  const std::vector<float> x = numbers(rows * inputs, 1), w = numbers(outputs * inputs, 2);
  const std::vector<float> b = numbers(outputs, 3), dy = numbers(rows * outputs, 4);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const double rounding = 1e-6 * (1 + static_cast<double>(inputs + rows));
  for (const seqrec::KernelTable* table : all_tables()) {
    std::vector<float> y(static_cast<std::size_t>(rows * outputs), nan);
    const auto packed = seqrec::pack_linear(w.data(), inputs, 1, outputs, inputs, b.data(), *table);
    seqrec::linear(packed, x.data(), inputs, rows, seqrec::Activation::kRelu, y.data(), outputs,
                   threads);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t o = 0; o < outputs; ++o) {
        double want = b[static_cast<std::size_t>(o)];
        for (std::int64_t i = 0; i < inputs; ++i) {
          want += static_cast<double>(x[static_cast<std::size_t>(r * inputs + i)]) *
                  w[static_cast<std::size_t>(o * inputs + i)];
        }
        const double found = y[static_cast<std::size_t>(r * outputs + o)];
        CHECK(std::fabs(found - std::fmax(want, 0)) <= rounding, "%s %ld %ld: %g, not %g",
              table->name, r, o, found, want);
      }
    }
    std::vector<float> dw(static_cast<std::size_t>(outputs * inputs), nan);
    std::vector<float> db(static_cast<std::size_t>(outputs), nan);
    seqrec::weight_gradient(dy.data(), x.data(), rows, outputs, inputs, dw.data(), db.data(),
                            threads, *table);
    for (std::int64_t o = 0; o < outputs; ++o) {
      double column = 0;
      for (std::int64_t r = 0; r < rows; ++r)
        column += dy[static_cast<std::size_t>(r * outputs + o)];
      CHECK(std::fabs(db[static_cast<std::size_t>(o)] - column) <= rounding);
      for (std::int64_t i = 0; i < inputs; ++i) {
        double want = 0;
        for (std::int64_t r = 0; r < rows; ++r) {
          want += static_cast<double>(dy[static_cast<std::size_t>(r * outputs + o)]) *
                  x[static_cast<std::size_t>(r * inputs + i)];
        }
        CHECK(std::fabs(dw[static_cast<std::size_t>(o * inputs + i)] - want) <= rounding);
      }
    }
  }
}

}  // namespace

TEST(linear_sizes) {
  for (std::int64_t rows : {0, 1, 2, 5, 12, 13, 25}) {
    for (std::int64_t outputs : {1, 4, 23, 33, 49}) {
      for (std::int64_t inputs : {0, 1, 3, 17, 129}) check_sizes(rows, inputs, outputs, 1);
    }
  }
}

TEST(linear_threads) {
  check_sizes(601, 40, 70, 3);
  check_sizes(3, 1024, 200, 4);
}
