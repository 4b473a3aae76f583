// SPDX-License-Identifier: Apache-2.0
#include "ops/dropout.h"

#include <algorithm>
#include <cmath>

#include "base/thread_pool.h"

namespace seqrec {

Dropout make_dropout(std::uint64_t seed, double p) {
  Dropout d{};
  d.seed = seed;
  constexpr double kDraws = 16777216.0;
  d.threshold = static_cast<std::int32_t>(std::min(std::nearbyint(p * kDraws), kDraws - 1.0));
  d.scale = static_cast<float>(kDraws / (kDraws - d.threshold));
  return d;
}

void dropout(const DropoutProblem& problem, std::int64_t rows, int threads,
             const KernelTable& table) {
  const double elements = static_cast<double>(rows) * static_cast<double>(problem.columns);
  const int shares = threads_worth(0.4 * elements, threads);
  parallel(shares, shares, [&](std::int64_t share) {
    table.dropout->apply(problem, rows * share / shares, rows * (share + 1) / shares);
  });
}

}  // namespace seqrec
