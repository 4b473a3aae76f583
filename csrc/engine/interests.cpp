// SPDX-License-Identifier: Apache-2.0
#include "engine/interests.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/scratch.h"
#include "base/thread_pool.h"
#include "engine/encoder.h"
#include "ops/linear.h"

namespace seqrec {
namespace {

// Bound of a weight's logarithm, as in training (seqrec_fast/nn/interests.py).
constexpr float kMostLogit = 20.0f;
// Items whose weights are computed together.
constexpr std::int64_t kWeighedItems = 256;
// Users of one task, and events that are summed before their sum is added to that of the history:
// short sums keep the rounding of a long history small.
constexpr std::int64_t kTaskUsers = 32;
constexpr std::int64_t kSummedEvents = 32;
constexpr double kRate = 4.0;  // multiply-adds a nanosecond on one core, on the low side

}  // namespace

InterestHead::InterestHead(const InterestConfig& config, const Tensors& tensors,
                           const KernelTable& table)
    : config_(config), pooled_(config.interests - 1), table_(table) {
  embedding_ = tensors.rows("item_embedding.weight", config.num_items * config.dim);
  const float* gains = tensors.at("interest_head.gain", pooled_ * config.dim);
  gains_.assign(gains, gains + pooled_ * config.dim);
  weigh(tensors);
}

void InterestHead::weigh(const Tensors& tensors) {
  const std::int64_t dim = config_.dim, width = 4 * config_.interests;
  const float* first = tensors.at("interest_head.hidden.weight", width * dim);
  const float* shift = tensors.at("interest_head.hidden.bias", width);
  const float* second = tensors.at("interest_head.scores.weight", pooled_ * width);
  const PackedLinear inner = pack_linear(first, dim, 1, width, dim, shift, table_);
  const PackedLinear outer = pack_linear(second, width, 1, pooled_, width, nullptr, table_);
  weights_ = AlignedBuffer<float>(static_cast<std::size_t>(config_.num_items * pooled_));
  const std::int64_t most = std::min(kWeighedItems, config_.num_items);
  Scratch<float> items(most * dim), middle(most * width), scratch(table_.linear->scratch);
  for (std::int64_t item = 0; item < config_.num_items; item += kWeighedItems) {
    const std::int64_t count = std::min(kWeighedItems, config_.num_items - item);
    float* out = weights_.data() + item * pooled_;
    table_.topk->widen(embedding_, dim, nullptr, item, count, items.data());
    multiply(inner, items.data(), dim, count, Activation::kTanh, middle.data(), width,
             scratch.data());
    multiply(outer, middle.data(), width, count, Activation::kNone, out, pooled_, scratch.data());
    for (std::int64_t i = 0; i < count * pooled_; ++i) {
      out[i] = std::exp(std::clamp(out[i], -kMostLogit, kMostLogit));
    }
  }
}

void InterestHead::pool(const std::int32_t* items, std::int64_t count, float* out) const {
  const std::int64_t dim = config_.dim, size = pooled_ * dim;
  Scratch<float> vectors(kSummedEvents * dim), part(size + pooled_), mass(pooled_);
  std::fill_n(out, size, 0.0f);
  std::fill_n(mass.data(), pooled_, 0.0f);
  float* part_mass = part.data() + size;
  for (std::int64_t begin = 0; begin < count; begin += kSummedEvents) {
    const std::int64_t some = std::min(kSummedEvents, count - begin);
    table_.topk->widen(embedding_, dim, items + begin, 0, some, vectors.data());
    std::fill_n(part.data(), size + pooled_, 0.0f);
    for (std::int64_t s = 0; s < some; ++s) {
      const float* weight = weights_.data() + std::int64_t{items[begin + s]} * pooled_;
      const float* __restrict vector = vectors.data() + s * dim;
      for (std::int64_t k = 0; k < pooled_; ++k) {
        float* __restrict sum = part.data() + k * dim;
        const float by = weight[k];
        part_mass[k] += by;
        for (std::int64_t d = 0; d < dim; ++d) sum[d] += by * vector[d];
      }
    }
    for (std::int64_t i = 0; i < size; ++i) out[i] += part[i];
    for (std::int64_t k = 0; k < pooled_; ++k) mass[k] += part_mass[k];
  }
  for (std::int64_t k = 0; k < pooled_; ++k) {
    for (std::int64_t d = 0; d < dim; ++d) out[k * dim + d] *= gains_[k * dim + d] / mass[k];
  }
}

void InterestHead::apply(const JaggedView<std::int32_t>& histories, const float* hidden, float* out,
                         int threads) const {
  const std::int64_t dim = config_.dim, interests = config_.interests, size = interests * dim;
  const std::int64_t rows = histories.rows, tasks = (rows + kTaskUsers - 1) / kTaskUsers;
  if (rows == 0) return;
  std::int64_t tokens = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t length = histories.offsets[row + 1] - histories.offsets[row];
    tokens += config_.window > 0 ? std::min(length, config_.window) : length;
  }
  const double cost = static_cast<double>(size * (tokens + rows)) / kRate;
  const int worth = threads_worth(cost, static_cast<int>(std::min<std::int64_t>(tasks, threads)));
  parallel(tasks, worth, [&](std::int64_t task) {
    const std::int64_t first = task * kTaskUsers, count = std::min(kTaskUsers, rows - first);
    float* to = out + first * size;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t end = histories.offsets[first + i + 1];
      std::int64_t begin = histories.offsets[first + i];
      if (config_.window > 0) begin = std::max(begin, end - config_.window);
      const float* state = hidden + (first + i) * dim;
      float* at = to + i * size;
      std::copy_n(state, dim, at);
      pool(histories.values + begin, end - begin, at + dim);
      for (std::int64_t k = 1; k < interests; ++k) {
        for (std::int64_t d = 0; d < dim; ++d) at[k * dim + d] += state[d];
      }
    }
    if (config_.unit) scale_to_unit(to, count * interests, dim);
  });
}

void merge_interests(const float* each_scores, const std::int64_t* each_ids, std::int64_t users,
                     std::int64_t interests, std::int64_t k, int threads, float* scores,
                     std::int64_t* ids) {
  const std::int64_t width = interests * k;
  const double cost = static_cast<double>(users * width) * 20.0;  // nanoseconds, roughly
  const int worth = threads_worth(cost, static_cast<int>(std::min<std::int64_t>(users, threads)));
  parallel(users, worth, [&](std::int64_t user) {
    Scratch<std::int64_t> order(width);
    const float* from = each_scores + user * width;
    const std::int64_t* items = each_ids + user * width;
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < width; ++i) {
      if (items[i] >= 0) order[count++] = i;
    }
    std::int64_t* begin = order.data();
    std::sort(begin, begin + count, [&](std::int64_t a, std::int64_t b) {
      return items[a] != items[b] ? items[a] < items[b] : from[a] > from[b];
    });
    count = std::unique(begin, begin + count,
                        [&](std::int64_t a, std::int64_t b) { return items[a] == items[b]; }) -
            begin;
    const std::int64_t kept = std::min(count, k);
    std::partial_sort(begin, begin + kept, begin + count, [&](std::int64_t a, std::int64_t b) {
      return from[a] != from[b] ? from[a] > from[b] : items[a] < items[b];
    });
    float* to = scores + user * k;
    for (std::int64_t i = 0; i < k; ++i) {
      to[i] = i < kept ? from[order[i]] : -std::numeric_limits<float>::infinity();
      ids[user * k + i] = i < kept ? items[order[i]] : -1;
    }
  });
}

}  // namespace seqrec
