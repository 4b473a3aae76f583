// SPDX-License-Identifier: Apache-2.0
#include "ops/attention.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "base/offsets.h"
#include "base/thread_pool.h"

namespace seqrec {
namespace {

// Multiply-adds, and bytes of a cache, a nanosecond on one core, on the low side.
constexpr double kRate = 20.0;
constexpr double kBytes = 10.0;

/// Calls body(task, scratch) for every row and head; on several threads longest rows first.
template <typename Length, typename Body>
void each_row_and_head(std::int64_t rows, std::int64_t heads, Length length, double nanoseconds,
                       int threads, std::int64_t scratch, Body body) {
  const std::int64_t tasks = rows * heads;
  const int shares = static_cast<int>(std::min<std::int64_t>(threads_worth(nanoseconds, threads),
                                                             std::max<std::int64_t>(tasks, 1)));
  std::vector<std::int64_t> order;
  if (shares > 1) {
    order.resize(static_cast<std::size_t>(rows));
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int64_t a, std::int64_t b) { return length(a) > length(b); });
  }
  std::atomic<std::int64_t> next{0};
  parallel(shares, shares, [&](std::int64_t) {
    AlignedBuffer<float> memory(static_cast<std::size_t>(scratch));
    for (;;) {
      const std::int64_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks) return;
      const auto row_of = [&](std::int64_t place) {
        return order.empty() ? place : order[static_cast<std::size_t>(place)];
      };
      const std::int64_t later = task + shares;
      const bool more = later < tasks;
      body(AttentionTask{row_of(task / heads), task % heads, more ? row_of(later / heads) : -1,
                         more ? later % heads : -1},
           memory.data());
    }
  });
}

struct Plan {
  std::int64_t longest = 0;
  double products = 0.0;  // multiply-adds of one product over all rows and heads
};

Plan plan_of(const AttentionProblem& p) {
  Plan plan;
  for (std::int64_t row = 0; row < p.rows; ++row) {
    const std::int64_t length = p.offsets[row + 1] - p.offsets[row];
    plan.longest = std::max(plan.longest, length);
    plan.products += static_cast<double>(length) * static_cast<double>(length);
  }
  plan.products *= static_cast<double>(p.heads * p.width) * (p.causal ? 0.5 : 1.0);
  return plan;
}

}  // namespace

void attention(const AttentionProblem& p, HeadsView<float> out, AttentionStatistics statistics,
               int threads, const KernelTable& table) {
  check_offsets(p.offsets, p.rows, p.tokens, "tokens of q");
  const Plan plan = plan_of(p);
  const auto length = [&](std::int64_t row) { return p.offsets[row + 1] - p.offsets[row]; };
  each_row_and_head(p.rows, p.heads, length, 2.0 * plan.products / kRate, threads,
                    table.attention->forward_scratch(p.width, plan.longest),
                    [&](const AttentionTask& task, float* scratch) {
                      table.attention->forward(p, task, scratch, out, statistics);
                    });
}

void attention_backward(const AttentionProblem& p, AttentionStatistics statistics,
                        const AttentionGradients& gradients, int threads,
                        const KernelTable& table) {
  check_offsets(p.offsets, p.rows, p.tokens, "tokens of q");
  const Plan plan = plan_of(p);
  const auto length = [&](std::int64_t row) { return p.offsets[row + 1] - p.offsets[row]; };
  each_row_and_head(p.rows, p.heads, length, 5.0 * plan.products / kRate, threads,
                    table.attention->backward_scratch(p.width, plan.longest),
                    [&](const AttentionTask& task, float* scratch) {
                      table.attention->backward(p, task, scratch, statistics, gradients);
                    });
}

void decode_attention(const DecodeProblem& p, std::int64_t cached, HeadsView<float> out,
                      int threads, const KernelTable& table) {
  check_offsets(p.offsets, p.rows, cached, "tokens of keys");
  double total = 0.0;
  for (std::int64_t row = 0; row < p.rows; ++row) {
    const std::int64_t length = p.length(row), room = p.offsets[row + 1] - p.offsets[row];
    if (length < 0 || length > room) {
      throw std::invalid_argument("lengths: row " + std::to_string(row) + " holds " +
                                  std::to_string(room) + " tokens, found " +
                                  std::to_string(length));
    }
    total += static_cast<double>(length);
  }
  const double bytes = total * static_cast<double>(p.heads * p.width) * 8.0;
  each_row_and_head(
      p.rows, p.heads, [&](std::int64_t row) { return p.length(row); }, bytes / kBytes, threads,
      table.decode->scratch(p.width),
      [&](const AttentionTask& task, float* scratch) {
        table.decode->decode(p, task.row, task.head, scratch, out);
      });
}

}  // namespace seqrec
