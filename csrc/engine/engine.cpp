// SPDX-License-Identifier: Apache-2.0
#include "engine/engine.h"

#include "base/scratch.h"
#include "ops/topk.h"

namespace seqrec {
namespace {

// Tables of fewer floats lie in the second-level cache, where bytes save nothing.
constexpr std::int64_t kLeastBytes = std::int64_t{1} << 16;

}  // namespace

Engine::Engine(std::unique_ptr<Encoder> encoder, const float* items, const float* bias, int threads,
               const KernelTable& table)
    : encoder_(std::move(encoder)), items_(items), bias_(bias), table_(table) {
  const std::int64_t count = encoder_->num_items(), dim = encoder_->dim();
  if (count * dim >= kLeastBytes && dim <= kInt8MaxDim) {
    bytes_ = std::make_unique<Int8Table>(items, bias, count, dim, threads);
  }
}

void Engine::rank(const float* queries, std::int64_t count, const Exclusions& excluded,
                  std::int64_t k, int threads, float* scores, std::int64_t* ids) const {
  TopkProblem problem{queries, items_, bias_, excluded.blocked, excluded.seen, count, 0, 0, k};
  problem.num_items = encoder_->num_items();
  problem.dim = encoder_->dim();
  if (bytes_) {
    score_topk_int8(problem, *bytes_, threads, table_, scores, ids);
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
