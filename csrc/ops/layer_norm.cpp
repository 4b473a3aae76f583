// SPDX-License-Identifier: Apache-2.0
#include "ops/layer_norm.h"

#include <algorithm>

#include "base/partial_sums.h"
#include "base/thread_pool.h"

namespace seqrec {
namespace {

constexpr std::int64_t kRowsOfShare = 256;

/// Nanoseconds on one thread; a row costs about 15 beside its elements.
double cost(std::int64_t rows, std::int64_t dim, double element) {
  return static_cast<double>(rows) * (15.0 + element * static_cast<double>(dim));
}

}  // namespace

void layer_norm(const LayerNormForward& problem, std::int64_t rows, int threads,
                const KernelTable& table) {
  const int shares = threads_worth(cost(rows, problem.dim, 0.3), threads);
  parallel(shares, shares, [&](std::int64_t share) {
    table.layer_norm->forward(problem, rows * share / shares, rows * (share + 1) / shares);
  });
}

void layer_norm_backward(const LayerNormBackward& problem, std::int64_t rows, float* d_weight,
                         float* d_bias, int threads, const KernelTable& table) {
  const std::int64_t dim = problem.dim;
  PartialSums sums(rows, kRowsOfShare, 2 * dim);
  const std::int64_t shares = sums.shares();
  parallel(shares, threads_worth(cost(rows, dim, 0.6), threads), [&](std::int64_t share) {
    float* mine = sums.begin(share);
    table.layer_norm->backward(problem, rows * share / shares, rows * (share + 1) / shares, mine,
                               mine + dim);
  });
  sums.total(0, dim, d_weight);
  sums.total(dim, dim, d_bias);
}

}  // namespace seqrec
