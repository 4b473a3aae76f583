// SPDX-License-Identifier: Apache-2.0
#include "engine/recurrent_encoder.h"

#include <algorithm>

#include "base/huge_pages.h"
#include "base/scratch.h"
#include "ops/recurrent.h"

namespace seqrec {
namespace {

// Rows of a batch of single steps: their inputs and sums stay in the second-level cache.
constexpr std::int64_t kStepRows = 128;
// Items whose products are made together: whole tiles of every cell and instruction set.
constexpr std::int64_t kFoldedRows = 240;

}  // namespace

RecurrentEncoder::RecurrentEncoder(const RecurrentConfig& config, const Tensors& tensors,
                                   const KernelTable& table)
    : Encoder(config.num_items, config.dim, 0, config.unit, table), config_(config) {
  embedding_ = tensors.rows("item_embedding.weight", config.num_items * config.dim);
  const std::int64_t hidden = config.hidden, rows = recurrent_gates(config.cell) * hidden;
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string end = "_l" + std::to_string(layer);
    const std::int64_t inputs = layer == 0 ? config.dim : hidden;
    RecurrentProblem p{};
    p.cell = config.cell;
    p.activation = config.activation;
    p.inputs = inputs;
    p.hidden = hidden;
    p.w_ih = tensors.at("recurrent.weight_ih" + end, rows * inputs);
    p.w_hh = tensors.at("recurrent.weight_hh" + end, rows * hidden);
    p.b_ih = tensors.at("recurrent.bias_ih" + end, rows);
    p.b_hh = tensors.at("recurrent.bias_hh" + end, rows);
    const RecurrentKernels& kernels = *table.recurrent;
    TableBuffer<float> packed(static_cast<std::size_t>(kernels.packed_size(p)));
    kernels.pack(p, 0, kernels.panels(p), packed.data());
    p.w_ih = p.w_hh = p.b_ih = p.b_hh = nullptr;  // only the packed ones are read from here on
    layers_.push_back({p, std::move(packed)});
  }
  const Layer& first = layers_.front();
  const std::int64_t size = table.recurrent->start_size(first.problem);
  if (config.num_items * size * std::int64_t{sizeof(float)} <= kMostFoldedBytes) {
    starts_ = TableBuffer<float>(static_cast<std::size_t>(config.num_items * size));
    advise_huge_pages(starts_.data(), static_cast<std::int64_t>(starts_.size() * sizeof(float)));
    Scratch<float> vectors(std::min(config.num_items, kFoldedRows) * config.dim);
    for (std::int64_t item = 0; item < config.num_items; item += kFoldedRows) {
      const std::int64_t some = std::min(kFoldedRows, config.num_items - item);
      table.topk->widen(embedding_, config.dim, nullptr, item, some, vectors.data());
      table.recurrent->project(first.problem, first.packed.data(), vectors.data(), some,
                               starts_.data() + item * size);
    }
  }
  projection_ = pack_linear(tensors.at("projection.weight", config.dim * hidden), hidden, 1,
                            config.dim, hidden, tensors.at("projection.bias", config.dim), table);
}

std::int64_t RecurrentEncoder::state_size() const {
  return config_.layers * states_a_layer() * config_.hidden;
}

double RecurrentEncoder::token_cost() const {
  const auto width = static_cast<double>(config_.hidden);
  const auto gates = static_cast<double>(recurrent_gates(config_.cell));
  const auto layers = static_cast<double>(config_.layers);
  return gates * width * (static_cast<double>(config_.dim) + (2 * layers - 1) * width);
}

