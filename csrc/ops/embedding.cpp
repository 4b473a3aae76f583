// SPDX-License-Identifier: Apache-2.0
#include "ops/embedding.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "base/aligned.h"
#include "base/offsets.h"
#include "base/thread_pool.h"

namespace seqrec {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

void check_ids(const EmbeddingProblem& p) {
  for (std::int64_t t = 0; t < p.tokens; ++t) {
    if (p.ids[t] < 0 || p.ids[t] >= p.items) {
      refuse("ids: found " + std::to_string(p.ids[t]) + " at token " + std::to_string(t) +
             ", but the rows of weight are 0 to " + std::to_string(p.items - 1));
    }
  }
}

/// The place of every token in its row; empty without offsets.
AlignedBuffer<std::int64_t> places(const EmbeddingProblem& p) {
  if (p.offsets == nullptr) return {};
  check_offsets(p.offsets, p.rows, p.tokens, "tokens of ids");
  AlignedBuffer<std::int64_t> found(static_cast<std::size_t>(p.tokens));
  for (std::int64_t row = 0; row < p.rows; ++row) {
    const std::int64_t begin = p.offsets[row], length = p.offsets[row + 1] - begin;
    if (length > p.positions) {
      refuse("offsets: row " + std::to_string(row) + " has " + std::to_string(length) +
             " tokens, but there are " + std::to_string(p.positions) + " positions");
    }
    for (std::int64_t i = 0; i < length; ++i) found[static_cast<std::size_t>(begin + i)] = i;
  }
  return found;
}

}  // namespace

void embed(const EmbeddingProblem& p, const float* table, const float* position_table, float* out,
           int threads, const KernelTable& kernels) {
  check_ids(p);
  const AlignedBuffer<std::int64_t> place = places(p);
  const bool positions = p.offsets != nullptr;
  const EmbeddingGather gather{table,
                               p.ids,
                               positions ? position_table : nullptr,
                               positions ? place.data() : nullptr,
                               out,
                               p.dim,
                               p.dropout};
  const double elements = static_cast<double>(p.tokens) * static_cast<double>(p.dim);
  const int shares = threads_worth(0.5 * elements, threads);
  parallel(shares, shares, [&](std::int64_t share) {
    kernels.embedding->gather(gather, p.tokens * share / shares, p.tokens * (share + 1) / shares);
  });
}

void embed_backward(const EmbeddingProblem& p, const float* gradient, float* d_table,
                    float* d_positions, int threads, const KernelTable& kernels) {
  check_ids(p);
  const AlignedBuffer<std::int64_t> place = places(p);
  const auto scatter = [&](const std::int64_t* ids, std::int64_t size, float* sums,
                           std::int64_t share, std::int64_t shares) {
    const std::int64_t first = size * share / shares, end = size * (share + 1) / shares;
    std::fill(sums + first * p.dim, sums + end * p.dim, 0.0f);
    kernels.embedding->scatter({gradient, ids, sums, p.tokens, p.dim, p.dropout}, first, end);
  };
  const double written = static_cast<double>(p.items) * static_cast<double>(p.dim);
  const double elements = static_cast<double>(p.tokens) * static_cast<double>(p.dim);
  const int shares = threads_worth(0.1 * written + elements, threads);
  parallel(shares, shares, [&](std::int64_t share) {
    scatter(p.ids, p.items, d_table, share, shares);
    if (p.offsets == nullptr) return;
    scatter(place.data(), p.positions, d_positions, share, shares);
  });
}

}  // namespace seqrec
