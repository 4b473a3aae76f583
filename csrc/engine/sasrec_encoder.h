// SPDX-License-Identifier: Apache-2.0
// The SASRec encoder: item and position embedding, pre-norm transformer blocks, a last layer norm.
//
// Only the last event of a history is embedded, so that the last block forms keys and values for
// every event, but a query, a feed-forward and everything after them for the last one alone.
//
// The state of a user is keys and values of every block, in pages, and the last event's input of
// the last block. An event then costs the blocks but for the end of the last one, which is computed
// when the embedding is asked for.
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
  std::int64_t token_size() const override { return 2 * config_.layers * config_.dim; }
  void advance(const UserState* users, const JaggedView<std::int32_t>& events) const override;

 protected:
  void encode_group(const JaggedView<std::int32_t>& rows, float* out) const override;
  void embed_group(const UserState* users, std::int64_t count, float* out) const override;
  std::int64_t group_tokens() const override { return 512; }
  std::int64_t group_rows() const override { return 512; }
  double token_cost() const override;

 private:
  struct Norm {
    const float *weight, *bias;
  };
  struct Block {
    Norm attention_norm, feed_forward_norm;
    PackedLinear qkv;    // of the last block: keys and values alone
    PackedLinear query;  // of the last block
    PackedLinear out, up, down;
  };

  void embed_items(const std::int32_t* items, const std::int64_t* positions, std::int64_t count,
                   float* x) const;
  void normalise(const Norm& norm, const float* change, float* x, std::int64_t rows,
                 float* normed) const;
  /// From the attention of a block to the norm that follows it; x is updated.
  void finish_block(const Block& block, const Norm& following, const float* mixed,
                    std::int64_t rows, float* x, float* normed) const;
  /// All of the blocks but what the last one does after its keys and values; x is its input.
  void prefill(const JaggedView<std::int32_t>& rows, const UserState* users, float* x,
               float* normed, float* kv) const;
  void step(const UserState* users, const std::int32_t* items, std::int64_t count) const;
  void store(const UserState& user, std::int64_t layer, std::int64_t position, const float* kv,
             std::int64_t stride, std::int64_t count) const;
  void attend_pages(const UserState* users, std::int64_t count, std::int64_t layer,
                    const float* queries, std::int64_t stride, std::int64_t more, float* out) const;

  std::int64_t width() const { return config_.dim / config_.heads; }
  double scale() const;

  SasrecConfig config_;
  const float *items_, *positions_;
  std::vector<Block> blocks_;
  Norm final_norm_;
};

}  // namespace seqrec
