// SPDX-License-Identifier: Apache-2.0
#include "engine/engine.h"

#include "base/scratch.h"
#include "ops/topk.h"

namespace seqrec {
namespace {

// Tables of fewer floats lie in the second-level cache, where bytes save nothing.
constexpr std::int64_t kLeastBytes = std::int64_t{1} << 16;

// Items of 16 or 8 bits have a table of bytes beside them up to this size of it: it costs little
// and is faster than the scan of the items themselves.
constexpr std::int64_t kMostBesideCompact = std::int64_t{4} << 20;

}  // namespace

Engine::Engine(std::unique_ptr<Encoder> encoder, const ItemRows& items, const float* bias,
               std::shared_ptr<const ByteItemBounds> bounds, int threads, const KernelTable& table)
    : encoder_(std::move(encoder)),
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

void Engine::recommend(const JaggedView<std::int32_t>& histories, const Exclusions& excluded,
                       std::int64_t k, int threads, float* scores, std::int64_t* ids) const {
  Scratch<float> queries(histories.rows * encoder_->dim());
  encoder_->encode(histories, queries.data(), threads);
  rank(queries.data(), histories.rows, excluded, k, threads, scores, ids);
}

}  // namespace seqrec
