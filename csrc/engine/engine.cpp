// SPDX-License-Identifier: Apache-2.0
#include "engine/engine.h"

#include <algorithm>

#include "base/scratch.h"
#include "ops/topk.h"

namespace seqrec {
namespace {

// Tables of fewer floats lie in the second-level cache, where bytes save nothing.
constexpr std::int64_t kLeastBytes = std::int64_t{1} << 16;

// Items of 16 or 8 bits have a table of bytes beside them up to this size of it: it costs little
// and is faster than the scan of the items themselves.
constexpr std::int64_t kMostBesideCompact = std::int64_t{4} << 20;

// Items found by the interests of users who are ranked together: 12 bytes each.
constexpr std::int64_t kMostFound = std::int64_t{1} << 22;

}  // namespace

Engine::Engine(std::unique_ptr<Encoder> encoder, std::unique_ptr<InterestHead> head,
               const ItemRows& items, const float* bias,
               std::shared_ptr<const ByteItemBounds> bounds, int threads, const KernelTable& table)
    : encoder_(std::move(encoder)),
      head_(std::move(head)),
      items_(items),
      bias_(bias),
      table_(table),
      bounds_(std::move(bounds)) {
  const std::int64_t count = encoder_->num_items(), dim = encoder_->dim();
  const bool fits = items.floats != nullptr || count * dim <= kMostBesideCompact;
  if (count * dim >= kLeastBytes && dim <= kInt8MaxDim && fits) {
    bytes_ = std::make_unique<Int8Table>(items, bias, count, dim, threads);
  }
}

void Engine::rank(const float* queries, std::int64_t count, const Exclusions& excluded,
                  std::int64_t k, int threads, float* scores, std::int64_t* ids) const {
  TopkProblem problem{queries, items_, bias_, excluded.blocked, excluded.seen, count, 0, 0, k};
  problem.num_items = encoder_->num_items();
  problem.dim = encoder_->dim();
  if (bytes_) {
    score_topk_int8(problem, bytes_->view(), threads, table_, scores, ids);
  } else if (bounds_) {
    score_topk_int8(problem, bounds_->view(), threads, table_, scores, ids);
  } else {
    score_topk(problem, threads, table_, scores, ids);
  }
}

void Engine::encode(const JaggedView<std::int32_t>& histories, float* out, int threads) const {
  if (!head_) return encoder_->encode(histories, out, threads);
  Scratch<float> hidden(histories.rows * encoder_->dim());
  encoder_->encode(histories, hidden.data(), threads);
  head_->apply(histories, hidden.data(), out, threads);
}

void Engine::rank_interests(const float* queries, std::int64_t users, std::int64_t interests,
                            const Exclusions& excluded, std::int64_t k, int threads, float* scores,
                            std::int64_t* ids) const {
  if (interests == 1) return rank(queries, users, excluded, k, threads, scores, ids);
  const std::int64_t dim = encoder_->dim(),
                     most = std::max(kMostFound / (interests * k), std::int64_t{1});
  for (std::int64_t begin = 0; begin < users; begin += most) {
    const std::int64_t count = std::min(most, users - begin);
    Exclusions part = excluded;
    if (part.seen.values != nullptr) {
      part.seen.offsets += begin;
      part.seen.rows = count;
    }
    rank_part(queries + begin * interests * dim, count, interests, part, k, threads,
              scores + begin * k, ids + begin * k);
  }
}

void Engine::rank_part(const float* queries, std::int64_t users, std::int64_t interests,
                       const Exclusions& excluded, std::int64_t k, int threads, float* scores,
                       std::int64_t* ids) const {
  // The k best of a user are among the k best of the interests that score them best.
  const bool seen = excluded.seen.values != nullptr;
  Scratch<std::int64_t> offsets(seen ? users * interests + 1 : 0);
  Scratch<std::int32_t> values(
      seen ? (excluded.seen.offsets[users] - excluded.seen.offsets[0]) * interests : 0);
  Exclusions each{{}, excluded.blocked};
  if (seen) {
    offsets[0] = 0;
    for (std::int64_t row = 0; row < users * interests; ++row) {
      const std::int64_t begin = excluded.seen.offsets[row / interests];
      const std::int64_t count = excluded.seen.offsets[row / interests + 1] - begin;
      std::copy_n(excluded.seen.values + begin, count, values.data() + offsets[row]);
      offsets[row + 1] = offsets[row] + count;
    }
    each.seen = {values.data(), offsets.data(), users * interests};
  }
  Scratch<float> found(users * interests * k);
  Scratch<std::int64_t> items(users * interests * k);
  rank(queries, users * interests, each, k, threads, found.data(), items.data());
  merge_interests(found.data(), items.data(), users, interests, k, threads, scores, ids);
}

void Engine::recommend(const JaggedView<std::int32_t>& histories, const Exclusions& excluded,
                       std::int64_t k, int threads, float* scores, std::int64_t* ids) const {
  Scratch<float> queries(histories.rows * interests() * encoder_->dim());
  encode(histories, queries.data(), threads);
  rank_interests(queries.data(), histories.rows, interests(), excluded, k, threads, scores, ids);
}

}  // namespace seqrec
