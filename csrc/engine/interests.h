// SPDX-License-Identifier: Apache-2.0
// Several interests of a user: what a head of attention adds to the embedding of an encoder.
//
// The first interest of a history of items e_s is the encoder's embedding h; interest k after it is
// h + g[k] * sum_s a_sk e_s / sum_s a_sk (number by number), where a_sk = exp(W2[k] . tanh(W1 e_s +
// b1)) depends on the item alone: it is computed once for every item.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/aligned.h"
#include "base/jagged.h"
#include "engine/tensors.h"
#include "isa/kernel_table.h"

namespace seqrec {

struct InterestConfig {
  std::int64_t num_items, dim;
  std::int64_t interests;  // at least 2
  std::int64_t window;     // most recent events that are read, as by the encoder; 0: all
  bool unit;               // interests are scaled to length 1
};

/// Never changes after it is made, so that any number of threads may share it.
class InterestHead {
 public:
  /// Reads the tensors `interest_head.*`, and `item_embedding.weight` where it lies.
  InterestHead(const InterestConfig& config, const Tensors& tensors, const KernelTable& table);

  std::int64_t interests() const { return config_.interests; }

  /// out [rows, interests, dim] of histories, none of them empty; `hidden` [rows, dim] are their
  /// embeddings, not scaled. Throws std::bad_alloc.
  void apply(const JaggedView<std::int32_t>& histories, const float* hidden, float* out,
             int threads) const;

  std::size_t table_bytes() const { return weights_.size() * sizeof(float); }

 private:
  void weigh(const Tensors& tensors);
  void pool(const std::int32_t* items, std::int64_t count, float* out) const;

  InterestConfig config_;
  std::int64_t pooled_;  // interests that pool events: all but the first
  ItemRows embedding_;
  const KernelTable& table_;
  std::vector<float> gains_;      // [pooled, dim]: g
  AlignedBuffer<float> weights_;  // [num_items, pooled]: a
};

/// The k best of each user by an item's best score: lists [users, interests, k] of scores and ids
/// as score_topk gives them become `scores` and `ids` [users, k]. Equal scores: lower id first.
void merge_interests(const float* each_scores, const std::int64_t* each_ids, std::int64_t users,
                     std::int64_t interests, std::int64_t k, int threads, float* scores,
                     std::int64_t* ids);

}  // namespace seqrec