void RecurrentEncoder::run(const JaggedView<std::int32_t>& rows, float* const* states, float* last,
                           int threads) const {
  const RecurrentKernels& kernels = *table_.recurrent;
  const std::int64_t tokens = rows.offsets[rows.rows], hidden = config_.hidden, dim = config_.dim;
  const bool lstm = config_.cell == RecurrentCell::kLstm;
  const bool folded = starts_.size() > 0;
  Scratch<float> gathered(folded ? 0 : tokens * dim);
  Scratch<const float*> starts(folded ? tokens : 0);
  const std::int64_t size = kernels.start_size(layers_.front().problem);
  if (folded) {
    for (std::int64_t t = 0; t < tokens; ++t) starts[t] = starts_.data() + rows.values[t] * size;
  } else {
    table_.topk->widen(embedding_, dim, rows.values, 0, tokens, gathered.data());
  }
  Scratch<std::int64_t> order(rows.rows);
  for (std::int64_t row = 0; row < rows.rows; ++row) order[row] = row;
  // Layers write by turns into two arrays, since a layer reads all that the one before wrote.
  Scratch<float> even(tokens * hidden), odd(config_.layers > 1 ? tokens * hidden : 0);
  Scratch<float> begins(states != nullptr ? 2 * rows.rows * hidden : 0);
  Scratch<float> ends(2 * rows.rows * hidden);
  float *h0 = begins.data(), *c0 = h0 + rows.rows * hidden;
  float *h_end = ends.data(), *c_end = h_end + rows.rows * hidden;
  for (std::int64_t l = 0; l < config_.layers; ++l) {
    const Layer& layer = layers_[static_cast<std::size_t>(l)];
    const std::int64_t at = l * states_a_layer() * hidden;
    RecurrentProblem p = layer.problem;
    p.tokens = tokens;
    p.rows = rows.rows;
    p.offsets = rows.offsets;
    p.starts = l == 0 && folded ? starts.data() : nullptr;
    p.x = l == 0 ? gathered.data() : l % 2 == 1 ? even.data() : odd.data();
    p.output = l % 2 == 0 ? even.data() : odd.data();
    p.h_end = h_end;
    p.c_end = lstm ? c_end : nullptr;
    if (states != nullptr) {
      for (std::int64_t row = 0; row < rows.rows; ++row) {
        std::copy_n(states[row] + at, hidden, h0 + row * hidden);
        if (lstm) std::copy_n(states[row] + at + hidden, hidden, c0 + row * hidden);
      }
      p.h0 = h0;
      p.c0 = lstm ? c0 : nullptr;
    }
    if (threads > 1) {
      recurrent_run(p, layer.packed.data(), threads, table_);
    } else {
      Scratch<float> scratch(kernels.scratch_size(p, rows.rows));
      kernels.run(p, {order.data(), rows.rows, layer.packed.data(), scratch.data()});
    }
    if (states != nullptr) {
      for (std::int64_t row = 0; row < rows.rows; ++row) {
        std::copy_n(h_end + row * hidden, hidden, states[row] + at);
        if (lstm) std::copy_n(c_end + row * hidden, hidden, states[row] + at + hidden);
      }
    }
  }
  if (last != nullptr) std::copy_n(h_end, rows.rows * hidden, last);
}

void RecurrentEncoder::encode_group(const JaggedView<std::int32_t>& rows, float* out,
                                    int threads) const {
  Scratch<float> last(rows.rows * config_.hidden);
  run(rows, nullptr, last.data(), threads);
  Scratch<float> scratch(table_.linear->scratch);
  multiply(projection_, last.data(), config_.hidden, rows.rows, Activation::kNone, out, dim(),
           scratch.data());
}

void RecurrentEncoder::advance(const UserState* users,
                               const JaggedView<std::int32_t>& events) const {
  Scratch<std::int64_t> order(events.rows);
  const auto length = [&](std::int64_t row) {
    return events.offsets[row + 1] - events.offsets[row];
  };
  for (std::int64_t row = 0; row < events.rows; ++row) order[row] = row;
  const auto longer = [&](std::int64_t a, std::int64_t b) { return length(a) > length(b); };
  if (!std::is_sorted(order.data(), order.data() + events.rows, longer)) {
    std::sort(order.data(), order.data() + events.rows, longer);
  }
  for (std::int64_t begin = 0; begin < events.rows; begin += kStepRows) {
    const std::int64_t count = std::min(kStepRows, events.rows - begin);
    Scratch<std::int64_t> offsets(count + 1);
    Scratch<float*> states(count);
    offsets[0] = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      offsets[i + 1] = offsets[i] + length(order[begin + i]);
    }
    Scratch<std::int32_t> values(offsets[count]);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t row = order[begin + i];
      const UserState& user = users[row];
      states[i] = user.fixed;
      if (user.length == 0) std::fill_n(user.fixed, state_size(), 0.0f);
      std::copy_n(events.values + events.offsets[row], length(row), values.data() + offsets[i]);
    }
    run({values.data(), offsets.data(), count}, states.data(), nullptr, 1);
  }
}

void RecurrentEncoder::embed_group(const UserState* users, std::int64_t count, float* out) const {
  const std::int64_t hidden = config_.hidden;
  const std::int64_t at = (config_.layers - 1) * states_a_layer() * hidden;
  Scratch<float> last(count * hidden), scratch(table_.linear->scratch);
  for (std::int64_t i = 0; i < count; ++i) {
    std::copy_n(users[i].fixed + at, hidden, last.data() + i * hidden);
  }
  multiply(projection_, last.data(), hidden, count, Activation::kNone, out, dim(), scratch.data());
}

}  // namespace seqrec
