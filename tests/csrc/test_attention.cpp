// SPDX-License-Identifier: Apache-2.0
// Attention, its backward and decoding on every instruction set, against plain sums in double.
// Buffers end where the data ends, so that the address sanitizer sees every read beyond them;
// outputs start as NaN.
#include <cmath>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "ops/attention.h"
#include "tables.h"

namespace {

using seqrec::HeadsView;
using seqrec::KernelTable;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Case {
  std::vector<std::int64_t> offsets;
  std::int64_t heads, width;
  bool causal;

  std::int64_t tokens() const { return offsets.back(); }
  std::size_t size() const { return static_cast<std::size_t>(tokens() * heads * width); }
};

std::vector<float> numbers(std::size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(size);
  for (float& each : x) each = normal(random);
  return x;
}

struct Exact {
  std::vector<double> out, d_q, d_k, d_v;
};

Exact exact_of(const Case& c, const std::vector<float>& q, const std::vector<float>& k,
               const std::vector<float>& v, const std::vector<float>& d_out, double scale) {
  Exact e;
  for (auto* x : {&e.out, &e.d_q, &e.d_k, &e.d_v}) x->assign(c.size(), 0.0);
  const auto at = [&](std::int64_t token, std::int64_t head, std::int64_t i) {
    return static_cast<std::size_t>((token * c.heads + head) * c.width + i);
  };
  for (std::size_t row = 0; row + 1 < c.offsets.size(); ++row) {
    for (std::int64_t head = 0; head < c.heads; ++head) {
      for (std::int64_t i = c.offsets[row]; i < c.offsets[row + 1]; ++i) {
        const std::int64_t end = c.causal ? i + 1 : c.offsets[row + 1];
        std::vector<double> weight, slope;
        double top = -1e300, total = 0.0, delta = 0.0;
        for (std::int64_t j = c.offsets[row]; j < end; ++j) {
          double score = 0.0, d = 0.0;
          for (std::int64_t x = 0; x < c.width; ++x) {
            score += scale * q[at(i, head, x)] * k[at(j, head, x)];
            d += static_cast<double>(d_out[at(i, head, x)]) * v[at(j, head, x)];
          }
          top = std::max(top, score);
          weight.push_back(score);
          slope.push_back(d);
        }
        for (double& w : weight) total += w = std::exp(w - top);
        for (std::size_t j = 0; j < weight.size(); ++j) delta += (weight[j] /= total) * slope[j];
        for (std::int64_t j = c.offsets[row]; j < end; ++j) {
          const double w = weight[static_cast<std::size_t>(j - c.offsets[row])];
          const double d = w * (slope[static_cast<std::size_t>(j - c.offsets[row])] - delta);
          for (std::int64_t x = 0; x < c.width; ++x) {
            e.out[at(i, head, x)] += w * v[at(j, head, x)];
            e.d_v[at(j, head, x)] += w * d_out[at(i, head, x)];
            e.d_q[at(i, head, x)] += scale * d * k[at(j, head, x)];
            e.d_k[at(j, head, x)] += scale * d * q[at(i, head, x)];
          }
        }
      }
    }
  }
  return e;
}

void check_near(const std::vector<float>& found, const std::vector<double>& exact, double allowed,
                const char* what, const KernelTable& table) {
  for (std::size_t i = 0; i < found.size(); ++i) {
    CHECK(std::abs(found[i] - exact[i]) <= allowed, "%s of %s at %zu: %g, not %g", what, table.name,
          i, found[i], exact[i]);
  }
}

void check_case(const Case& c, int threads) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.width));
  const auto q = numbers(c.size(), 1), k = numbers(c.size(), 2), v = numbers(c.size(), 3),
             d_out = numbers(c.size(), 4);
  const Exact exact = exact_of(c, q, k, v, d_out, scale);
  const std::ptrdiff_t token = c.heads * c.width, head = c.width;
  const auto view = [&](const std::vector<float>& x) {
    return HeadsView<const float>{x.data(), token, head};
  };
  const auto output = [&](std::vector<float>& x) {
    return HeadsView<float>{x.data(), token, head};
  };
  const std::int64_t rows = static_cast<std::int64_t>(c.offsets.size()) - 1;
  const seqrec::AttentionProblem p{view(q), view(k), view(v), c.offsets.data(), c.tokens(), rows,
                                   c.heads, c.width, scale,   c.causal};
  for (const KernelTable* table : all_tables()) {
    std::vector<float> out(c.size(), kNan), d_q = out, d_k = out, d_v = out;
    const std::int64_t each = c.heads * c.tokens();
    std::vector<float> statistics(static_cast<std::size_t>(2 * each), kNan);
    const seqrec::AttentionStatistics kept{statistics.data(), statistics.data() + each};
    seqrec::attention(p, output(out), kept, threads, *table);
    check_near(out, exact.out, 1e-5, "out", *table);
    const seqrec::AttentionGradients gradients{view(out), view(d_out), output(d_q), output(d_k),
                                               output(d_v)};
    seqrec::attention_backward(p, kept, gradients, threads, *table);
    check_near(d_q, exact.d_q, 1e-4, "d_q", *table);
    check_near(d_k, exact.d_k, 1e-4, "d_k", *table);
    check_near(d_v, exact.d_v, 1e-4, "d_v", *table);
  }
}

