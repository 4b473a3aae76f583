// SPDX-License-Identifier: Apache-2.0
// Pointwise SiLU attention of every instruction set against a plain computation in double. Buffers
// end where the data ends, so that the address sanitizer sees every access beyond them; outputs
// start as NaN.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "ops/hstu_attention.h"
#include "tables.h"

namespace {

using seqrec::HeadsView;
using seqrec::HstuAttentionInput;
using Numbers = std::vector<float>;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Case {
  std::vector<std::int64_t> lengths;
  std::int64_t heads, width, distances = 0, buckets = 0;
  bool causal = true;
  int threads = 1;
};

struct Results {
  std::vector<double> out, q, k, v, bias, time_bias;
};

class Data {
 public:
  explicit Data(const Case& c) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    offsets_.push_back(0);
    for (std::int64_t length : c.lengths) offsets_.push_back(offsets_.back() + length);
    const std::int64_t tokens = offsets_.back(), size = tokens * c.heads * c.width;
    for (Numbers* x : {&q_, &k_, &v_, &d_out_}) x->resize(static_cast<std::size_t>(size));
    bias_.resize(static_cast<std::size_t>(c.heads * c.distances));
    time_bias_.resize(static_cast<std::size_t>(c.heads * c.buckets));
    for (Numbers* x : {&q_, &k_, &v_, &d_out_, &bias_, &time_bias_}) {
      for (float& value : *x) value = normal(random);
    }
    for (std::int64_t i = 0; i < tokens; ++i) {
      times_.push_back(static_cast<std::int64_t>(random() % 5000));
    }
    for (std::int64_t b = 0; b < c.buckets; ++b) bounds_.push_back(b == 0 ? 0 : 1 << b);
    const std::int64_t stride = c.heads * c.width;
    in.q = {q_.data(), stride, c.width};
    in.k = {k_.data(), stride, c.width};
    in.v = {v_.data(), stride, c.width};
    d_out = {d_out_.data(), stride, c.width};
    in.offsets = offsets_.data();
    in.tokens = tokens;
    in.rows = static_cast<std::int64_t>(c.lengths.size());
    in.heads = c.heads;
    in.width = c.width;
    in.causal = c.causal;
    in.scale = 0.3f;
    in.normaliser = 20.0f;
    in.bias = c.distances > 0 ? bias_.data() : nullptr;
    in.distances = c.distances;
    in.time_bias = c.buckets > 0 ? time_bias_.data() : nullptr;
    in.buckets = c.buckets;
    in.times = times_.data();
    in.time_bounds = bounds_.data();
  }

  HstuAttentionInput in{};
  HeadsView<const float> d_out{};

 private:
  Numbers q_, k_, v_, d_out_, bias_, time_bias_;
  std::vector<std::int64_t> offsets_, times_, bounds_;
};

