// SPDX-License-Identifier: Apache-2.0
// Layer norm with dropout and residual, of every instruction set, against a plain computation in
// double. Buffers end where the data ends; outputs start as NaN.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "ops/dropout.h"
#include "ops/layer_norm.h"
#include "tables.h"

namespace {

using Numbers = std::vector<float>;

Numbers numbers(std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Numbers made(static_cast<std::size_t>(count));
  for (float& x : made) x = normal(random);
  return made;
}

Numbers poisoned(std::int64_t count) {
  return Numbers(static_cast<std::size_t>(count), std::numeric_limits<float>::quiet_NaN());
}

void check_case(std::int64_t rows, std::int64_t dim, double p, int threads) {
  const std::int64_t size = rows * dim;
  const Numbers x = numbers(size, 1), residual = numbers(size, 2), weight = numbers(dim, 3);
  const Numbers bias = numbers(dim, 4), d_out = numbers(size, 5), d_sum = numbers(size, 6);
  const seqrec::Dropout drop = seqrec::make_dropout(77, p);
  Numbers first_factors;
  for (const seqrec::KernelTable* table : all_tables()) {
    Numbers factors = poisoned(size);
    const Numbers ones(static_cast<std::size_t>(size), 1.0f);
    seqrec::dropout({ones.data(), factors.data(), dim, drop}, rows, threads, *table);
    if (first_factors.empty()) first_factors = factors;
    CHECK(factors == first_factors, "%s draws otherwise", table->name);

    Numbers sum = poisoned(size), out = poisoned(size), mean = poisoned(rows),
            rstd = poisoned(rows), dx = poisoned(size), d_residual = poisoned(size),
            d_weight = poisoned(dim), d_bias = poisoned(dim);
    seqrec::layer_norm({x.data(), residual.data(), weight.data(), bias.data(), sum.data(),
                        out.data(), mean.data(), rstd.data(), dim, 0.1f, drop},
                       rows, threads, *table);
    seqrec::layer_norm_backward(
        {d_out.data(), d_sum.data(), sum.data(), mean.data(), rstd.data(), weight.data(),
         d_residual.data(), p > 0 ? dx.data() : nullptr, dim, drop},
        rows, d_weight.data(), d_bias.data(), threads, *table);

    std::vector<double> want_weight(static_cast<std::size_t>(dim)), want_bias(want_weight);
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto at = [&](const Numbers& m, std::int64_t j) {
        return static_cast<double>(m[static_cast<std::size_t>(row * dim + j)]);
      };
      double m = 0, v = 0, g = 0, product = 0;
      std::vector<double> s(static_cast<std::size_t>(dim)), hat(s), scaled(s);
      for (std::int64_t j = 0; j < dim; ++j) {
        s[static_cast<std::size_t>(j)] = at(x, j) * at(factors, j) + at(residual, j);
        m += s[static_cast<std::size_t>(j)] / static_cast<double>(dim);
      }
      for (double each : s) v += (each - m) * (each - m) / static_cast<double>(dim);
      const double r = 1 / std::sqrt(v + 0.1f);
      for (std::int64_t j = 0; j < dim; ++j) {
        const auto i = static_cast<std::size_t>(j);
        hat[i] = (s[i] - m) * r;
        scaled[i] = at(d_out, j) * weight[i];
        g += scaled[i] / static_cast<double>(dim);
        product += scaled[i] * hat[i] / static_cast<double>(dim);
        want_weight[i] += at(d_out, j) * hat[i];
        want_bias[i] += at(d_out, j);
        CHECK(std::fabs(at(out, j) - (hat[i] * weight[i] + bias[i])) < 1e-5, "%s", table->name);
        CHECK(std::fabs(at(sum, j) - s[i]) < 1e-5);
      }
      for (std::int64_t j = 0; j < dim; ++j) {
        const auto i = static_cast<std::size_t>(j);
        const double d = (scaled[i] - g - hat[i] * product) * r + at(d_sum, j);
        CHECK(std::fabs(at(d_residual, j) - d) < 1e-4, "%s", table->name);
        if (p > 0) CHECK(std::fabs(at(dx, j) - d * at(factors, j)) < 1e-4, "%s", table->name);
      }
    }
    for (std::size_t j = 0; j < want_weight.size(); ++j) {
      CHECK(std::fabs(d_weight[j] - want_weight[j]) < 1e-3, "%s", table->name);
      CHECK(std::fabs(d_bias[j] - want_bias[j]) < 1e-3, "%s", table->name);
    }
  }
}

}  // namespace

TEST(layer_norm_sizes) {
  for (std::int64_t rows : {0, 1, 3}) {
    for (std::int64_t dim : {1, 3, 4, 5, 8, 15, 16, 17, 33}) {
      check_case(rows, dim, 0, 1);
      check_case(rows, dim, 0.5, 1);
    }
  }
}

TEST(layer_norm_threads) { check_case(3000, 64, 0.5, 3); }
