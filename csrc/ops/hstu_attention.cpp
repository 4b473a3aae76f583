// SPDX-License-Identifier: Apache-2.0
#include "ops/hstu_attention.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "base/aligned.h"
#include "base/offsets.h"
#include "base/thread_pool.h"

namespace seqrec {
namespace {

// Multiply-adds a nanosecond on one core, on the low side: when in doubt, stay on one thread.
constexpr double kRate = 25.0;
constexpr double kRowCost = 300.0;        // nanoseconds that a row and head take at least
constexpr std::int64_t kSharesEach = 8;   // shares of the work for each thread
constexpr std::int64_t kSumShares = 32;   // with tables to sum up: independent of the threads
constexpr std::int64_t kLeastPiece = 96;  // queries of a row that are worth packing its keys again

/// Tables of time differences, see TimeBuckets.
class TimeTables {
 public:
  TimeTables(const std::int64_t* bounds, std::int64_t buckets) {
    for (std::int64_t i = 0; i < buckets; ++i) {
      bounds_.push_back(static_cast<std::uint64_t>(bounds[i]));
    }
    bounds_.push_back(UINT64_MAX);
    for (int exponent = 0; exponent < 64; ++exponent) {
      for (std::uint64_t part = 8; part < 16; ++part) {
        const std::uint64_t least =
            exponent < 3 ? (part + (7u >> exponent)) >> (3 - exponent) : part << (exponent - 3);
        const auto above = std::upper_bound(bounds_.begin() + 1, bounds_.end() - 1, least);
        cells_.push_back(static_cast<std::int32_t>(above - bounds_.begin() - 1));
      }
    }
  }
  TimeBuckets view() const { return {cells_.data(), bounds_.data()}; }

 private:
  std::vector<std::int32_t> cells_;
  std::vector<std::uint64_t> bounds_;
};

HstuAttentionProblem problem_of(const HstuAttentionInput& in, const TimeTables& tables) {
  HstuAttentionProblem p{};
  p.q = in.q;
  p.k = in.k;
  p.v = in.v;
  p.offsets = in.offsets;
  p.rows = in.rows;
  p.heads = in.heads;
  p.width = in.width;
  for (std::int64_t row = 0; row < in.rows; ++row) {
    p.max_length = std::max(p.max_length, in.offsets[row + 1] - in.offsets[row]);
  }
  p.causal = in.causal;
  p.scale = in.scale;
  p.normaliser = in.normaliser;
  p.bias = in.bias;
  p.distances = in.distances;
  p.time_bias = in.time_bias;
  p.buckets = in.buckets;
  p.times = in.times;
  p.time_buckets = tables.view();
  return p;
}

/// Nanoseconds of a row in one head.
double cost(const HstuAttentionProblem& p, std::int64_t row, int products) {
  const double length = static_cast<double>(p.offsets[row + 1] - p.offsets[row]);
  const double pairs = length * (p.causal ? (length + 1) / 2 : length);
  return kRowCost + pairs * static_cast<double>(p.width * products) / kRate;
}

/// Cuts the rows into at most `shares` runs of about the same cost: where each begins, and the end.
std::vector<std::int64_t> share_rows(const HstuAttentionProblem& p, int products, double total,
                                     std::int64_t shares) {
  std::vector<std::int64_t> begins{0};
  double done = 0.0;
  for (std::int64_t row = 0; row < p.rows; ++row) {
    done += cost(p, row, products);
    const double next = total * static_cast<double>(begins.size()) / static_cast<double>(shares);
    if (done >= next && row + 1 < p.rows) begins.push_back(row + 1);
  }
  begins.push_back(p.rows);
  return begins;
}

/// Calls body(task, scratch) for every task; each thread has `floats` of scratch memory.
template <typename Body>
void parallel_with_scratch(std::int64_t tasks, int threads, std::int64_t floats, const Body& body) {
  const std::int64_t workers = std::min<std::int64_t>(threads, tasks);
  std::atomic<std::int64_t> next{0};
  parallel(workers, static_cast<int>(workers), [&](std::int64_t) {
    AlignedBuffer<float> scratch(static_cast<std::size_t>(floats));
    for (;;) {
      const std::int64_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks) return;
      body(task, scratch.data());
    }
  });
}

/// out[i] = the sum of `shares` arrays of `size`, in their order.
void add_shares(const float* parts, std::int64_t shares, std::int64_t size, float* out) {
  for (std::int64_t i = 0; i < size; ++i) {
    double sum = 0.0;
    for (std::int64_t share = 0; share < shares; ++share) sum += parts[share * size + i];
    out[i] = static_cast<float>(sum);
  }
}

struct Plan {
  int threads;
  std::vector<std::int64_t> begins;
  std::int64_t shares() const { return static_cast<std::int64_t>(begins.size()) - 1; }
  std::int64_t begin(std::int64_t share) const { return begins[static_cast<std::size_t>(share)]; }
};

/// Heads that a task takes: all, row after row, so that it finds a row in the cache for the second
/// head; a task each where there are few shares.
std::int64_t heads_each(const HstuAttentionProblem& p, const Plan& plan) {
  return plan.threads == 1 || plan.shares() >= 2 * plan.threads ? p.heads : 1;
}

/// `fixed`: shares that do not depend on the threads.
Plan plan_of(const HstuAttentionProblem& p, int products, int threads, bool fixed) {
  double total = 0.0;
  for (std::int64_t row = 0; row < p.rows; ++row) total += cost(p, row, products);
  const int worth = threads_worth(total * static_cast<double>(p.heads), threads);
  const std::int64_t shares = fixed ? kSumShares : worth == 1 ? 1 : worth * kSharesEach;
  return {worth, share_rows(p, products, total, shares)};
}

}  // namespace