Results plain(const Data& data) {
  const HstuAttentionInput& in = data.in;
  const std::size_t size = static_cast<std::size_t>(in.tokens * in.heads * in.width);
  Results r;
  for (auto* x : {&r.out, &r.q, &r.k, &r.v}) x->resize(size);
  r.bias.resize(static_cast<std::size_t>(in.heads * in.distances));
  r.time_bias.resize(static_cast<std::size_t>(in.heads * in.buckets));
  for (std::int64_t row = 0; row < in.rows; ++row) {
    const std::int64_t begin = in.offsets[row], end = in.offsets[row + 1];
    for (std::int64_t h = 0; h < in.heads; ++h) {
      for (std::int64_t i = begin; i < end; ++i) {
        for (std::int64_t j = begin; j < (in.causal ? i + 1 : end); ++j) {
          const auto at = [&](std::int64_t token) {
            return static_cast<std::size_t>((token * in.heads + h) * in.width);
          };
          const std::size_t qi = at(i), kj = at(j);
          double score = 0, d_a = 0;
          for (std::size_t c = 0; c < static_cast<std::size_t>(in.width); ++c) {
            score += static_cast<double>(in.q.data[qi + c]) * in.k.data[kj + c];
            d_a += static_cast<double>(data.d_out.data[qi + c]) * in.v.data[kj + c];
          }
          score *= in.scale;
          const std::int64_t distance = std::min(std::abs(i - j), in.distances - 1);
          const auto place = static_cast<std::size_t>(h * in.distances + distance);
          if (in.bias) score += in.bias[place];
          std::int64_t bucket = 0;
          const std::int64_t apart = std::abs(in.times[i] - in.times[j]);
          while (bucket + 1 < in.buckets && in.time_bounds[bucket + 1] <= apart) ++bucket;
          const auto slot = static_cast<std::size_t>(h * in.buckets + bucket);
          if (in.time_bias) score += in.time_bias[slot];
          const double sigmoid = 1 / (1 + std::exp(-score)), a = score * sigmoid / in.normaliser;
          const double d_s = d_a * sigmoid * (1 + score * (1 - sigmoid)) / in.normaliser;
          for (std::size_t c = 0; c < static_cast<std::size_t>(in.width); ++c) {
            r.out[qi + c] += a * in.v.data[kj + c];
            r.v[kj + c] += a * data.d_out.data[qi + c];
            r.q[qi + c] += d_s * in.scale * in.k.data[kj + c];
            r.k[kj + c] += d_s * in.scale * in.q.data[qi + c];
          }
          if (in.bias) r.bias[place] += d_s;
          if (in.time_bias) r.time_bias[slot] += d_s;
        }
      }
    }
  }
  return r;
}

void compare(const char* what, const char* isa, const Numbers& found,
             const std::vector<double>& exact) {
  double largest = 0;
  for (double x : exact) largest = std::fmax(largest, std::fabs(x));
  for (std::size_t i = 0; i < exact.size(); ++i) {
    CHECK(std::fabs(found[i] - exact[i]) <= 1e-5 * largest, "%s %s %zu: %g, not %g", isa, what, i,
          static_cast<double>(found[i]), exact[i]);
  }
}

void check_case(const Case& c) {
  const Data data(c);
  const Results exact = plain(data);
  for (const seqrec::KernelTable* table : all_tables()) {
    Numbers out(exact.out.size(), kNan), q = out, k = out, v = out;
    Numbers bias(exact.bias.size(), kNan), time_bias(exact.time_bias.size(), kNan);
    seqrec::hstu_attention(data.in, out.data(), c.threads, *table);
    seqrec::hstu_attention_backward(
        data.in, data.d_out,
        {q.data(), k.data(), v.data(), c.distances ? bias.data() : nullptr,
         c.buckets ? time_bias.data() : nullptr},
        c.threads, *table);
    compare("out", table->name, out, exact.out);
    compare("q", table->name, q, exact.q);
    compare("k", table->name, k, exact.k);
    compare("v", table->name, v, exact.v);
    compare("bias", table->name, bias, exact.bias);
    compare("time_bias", table->name, time_bias, exact.time_bias);
  }
}

}  // namespace

TEST(hstu_attention_sizes) {
  for (std::int64_t width : {1, 3, 8, 17, 32}) {
    for (bool causal : {true, false}) {
      check_case({{0, 1, 2, 11, 12, 13}, 1, width, 0, 0, causal});
      check_case({{47, 65, 0, 96}, 2, width, 50, 9, causal});
      check_case({{3, 49}, 1, width, 64, 0, causal});
      check_case({{64}, 1, width, 0, 1, causal});
    }
  }
}

TEST(hstu_attention_threads) {
  check_case({{200, 0, 1, 150, 90}, 2, 16, 200, 12, true, 3});
  check_case({{400}, 1, 16, 0, 0, true, 4});
  check_case({{400}, 1, 16, 0, 0, false, 4});
}

TEST(hstu_attention_refuses_offsets) {
  Data data({{4, 5}, 1, 2});
  Numbers out(18);
  const auto refuses = [&](std::vector<std::int64_t> offsets) {
    data.in.offsets = offsets.data();
    try {
      seqrec::hstu_attention(data.in, out.data(), 1, seqrec::kernels());
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  CHECK(refuses({0, 4, 8}));
  CHECK(refuses({1, 4, 9}));
  CHECK(refuses({0, 10, 9}));
  CHECK(!refuses({0, 4, 9}));
}
