// SPDX-License-Identifier: Apache-2.0
// From histories to recommendations in one call: an encoder and the items that it ranks.
#pragma once

#include <memory>

#include "engine/encoder.h"
#include "engine/interests.h"
#include "ops/topk_int8.h"

namespace seqrec {

/// What is left out of a ranking. Pointers of the caller.
struct Exclusions {
  JaggedView<std::int32_t> seen;  // a row a user, in any order; values null: nothing
  const std::uint8_t* blocked;    // [num_items], not 0 = hidden from all users, or null
};

/// A model ready to serve. It never changes, so that any number of threads may share it.
class Engine {
 public:
  /// `items` [num_items, dim] and `bias` [num_items] or null are read where they lie; `bounds` are
  /// those of items that are bytes, else null. `head` is that of a model of several interests,
  /// whose encoder then does not scale its embeddings; else null.
  Engine(std::unique_ptr<Encoder> encoder, std::unique_ptr<InterestHead> head,
         const ItemRows& items, const float* bias, std::shared_ptr<const ByteItemBounds> bounds,
         int threads, const KernelTable& table);

  const Encoder& encoder() const { return *encoder_; }

  /// Embeddings of a user.
  std::int64_t interests() const { return head_ ? head_->interests() : 1; }

  /// out [rows, interests, dim] = the embeddings of histories, none of them empty.
  void encode(const JaggedView<std::int32_t>& histories, float* out, int threads) const;

  /// The k best items of each query by descending score (equal scores: lower id first) into
  /// `scores` and `ids`, both [count, k]; -inf and -1 where there are fewer.
  void rank(const float* queries, std::int64_t count, const Exclusions& excluded, std::int64_t k,
            int threads, float* scores, std::int64_t* ids) const;

  /// The same for users of several interests, by the best score of each item: `queries` are
  /// [users, interests, dim], and all else has one row a user.
  void rank_interests(const float* queries, std::int64_t users, std::int64_t interests,
                      const Exclusions& excluded, std::int64_t k, int threads, float* scores,
                      std::int64_t* ids) const;

  /// The same for the embeddings of histories, none of them empty.
  void recommend(const JaggedView<std::int32_t>& histories, const Exclusions& excluded,
                 std::int64_t k, int threads, float* scores, std::int64_t* ids) const;

  /// Bytes beside the tensors that were given.
  std::size_t table_bytes() const {
    return (head_ ? head_->table_bytes() : 0) + (bytes_ ? bytes_->bytes() : 0) +
           (bounds_ ? bounds_->bytes() : 0);
  }

 private:
  void rank_part(const float* queries, std::int64_t users, std::int64_t interests,
                 const Exclusions& excluded, std::int64_t k, int threads, float* scores,
                 std::int64_t* ids) const;

  std::unique_ptr<Encoder> encoder_;
  std::unique_ptr<InterestHead> head_;
  ItemRows items_;
  const float* bias_;
  const KernelTable& table_;
  std::unique_ptr<Int8Table> bytes_;
  std::shared_ptr<const ByteItemBounds> bounds_;
};

}  // namespace seqrec
