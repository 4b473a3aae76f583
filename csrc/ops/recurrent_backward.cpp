// SPDX-License-Identifier: Apache-2.0
#include "ops/recurrent_backward.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "base/aligned.h"
#include "base/huge_pages.h"
#include "base/offsets.h"
#include "base/thread_pool.h"

namespace seqrec {
namespace {

constexpr double kFlopsPerNanosecond = 50.0;  // of one thread at least
constexpr double kSumsPerNanosecond = 1.0;
constexpr std::int64_t kMostShares = 32;
// Rows at work in a time step, on average, below which a share would reload weights too often.
constexpr std::int64_t kRowsAtWork = 32;
constexpr std::int64_t kPartialBytes = std::int64_t{128} << 20;  // of all shares together

std::int64_t length(const RecurrentProblem& p, std::int64_t row) {
  return p.offsets[row + 1] - p.offsets[row];
}

/// All rows, longest first.
std::vector<std::int64_t> longest_first(const RecurrentProblem& p) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(p.rows));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  const auto longer = [&](std::int64_t a, std::int64_t b) { return length(p, a) > length(p, b); };
  if (!std::is_sorted(order.begin(), order.end(), longer)) {
    std::stable_sort(order.begin(), order.end(), longer);
  }
  return order;
}

}  // namespace

void recurrent_backward(const RecurrentProblem& p, const RecurrentGradients& g, int threads,
                        const KernelTable& table) {
  check_offsets(p.offsets, p.rows, p.tokens, "tokens of x");
  const RecurrentBackwardKernels& kernels = *table.recurrent_backward;
  const std::vector<std::int64_t> order = longest_first(p);
  const std::int64_t longest = p.rows == 0 ? 0 : std::max<std::int64_t>(1, length(p, order[0]));
  const std::int64_t partial = kernels.partial_size(p);

  // Decided by the problem alone, never by the number of threads.
  const std::int64_t at_work = p.rows == 0 ? 0 : (p.tokens + longest - 1) / longest;
  const std::int64_t shares = std::clamp<std::int64_t>(
      std::min((at_work + kRowsAtWork / 2) / kRowsAtWork, kPartialBytes / (4 * partial)), 1,
      kMostShares);
  // Neighbours by length stay together, so that the steps of a share are full for long.
  std::vector<std::int64_t> begin{0};
  std::int64_t row = 0, tokens = 0;
  for (std::int64_t s = 1; s < shares; ++s) {
    while (row < p.rows && tokens * shares < p.tokens * s) {
      tokens += length(p, order[static_cast<std::size_t>(row++)]);
    }
    begin.push_back(row);
  }
  begin.push_back(p.rows);

  AlignedBuffer<float> packed(static_cast<std::size_t>(kernels.packed_size(p)));
  AlignedBuffer<float> partials(static_cast<std::size_t>(shares * partial));
  advise_huge_pages(partials.data(), 4 * shares * partial);
  advise_huge_pages(g.dx, 4 * p.tokens * p.inputs);
  kernels.pack(p, packed.data());

  const double work = 4.0 * static_cast<double>(recurrent_gates(p.cell) * p.hidden) *
                      static_cast<double>(p.inputs + p.hidden) * static_cast<double>(p.tokens);
  const int helpers = threads_worth(work / kFlopsPerNanosecond,
                                    static_cast<int>(std::min<std::int64_t>(threads, shares)));
  const std::int64_t chunk = kernels.chunk_tokens(p);
  parallel(shares, helpers, [&](std::int64_t s) {
    const auto at = static_cast<std::size_t>(s);
    AlignedBuffer<float> scratch(static_cast<std::size_t>(kernels.scratch_size(p)));
    AlignedBuffer<RecurrentToken> chunk_tokens(static_cast<std::size_t>(chunk));
    AlignedBuffer<float*> targets(static_cast<std::size_t>(2 * chunk));
    AlignedBuffer<const char*> ahead(static_cast<std::size_t>(kernels.ahead_size(p)));
    const RecurrentBackwardShare share{order.data() + begin[at],
                                       begin[at + 1] - begin[at],
                                       packed.data(),
                                       scratch.data(),
                                       chunk_tokens.data(),
                                       targets.data(),
                                       ahead.data(),
                                       partials.data() + s * partial};
    kernels.run(p, g, share);
  });

  const std::int64_t groups = kernels.groups(p);
  const double sums = static_cast<double>(shares * partial);
  const int adders = threads_worth(sums / kSumsPerNanosecond,
                                   static_cast<int>(std::min<std::int64_t>(threads, groups)));
  parallel(adders, adders, [&](std::int64_t i) {
    kernels.sum(p, g, partials.data(), shares, groups * i / adders, groups * (i + 1) / adders);
  });
}

}  // namespace seqrec
