// SPDX-License-Identifier: Apache-2.0
// The feed-forward layer of every instruction set against a plain computation in double. Buffers
// end where the data ends; outputs start as NaN.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "ops/dropout.h"
#include "ops/feed_forward.h"
#include "tables.h"

namespace {

using Numbers = std::vector<float>;

Numbers numbers(std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.5f);
  Numbers made(static_cast<std::size_t>(count));
  for (float& x : made) x = normal(random);
  return made;
}

Numbers poisoned(std::int64_t count) {
  return Numbers(static_cast<std::size_t>(count), std::numeric_limits<float>::quiet_NaN());
}

/// Matrix element by row and column.
double at(const std::vector<double>& m, std::int64_t columns, std::int64_t r, std::int64_t c) {
  return m[static_cast<std::size_t>(r * columns + c)];
}

std::vector<double> wide(const Numbers& m) { return {m.begin(), m.end()}; }

void near(const Numbers& found, const std::vector<double>& want, double limit, const char* what,
          const char* isa) {
  for (std::size_t i = 0; i < want.size(); ++i) {
    CHECK(std::fabs(found[i] - want[i]) <= limit, "%s %s %zu: %g, not %g", isa, what, i,
          static_cast<double>(found[i]), want[i]);
  }
}

/// [rows, columns] = a [rows, depth] b^T, or a^T b for a [depth, rows] where `transposed`.
std::vector<double> product(const std::vector<double>& a, const std::vector<double>& b,
                            std::int64_t rows, std::int64_t depth, std::int64_t columns,
                            bool transposed) {
  std::vector<double> out(static_cast<std::size_t>(rows * columns));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) {
      double sum = 0;
      for (std::int64_t k = 0; k < depth; ++k) {
        sum += transposed ? at(a, rows, k, r) * at(b, columns, k, c)
                          : at(a, depth, r, k) * at(b, depth, c, k);
      }
      out[static_cast<std::size_t>(r * columns + c)] = sum;
    }
  }
  return out;
}

void check_case(std::int64_t rows, std::int64_t inputs, std::int64_t inner, std::int64_t outputs,
                double p, int threads) {
  const Numbers x = numbers(rows * inputs, 1), up = numbers(inner * inputs, 2);
  const Numbers up_bias = numbers(inner, 3), down = numbers(outputs * inner, 4);
  const Numbers down_bias = numbers(outputs, 5), dy = numbers(rows * outputs, 6);
  for (const seqrec::KernelTable* table : all_tables()) {
    const seqrec::Dropout drop = seqrec::make_dropout(5, p);
    const Numbers ones(static_cast<std::size_t>(rows * inner), 1.0f);
    Numbers factors(ones);
    seqrec::dropout({ones.data(), factors.data(), inner, drop}, rows, 1, *table);

    const seqrec::FeedForwardProblem problem{
        x.data(),    up.data(),        up_bias.data(),
        down.data(), down_bias.data(), rows,
        inputs,      outputs,          {seqrec::Activation::kSilu, drop, inner}};
    Numbers y = poisoned(rows * outputs), alone = y, z = poisoned(rows * inner);
    seqrec::feed_forward(problem, z.data(), y.data(), threads, *table);
    seqrec::feed_forward(problem, nullptr, alone.data(), threads, *table);
    CHECK(y == alone, "%s: the result depends on whether z is kept", table->name);
    Numbers dx = poisoned(rows * inputs), d_up = poisoned(inner * inputs), d_up_bias(up_bias);
    Numbers d_down = poisoned(outputs * inner), d_down_bias(down_bias);
    seqrec::feed_forward_backward(
        problem, z.data(), dy.data(),
        {dx.data(), d_up.data(), d_up_bias.data(), d_down.data(), d_down_bias.data()}, threads,
        *table);

    std::vector<double> before = product(wide(x), wide(up), rows, inputs, inner, false);
    std::vector<double> hidden(before), slope(before);
    for (std::size_t i = 0; i < before.size(); ++i) {
      before[i] += up_bias[i % static_cast<std::size_t>(inner)];
      const double s = 1 / (1 + std::exp(-before[i]));
      hidden[i] = before[i] * s * factors[i];
      slope[i] = s * (1 + before[i] * (1 - s)) * factors[i];
    }
    near(z, before, 1e-4, "z", table->name);
    std::vector<double> want = product(hidden, wide(down), rows, inner, outputs, false);
    for (std::size_t i = 0; i < want.size(); ++i) {
      want[i] += down_bias[i % static_cast<std::size_t>(outputs)];
    }
    near(y, want, 1e-4, "y", table->name);
    std::vector<double> down_t(wide(down)), up_t(wide(up));
    for (std::int64_t i = 0; i < inner; ++i) {
      for (std::int64_t o = 0; o < outputs; ++o) {
        down_t[static_cast<std::size_t>(i * outputs + o)] = at(wide(down), inner, o, i);
      }
      for (std::int64_t c = 0; c < inputs; ++c) {
        up_t[static_cast<std::size_t>(c * inner + i)] = at(wide(up), inputs, i, c);
      }
    }
    std::vector<double> dz = product(wide(dy), down_t, rows, outputs, inner, false);
    for (std::size_t i = 0; i < dz.size(); ++i) dz[i] *= slope[i];
    near(dx, product(dz, up_t, rows, inner, inputs, false), 1e-4, "dx", table->name);
    const double sums = 1e-5 * static_cast<double>(rows + 10);
    near(d_up, product(dz, wide(x), inner, rows, inputs, true), sums, "d_up", table->name);
    near(d_down, product(wide(dy), hidden, outputs, rows, inner, true), sums, "d_down",
         table->name);
    const std::vector<double> one(static_cast<std::size_t>(rows), 1.0);
    near(d_up_bias, product(dz, one, inner, rows, 1, true), sums, "d_up_bias", table->name);
    near(d_down_bias, product(wide(dy), one, outputs, rows, 1, true), sums, "d_down_bias",
         table->name);
  }
}

}  // namespace

TEST(feed_forward_sizes) {
  for (std::int64_t rows : {0, 1, 13, 50}) {
    for (std::int64_t inner : {1, 17, 50}) {
      for (std::int64_t width : {1, 16, 33}) {
        check_case(rows, width, inner, 5, 0.0, 1);
        check_case(rows, 7, inner, width, 0.4, 1);
      }
    }
  }
}

TEST(feed_forward_threads) { check_case(400, 24, 80, 20, 0.4, 3); }
