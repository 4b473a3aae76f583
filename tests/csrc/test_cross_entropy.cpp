// SPDX-License-Identifier: Apache-2.0
// Linear + cross-entropy of every instruction set against a plain computation in double. Buffers
// end where the data ends; outputs start as NaN.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "ops/cross_entropy.h"
#include "tables.h"

namespace {

using Numbers = std::vector<float>;
using Ids = std::vector<std::int64_t>;

struct Case {
  std::int64_t tokens, items, dim;
  std::int64_t samples = 0;
  int threads = 1;
  float scale = 0.3f;
};

struct Wanted {
  double loss = 0;
  std::vector<double> hidden, weight, bias;
};

Numbers numbers(std::int64_t count, float scale, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  Numbers made(static_cast<std::size_t>(count));
  for (float& x : made) x = normal(random);
  return made;
}

Ids ids(std::int64_t count, std::int64_t items, unsigned seed) {
  std::mt19937 random(seed);
  Ids made(static_cast<std::size_t>(count));
  for (auto& id : made) id = static_cast<std::int64_t>(random()) % items;
  return made;
}

Wanted plain(const seqrec::CrossEntropyProblem& p) {
  Wanted want;
  want.hidden.resize(static_cast<std::size_t>(p.tokens * p.dim));
  want.weight.resize(static_cast<std::size_t>(p.items * p.dim));
  want.bias.resize(static_cast<std::size_t>(p.items));
  for (std::int64_t i = 0; i < p.tokens; ++i) {
    Ids columns = {p.targets[i]};
    Numbers shift = {p.log_q_targets != nullptr ? -p.log_q_targets[i] : 0.0f};
    const std::int64_t count = p.samples != nullptr ? p.num_samples : p.items;
    for (std::int64_t j = 0; j < count; ++j) {
      const std::int64_t item = p.samples != nullptr ? p.samples[j] : j;
      if (item == p.targets[i]) continue;
      columns.push_back(item);
      shift.push_back(p.log_q_samples != nullptr ? -p.log_q_samples[j] : 0.0f);
    }
    std::vector<double> z(columns.size());
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (std::size_t j = 0; j < z.size(); ++j) {
      z[j] = static_cast<double>(shift[j]) + p.bias[columns[j]];
      for (std::int64_t k = 0; k < p.dim; ++k) {
        z[j] += static_cast<double>(p.hidden[i * p.dim + k]) * p.weight[columns[j] * p.dim + k];
      }
      top = std::fmax(top, z[j]);
    }
    for (const double x : z) sum += std::exp(x - top);
    const double a = p.token_weights[i];
    want.loss += a * (std::log(sum) + top - z[0]);
    for (std::size_t j = 0; j < z.size(); ++j) {
      const double g = a * (std::exp(z[j] - top) / sum - (j == 0 ? 1.0 : 0.0));
      want.bias[static_cast<std::size_t>(columns[j])] += g;
      for (std::int64_t k = 0; k < p.dim; ++k) {
        want.hidden[static_cast<std::size_t>(i * p.dim + k)] +=
            g * p.weight[columns[j] * p.dim + k];
        want.weight[static_cast<std::size_t>(columns[j] * p.dim + k)] +=
            g * p.hidden[i * p.dim + k];
      }
    }
  }
  return want;
}

void compare(const Numbers& found, const std::vector<double>& want, float scale, const char* what) {
  const double allowed = 2e-5 * (1.0 + static_cast<double>(scale));  // logits grow with the scale
  for (std::size_t i = 0; i < want.size(); ++i) {
    CHECK(std::fabs(found[i] - want[i]) <= allowed * (1 + std::fabs(want[i])), "%s %zu: %g, not %g",
          what, i, static_cast<double>(found[i]), want[i]);
  }
}

void check_case(const Case& c) {
  const Numbers hidden = numbers(c.tokens * c.dim, c.scale, 1);
  const Numbers weight = numbers(c.items * c.dim, 1.0f, 2), bias = numbers(c.items, 1.0f, 3);
  const Numbers log_q = numbers(c.samples, 1.0f, 4), log_q_targets = numbers(c.tokens, 1.0f, 5);
  const Numbers token_weights(static_cast<std::size_t>(c.tokens), 0.5f);
  const Ids targets = ids(c.tokens, c.items, 6), samples = ids(c.samples, c.items, 7);
  seqrec::CrossEntropyProblem p{hidden.data(),        weight.data(), bias.data(), targets.data(),
                                token_weights.data(), c.tokens,      c.items,     c.dim};
  if (c.samples > 0) {
    p.samples = samples.data();
    p.num_samples = c.samples;
    p.log_q_samples = log_q.data();
    p.log_q_targets = log_q_targets.data();
  }
  const Wanted want = plain(p);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const seqrec::KernelTable* table : all_tables()) {
    Numbers d_hidden(hidden.size(), nan), d_weight(weight.size(), nan), d_bias(bias.size(), nan);
    const float loss = seqrec::cross_entropy(p, {d_hidden.data(), d_weight.data(), d_bias.data()},
                                             c.threads, *table);
    CHECK(std::fabs(loss - want.loss) <= 1e-5 * (1 + want.loss), "%s: %g, not %g", table->name,
          static_cast<double>(loss), want.loss);
    compare(d_hidden, want.hidden, c.scale, table->name);
    compare(d_weight, want.weight, c.scale, table->name);
    compare(d_bias, want.bias, c.scale, table->name);
    CHECK(std::fabs(seqrec::cross_entropy(p, {}, c.threads, *table) - loss) <= 1e-6f * (1 + loss));
  }
}

TEST(cross_entropy_sizes) {
  for (const std::int64_t dim : {1, 5, 16, 33, 64}) {
    for (const std::int64_t items : {1, 191, 192, 193}) check_case({13, items, dim});
    check_case({49, 200, dim, 100});
  }
  check_case({0, 3, 4});
  check_case({1, 1, 512});
  check_case({20, 300, 130, 1});
}

TEST(cross_entropy_overflow) {
  check_case({15, 200, 8, 0, 1, 100.0f});
  check_case({15, 200, 8, 50, 1, 100.0f});
}

TEST(cross_entropy_threads) {
  check_case({200, 1000, 24, 0, 2});
  check_case({200, 1000, 24, 700, 3});
}

TEST(cross_entropy_recomputed) {
  check_case({100, 45000, 1, 0, 2});
  check_case({360, 12000, 1});
}

}  // namespace