void hstu_attention(const HstuAttentionInput& input, float* out, int threads,
                    const KernelTable& table) {
  check_offsets(input.offsets, input.rows, input.tokens, "tokens of q");
  if (input.tokens == 0 || input.heads == 0 || input.width == 0) return;
  const TimeTables tables(input.time_bounds, input.time_bias ? input.buckets : 0);
  const HstuAttentionProblem p = problem_of(input, tables);
  const HstuAttentionKernels& kernel = *table.hstu_attention;
  const Plan plan = plan_of(p, 2, threads, false);
  // Where there are fewer rows and heads than threads could use, long rows are cut by queries.
  const std::int64_t together = heads_each(p, plan), groups = p.heads / together;
  const std::int64_t units = plan.shares() * groups;
  const std::int64_t wanted = plan.threads == 1 ? 1 : (4 * plan.threads + units - 1) / units;
  const std::int64_t even = (p.max_length + wanted - 1) / wanted;
  const std::int64_t piece = std::max(kLeastPiece, even);
  const std::int64_t pieces = (p.max_length + piece - 1) / piece;
  parallel_with_scratch(
      units * pieces, plan.threads, kernel.forward_scratch(p),
      [&](std::int64_t task, float* scratch) {
        const std::int64_t unit = task / pieces, first = task % pieces * piece;
        const std::int64_t share = unit / groups, head = unit % groups * together;
        for (std::int64_t row = plan.begin(share); row < plan.begin(share + 1); ++row) {
          const std::int64_t end = std::min(first + piece, p.offsets[row + 1] - p.offsets[row]);
          if (first >= end) continue;
          for (std::int64_t h = head; h < head + together; ++h) {
            kernel.forward(p, row, h, first, end, scratch, out);
          }
        }
      });
}

void hstu_attention_backward(const HstuAttentionInput& input, const HeadsView<const float>& d_out,
                             const HstuAttentionOutput& output, int threads,
                             const KernelTable& table) {
  check_offsets(input.offsets, input.rows, input.tokens, "tokens of q");
  const std::int64_t distances = output.bias ? input.distances : 0;
  const std::int64_t buckets = output.time_bias ? input.buckets : 0;
  if (input.tokens == 0 || input.heads == 0 || input.width == 0) {
    std::fill_n(output.bias, distances * input.heads, 0.0f);
    std::fill_n(output.time_bias, buckets * input.heads, 0.0f);
    return;
  }
  const TimeTables tables(input.time_bounds, input.time_bias ? input.buckets : 0);
  const HstuAttentionProblem p = problem_of(input, tables);
  const HstuAttentionKernels& kernel = *table.hstu_attention;
  const Plan plan = plan_of(p, 5, threads, distances + buckets > 0);
  const std::int64_t together = heads_each(p, plan), groups = p.heads / together;
  const std::int64_t shares = plan.shares(), lists = shares * p.heads;
  AlignedBuffer<float> sums(static_cast<std::size_t>(lists * (distances + buckets)));
  std::fill_n(sums.data(), sums.size(), 0.0f);
  float* time_sums = sums.data() + lists * distances;
  parallel_with_scratch(
      shares * groups, plan.threads, kernel.backward_scratch(p),
      [&](std::int64_t task, float* scratch) {
        const std::int64_t share = task / groups, head = task % groups * together;
        HstuAttentionGradients g{d_out, output.q, output.k, output.v, nullptr, nullptr};
        for (std::int64_t row = plan.begin(share); row < plan.begin(share + 1); ++row) {
          if (p.offsets[row] == p.offsets[row + 1]) continue;
          for (std::int64_t h = head; h < head + together; ++h) {
            const std::int64_t list = share * p.heads + h;
            if (distances > 0) g.bias = sums.data() + list * distances;
            if (buckets > 0) g.time_bias = time_sums + list * buckets;
            kernel.backward(p, g, row, h, scratch);
          }
        }
      });
  if (distances > 0) add_shares(sums.data(), shares, p.heads * distances, output.bias);
  if (buckets > 0) add_shares(time_sums, shares, p.heads * buckets, output.time_bias);
}

}  // namespace seqrec