TEST(attention_sizes) {
  for (const bool causal : {true, false}) {
    for (const std::int64_t width : {1, 3, 8, 17, 32, 64, 80}) {
      check_case({{0, 1, 1, 8, 39, 72, 120}, 2, width, causal}, 1);
    }
    for (const std::int64_t length : {2, 9, 12, 16, 24, 31, 32, 33, 48, 64, 65, 129, 300}) {
      check_case({{0, length}, 1, 12, causal}, 1);
    }
    check_case({{0}, 2, 8, causal}, 1);
    check_case({{0, 0}, 2, 8, causal}, 1);
  }
}

TEST(attention_threads) {
  check_case({{0, 150, 150, 151, 400, 420}, 3, 16, true}, 3);
  check_case({{0, 150, 150, 151, 400, 420}, 3, 16, false}, 3);
}

TEST(attention_refuses_offsets) {
  const std::int64_t falls[] = {0, 3, 2, 4}, longer[] = {0, 3, 3, 5};
  for (const std::int64_t* offsets : {falls, longer}) {
    bool refused = false;
    const seqrec::AttentionProblem p{{}, {}, {}, offsets, 4, 3, 1, 1, 1.0, true};
    try {
      seqrec::attention(p, {}, {}, 1, seqrec::kernels());
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused, "offsets that do not fit");
  }
}

void check_decode(const Case& c, const std::vector<std::int64_t>& lengths, int threads) {
  const std::int64_t rows = static_cast<std::int64_t>(c.offsets.size()) - 1;
  const auto keys = numbers(c.size(), 2), values = numbers(c.size(), 3);
  const auto q = numbers(static_cast<std::size_t>(rows * c.heads * c.width), 1);
  const double scale = 0.4;
  const std::ptrdiff_t token = c.heads * c.width, head = c.width;
  for (const KernelTable* table : all_tables()) {
    std::vector<float> out(q.size(), kNan);
    const seqrec::DecodeProblem p{{q.data(), token, head},
                                  {keys.data(), token, head},
                                  {values.data(), token, head},
                                  c.offsets.data(),
                                  lengths.empty() ? nullptr : lengths.data(),
                                  rows,
                                  c.heads,
                                  c.width,
                                  scale};
    seqrec::decode_attention(p, c.tokens(), {out.data(), token, head}, threads, *table);
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t h = 0; h < c.heads; ++h) {
        const auto from = [&](std::int64_t t) {
          return static_cast<std::size_t>(t * token + h * head);
        };
        std::vector<double> weights, exact(static_cast<std::size_t>(c.width), 0.0);
        double top = -1e300, total = 0.0;
        for (std::int64_t j = 0; j < p.length(row); ++j) {
          double score = 0.0;
          for (std::size_t x = 0; x < exact.size(); ++x) {
            score += scale * q[from(row) + x] * keys[from(p.offsets[row] + j) + x];
          }
          weights.push_back(score);
          top = std::max(top, score);
        }
        for (double& w : weights) total += w = std::exp(w - top);
        for (std::size_t j = 0; j < weights.size(); ++j) {
          for (std::size_t x = 0; x < exact.size(); ++x) {
            const auto at = from(p.offsets[row] + static_cast<std::int64_t>(j)) + x;
            exact[x] += weights[j] / total * values[at];
          }
        }
        for (std::size_t x = 0; x < exact.size(); ++x) {
          CHECK(std::abs(out[from(row) + x] - exact[x]) < 1e-5, "%s", table->name);
        }
      }
    }
  }
}

TEST(decode_sizes) {
  for (const std::int64_t width : {1, 3, 8, 17, 32, 64, 80}) {
    check_decode({{0, 0, 1, 5, 21, 54, 400}, 2, width, true}, {}, 1);
    check_decode({{0, 0, 1, 5, 21, 54, 400}, 2, width, true}, {0, 0, 4, 9, 33, 300}, 1);
  }
}

TEST(decode_threads) { check_decode({{0, 500, 500, 900, 1500}, 4, 32, true}, {}, 3); }

}  // namespace
