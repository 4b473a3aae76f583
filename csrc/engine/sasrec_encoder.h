// SPDX-License-Identifier: Apache-2.0
// The SASRec encoder: item and position embedding, pre-norm transformer blocks, a last layer norm.
//
// Only the last event of a history is embedded, so that the last block has one query a user, and
// needs neither keys nor values. With n_t the normed input of the block at event t, and one head,
//   q . k_t = q . (W_k n_t + b_k) = (W_k^T q) . n_t + a constant that the softmax ignores,
//   sum over t of a_t v_t = W_v (sum over t of a_t n_t) + b_v, since the a_t add up to 1.
// So the query is taken to the inputs instead of all inputs to the query: two products with one
// vector instead of two with every event. (DeepSeek-V2, 2024, absorbs its projections likewise.)
//
// The norm and the product that the first block begins with are taken from a table of the items
// (sequence_input.h) where that is not too large.
//
// The state of a user is keys and values of every block but the last, of that one the n_t, all in
// pages, and the last event's input of the last block. A further event costs the blocks before the
// last; the last one is computed when the embedding is asked for.
#pragma once

#include <vector>

#include "engine/encoder.h"
#include "engine/tensors.h"

namespace seqrec {

struct SasrecConfig {
  std::int64_t num_items, dim, heads, inner, layers, max_length;
  bool unit;
};

class SasrecEncoder final : public Encoder {
 public:
  /// Packs the weights; the embeddings are read where they lie. Throws std::invalid_argument where
  /// a tensor is missing or has another size, and std::bad_alloc.
  SasrecEncoder(const SasrecConfig& config, const Tensors& tensors, const KernelTable& table);

  std::int64_t state_size() const override { return config_.dim; }
  std::int64_t token_size() const override { return (2 * config_.layers - 1) * config_.dim; }
  void advance(const UserState* users, const JaggedView<std::int32_t>& events) const override;

 protected:
  void encode_group(const JaggedView<std::int32_t>& rows, float* out, int threads) const override;
  void embed_group(const UserState* users, std::int64_t count, float* out) const override;
  std::int64_t group_tokens() const override { return 512; }
  std::int64_t group_rows() const override { return 512; }
  double token_cost() const override;

 private:
  struct Norm {
    const float *weight, *bias;
  };
  /// What every block has: what follows its attention.
  struct Tail {
    Norm feed_forward_norm;
    PackedLinear out, up, down;
  };
  struct Block {
    Norm attention_norm;
    PackedLinear qkv;
    Tail tail;
  };
  struct LastBlock {
    Norm attention_norm;
    PackedLinear query;
    std::vector<PackedLinear> keys;    // of each head: W_k^T, from its width to dim
    std::vector<PackedLinear> values;  // of each head: W_v and b_v, from dim to its width
    Tail tail;
  };

  void fold_first_block(const Tensors& tensors);
  /// x [count, dim] = items and positions; for queries, keys and values of the first block, where
  /// there is one before the last, qkv [count, 3 dim]; otherwise `normed`, the norm of x.
  void begin(const std::int32_t* items, const std::int64_t* positions, std::int64_t count, float* x,
             float* normed, float* qkv) const;
  void normalise(const Norm& norm, const float* change, float* x, std::int64_t rows,
                 float* normed) const;
  /// From the attention of a block to the norm that follows it; x is updated.
  void finish_block(const Tail& tail, const Norm& following, const float* mixed, std::int64_t rows,
                    float* x, float* normed) const;
  /// All blocks before the last: x becomes the input of the last one and `normed` its norm. Where
  /// `users` is not null, what is kept of each event is stored.
  void prefill(const JaggedView<std::int32_t>& rows, const UserState* users, float* x,
               float* normed) const;
  void step(const UserState* users, const std::int32_t* items, std::int64_t count) const;
  /// The last block: one query a row, x [rows, dim] and its norm; `past` says where each row's
  /// n_t lie.
  void finish(const float* normed, DecodeProblem past, std::int64_t rows, float* x,
              float* out) const;

  void store(const UserState& user, std::int64_t layer, std::int64_t position, const float* from,
             std::int64_t stride, std::int64_t count) const;
  void decode(const DecodeProblem& problem, std::int64_t rows, float* out) const;

  /// Floats of an event in a layer's part of a page, and where that part begins.
  std::int64_t kept(std::int64_t layer) const {
    return (layer + 1 < config_.layers ? 2 : 1) * config_.dim;
  }
  std::int64_t part(std::int64_t layer) const { return layer * kPageTokens * 2 * config_.dim; }
  /// Keys and values of a layer in the pages of `users`; arrays of the caller.
  DecodeProblem pages(const UserState* users, std::int64_t count, std::int64_t layer,
                      std::int64_t more, const float* const** rows, std::int64_t* lengths) const;
  const Norm& norm_after(std::int64_t layer) const {
    return layer + 2 < config_.layers ? blocks_[static_cast<std::size_t>(layer + 1)].attention_norm
                                      : last_.attention_norm;
  }

  std::int64_t width() const { return config_.dim / config_.heads; }
  double scale() const;

  SasrecConfig config_;
  SequenceInput input_;
  TableBuffer<float> products_;  // what input_ names, from item_products on; may be empty
  std::vector<Block> blocks_;    // all but the last
  LastBlock last_;
  Norm final_norm_;
};

}  // namespace seqrec
