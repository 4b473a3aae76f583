// SPDX-License-Identifier: Apache-2.0
// RNN, LSTM and GRU encoders: item embedding, recurrent layers, linear projection.
//
// The state of a user is the hidden state of each layer (lstm: and its cell state), so that a
// history of any length costs the same memory and a further event one step.
#pragma once

#include <vector>

#include "base/aligned.h"
#include "engine/encoder.h"
#include "engine/tensors.h"
#include "kernels/recurrent_types.h"

namespace seqrec {

struct RecurrentConfig {
  RecurrentCell cell;
  CellActivation activation;
  std::int64_t num_items, dim, hidden, layers;
  bool unit;
};

class RecurrentEncoder final : public Encoder {
 public:
  /// Packs the weights; the item embedding is read where it lies. Throws std::invalid_argument
  /// where a tensor is missing or has another size, and std::bad_alloc.
  RecurrentEncoder(const RecurrentConfig& config, const Tensors& tensors, const KernelTable& table);

  std::int64_t state_size() const override;
  std::int64_t token_size() const override { return 0; }
  void advance(const UserState* users, const JaggedView<std::int32_t>& events) const override;

 protected:
  void encode_group(const JaggedView<std::int32_t>& rows, float* out, int threads) const override;
  void embed_group(const UserState* users, std::int64_t count, float* out) const override;
  std::int64_t group_tokens() const override { return 8192; }
  std::int64_t group_rows() const override { return 128; }
  double token_cost() const override;

 private:
  struct Layer {
    RecurrentProblem problem;  // sizes and weights; what is computed is filled in by each run
    AlignedBuffer<float> packed;
  };

  std::int64_t states_a_layer() const { return config_.cell == RecurrentCell::kLstm ? 2 : 1; }

  /// Runs all layers over rows that come longest first, from `states` (null: from zeros), which
  /// are updated; the last hidden state of every row goes to `last` [rows, hidden], or null.
  void run(const JaggedView<std::int32_t>& rows, float* const* states, float* last,
           int threads) const;

  RecurrentConfig config_;
  ItemRows embedding_;
  AlignedBuffer<float> starts_;  // of every item in the first layer; empty where it would be large
  std::vector<Layer> layers_;
  PackedLinear projection_;
};

}  // namespace seqrec
