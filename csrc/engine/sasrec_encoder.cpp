// SPDX-License-Identifier: Apache-2.0
#include "engine/sasrec_encoder.h"

#include <algorithm>
#include <cmath>

#include "base/huge_pages.h"
#include "base/scratch.h"

namespace seqrec {
namespace {

constexpr float kNormEps = 1e-5f;
// Rows that pass through the feed-forward layer together, so that its inner values stay near.
constexpr std::int64_t kInnerRows = 60;
constexpr std::int64_t kStepRows = 128;    // users whose next event is worked on together
constexpr std::int64_t kFoldedRows = 256;  // items whose products are made together

}  // namespace

SasrecEncoder::SasrecEncoder(const SasrecConfig& config, const Tensors& tensors,
                             const KernelTable& table)
    : Encoder(config.num_items, config.dim, config.max_length, config.unit, table),
      config_(config) {
  const std::int64_t dim = config.dim, inner = config.inner;
  input_ = {};
  input_.items = tensors.rows("item_embedding.weight", config.num_items * dim);
  input_.positions = tensors.at("position_embedding.weight", config.max_length * dim);
  input_.dim = dim;
  input_.eps = kNormEps;
  const auto norm = [&](const std::string& name) {
    return Norm{tensors.at(name + ".weight", dim), tensors.at(name + ".bias", dim)};
  };
  const auto linear = [&](const std::string& name, std::int64_t outputs, std::int64_t inputs) {
    return pack_linear(tensors.at(name + ".weight", outputs * inputs), inputs, 1, outputs, inputs,
                       tensors.at(name + ".bias", outputs), table);
  };
  const auto tail = [&](const std::string& name) {
    return Tail{norm(name + ".feed_forward_norm"), linear(name + ".attention.out", dim, dim),
                linear(name + ".feed_forward.up", inner, dim),
                linear(name + ".feed_forward.down", dim, inner)};
  };
  for (std::int64_t layer = 0; layer + 1 < config.layers; ++layer) {
    const std::string name = "blocks." + std::to_string(layer);
    blocks_.push_back({norm(name + ".attention_norm"),
                       linear(name + ".attention.qkv", 3 * dim, dim), tail(name)});
  }
  const std::string name = "blocks." + std::to_string(config.layers - 1);
  const float* weight = tensors.at(name + ".attention.qkv.weight", 3 * dim * dim);
  const float* bias = tensors.at(name + ".attention.qkv.bias", 3 * dim);
  last_ = {norm(name + ".attention_norm"),
           pack_linear(weight, dim, 1, dim, dim, bias, table),
           {},
           {},
           tail(name)};
  for (std::int64_t row = dim; row < 2 * dim; row += width()) {
    last_.keys.push_back(pack_linear(weight + row * dim, 1, dim, dim, width(), nullptr, table));
    last_.values.push_back(
        pack_linear(weight + (dim + row) * dim, dim, 1, width(), dim, bias + dim + row, table));
  }
  final_norm_ = norm("final_norm");
  const std::int64_t table_size = config.num_items * 3 * dim * std::int64_t{sizeof(float)};
  if (!blocks_.empty() && table_size <= kMostFoldedBytes) fold_first_block(tensors);
}

void SasrecEncoder::fold_first_block(const Tensors& tensors) {
  const std::int64_t dim = config_.dim, outputs = 3 * dim;
  const std::int64_t items = config_.num_items, positions = config_.max_length;
  const float* weight = tensors.at("blocks.0.attention.qkv.weight", outputs * dim);
  const float* bias = tensors.at("blocks.0.attention.qkv.bias", outputs);
  const Norm& norm = blocks_[0].attention_norm;
  products_ = AlignedBuffer<float>(static_cast<std::size_t>((items + positions + 1) * outputs));
  advise_huge_pages(products_.data(), static_cast<std::int64_t>(products_.size() * sizeof(float)));
  float* item_products = products_.data();
  float* position_products = item_products + items * outputs;
  float* constants = position_products + positions * outputs;
  AlignedBuffer<float> scaled(static_cast<std::size_t>(outputs * dim));  // W g
  for (std::int64_t o = 0; o < outputs; ++o) {
    double constant = bias[o];
    for (std::int64_t d = 0; d < dim; ++d) {
      const double w = weight[o * dim + d];
      scaled[static_cast<std::size_t>(o * dim + d)] = static_cast<float>(w * norm.weight[d]);
      constant += w * norm.bias[d];
    }
    constants[o] = static_cast<float>(constant);
  }
  const PackedLinear packed = pack_linear(scaled.data(), dim, 1, outputs, dim, nullptr, table_);
  Scratch<float> centred(kFoldedRows * dim), scratch(table_.linear->scratch);
  const auto fold = [&](const ItemRows& rows, std::int64_t count, float* products) {
    for (std::int64_t first = 0; first < count; first += kFoldedRows) {
      const std::int64_t some = std::min(kFoldedRows, count - first);
      table_.topk->widen(rows, dim, nullptr, first, some, centred.data());
      for (std::int64_t row = 0; row < some; ++row) {
        const float* from = centred.data() + row * dim;
        double sum = 0.0;
        for (std::int64_t d = 0; d < dim; ++d) sum += double{from[d]};
        const double mean = sum / static_cast<double>(dim);
        for (std::int64_t d = 0; d < dim; ++d) {
          centred[row * dim + d] = static_cast<float>(double{from[d]} - mean);
        }
      }
      multiply(packed, centred.data(), dim, some, Activation::kNone, products + first * outputs,
               outputs, scratch.data());
    }
  };
  fold(input_.items, items, item_products);
  fold(input_.positions, positions, position_products);
  input_.item_products = item_products;
  input_.position_products = position_products;
  input_.constants = constants;
  input_.outputs = outputs;
}

double SasrecEncoder::token_cost() const {
  const auto dim = static_cast<double>(config_.dim), inner = static_cast<double>(config_.inner);
  const auto layers = static_cast<double>(config_.layers);
  return (layers - 1) * 2 * dim * (2 * dim + inner) + 2 * dim * static_cast<double>(config_.heads);
}

double SasrecEncoder::scale() const { return 1.0 / std::sqrt(static_cast<double>(width())); }

void SasrecEncoder::begin(const std::int32_t* items, const std::int64_t* positions,
                          std::int64_t count, float* x, float* normed, float* qkv) const {
  const bool folded = input_.item_products != nullptr;
  table_.sequence_input->rows(input_, items, positions, count, x, folded ? qkv : nullptr);
  if (folded) return;
  normalise(norm_after(-1), nullptr, x, count, normed);
  if (blocks_.empty()) return;
  Scratch<float> scratch(table_.linear->scratch);
  multiply(blocks_[0].qkv, normed, config_.dim, count, Activation::kNone, qkv, 3 * config_.dim,
           scratch.data());
}

void SasrecEncoder::normalise(const Norm& norm, const float* change, float* x, std::int64_t rows,
                              float* normed) const {
  Scratch<float> statistics(2 * rows);
  LayerNormForward p{};
  p.x = change != nullptr ? change : x;
  p.residual = change != nullptr ? x : nullptr;
  p.sum = change != nullptr ? x : nullptr;
  p.weight = norm.weight;
  p.bias = norm.bias;
  p.out = normed;
  p.mean = statistics.data();
  p.rstd = statistics.data() + rows;
  p.dim = config_.dim;
  p.eps = kNormEps;
  table_.layer_norm->forward(p, 0, rows);
}

void SasrecEncoder::finish_block(const Tail& tail, const Norm& following, const float* mixed,
                                 std::int64_t rows, float* x, float* normed) const {
  const std::int64_t dim = config_.dim, inner = config_.inner;
  const std::int64_t together = std::min(rows, kInnerRows);
  Scratch<float> change(together * dim), hidden(together * inner), scratch(table_.linear->scratch);
  for (std::int64_t row = 0; row < rows; row += together) {
    const std::int64_t count = std::min(together, rows - row);
    float *x_row = x + row * dim, *normed_row = normed + row * dim;
    multiply(tail.out, mixed + row * dim, dim, count, Activation::kNone, change.data(), dim,
             scratch.data());
    normalise(tail.feed_forward_norm, change.data(), x_row, count, normed_row);
    multiply(tail.up, normed_row, dim, count, Activation::kGeluTanh, hidden.data(), inner,
             scratch.data());
    multiply(tail.down, hidden.data(), inner, count, Activation::kNone, change.data(), dim,
             scratch.data());
    normalise(following, change.data(), x_row, count, normed_row);
  }
}

void SasrecEncoder::store(const UserState& user, std::int64_t layer, std::int64_t position,
                          const float* from, std::int64_t stride, std::int64_t count) const {
  const std::int64_t size = kept(layer);
  for (std::int64_t t = 0; t < count; ++t) {
    const std::int64_t place = position + t;
    float* page = user.pages[place / kPageTokens] + part(layer);
    std::copy_n(from + t * stride, size, page + place % kPageTokens * size);
  }
}

void SasrecEncoder::decode(const DecodeProblem& problem, std::int64_t rows, float* out) const {
  Scratch<float> memory(table_.decode->scratch(problem.width));
  const HeadsView<float> to{out, config_.heads * problem.width, problem.width};
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t head = 0; head < config_.heads; ++head) {
      table_.decode->decode(problem, row, head, memory.data(), to);
    }
  }
}

void SasrecEncoder::prefill(const JaggedView<std::int32_t>& rows, const UserState* users, float* x,
                            float* normed) const {
  const std::int64_t tokens = rows.offsets[rows.rows], dim = config_.dim, wide = 3 * dim;
  const auto inside = static_cast<std::int64_t>(blocks_.size());
  Scratch<float> qkv(inside > 0 ? tokens * wide : 0);
  std::int64_t longest = 0;
  {
    Scratch<std::int64_t> positions(tokens);
    for (std::int64_t row = 0; row < rows.rows; ++row) {
      const std::int64_t first = rows.offsets[row], length = rows.offsets[row + 1] - first;
      for (std::int64_t t = 0; t < length; ++t) positions[first + t] = t;
      longest = std::max(longest, length);
    }
    begin(rows.values, positions.data(), tokens, x, normed, qkv.data());
  }
  const auto keep = [&](std::int64_t layer, const float* from, std::int64_t stride) {
    for (std::int64_t row = 0; users != nullptr && row < rows.rows; ++row) {
      const std::int64_t first = rows.offsets[row];
      store(users[row], layer, 0, from + first * stride, stride, rows.offsets[row + 1] - first);
    }
  };
  if (inside > 0) {
    Scratch<float> mixed(tokens * dim), scratch(table_.linear->scratch);
    Scratch<float> statistics(2 * config_.heads * tokens);
    Scratch<float> memory(table_.attention->forward_scratch(width(), longest));
    const auto view = [&](std::int64_t at) {
      return HeadsView<const float>{qkv.data() + at, wide, width()};
    };
    const AttentionProblem problem{view(0),   view(dim),     view(2 * dim), rows.offsets, tokens,
                                   rows.rows, config_.heads, width(),       scale(),      true};
    const AttentionStatistics left{statistics.data(), statistics.data() + config_.heads * tokens};
    for (std::int64_t layer = 0; layer < inside; ++layer) {
      const Block& block = blocks_[static_cast<std::size_t>(layer)];
      if (layer > 0) {
        multiply(block.qkv, normed, dim, tokens, Activation::kNone, qkv.data(), wide,
                 scratch.data());
      }
      keep(layer, qkv.data() + dim, wide);
      for (std::int64_t row = 0; row < rows.rows; ++row) {
        for (std::int64_t head = 0; head < config_.heads; ++head) {
          table_.attention->forward(problem, {row, head, -1, -1}, memory.data(),
                                    {mixed.data(), dim, width()}, left);
        }
      }
      finish_block(block.tail, norm_after(layer), mixed.data(), tokens, x, normed);
    }
  }
  keep(inside, normed, dim);
}

void SasrecEncoder::finish(const float* normed, DecodeProblem past, std::int64_t rows, float* x,
                           float* out) const {
  const std::int64_t dim = config_.dim, heads = config_.heads, wide = heads * dim;
  Scratch<float> queries(rows * dim), absorbed(rows * wide), means(rows * wide), mixed(rows * dim);
  Scratch<float> scratch(table_.linear->scratch);
  multiply(last_.query, normed, dim, rows, Activation::kNone, queries.data(), dim, scratch.data());
  for (std::int64_t head = 0; head < heads; ++head) {
    multiply(last_.keys[static_cast<std::size_t>(head)], queries.data() + head * width(), dim, rows,
             Activation::kNone, absorbed.data() + head * dim, wide, scratch.data());
  }
  past.q = {absorbed.data(), wide, dim};
  past.rows = rows;
  past.heads = heads;
  past.width = dim;
  past.scale = scale();
  decode(past, rows, means.data());
  for (std::int64_t head = 0; head < heads; ++head) {
    multiply(last_.values[static_cast<std::size_t>(head)], means.data() + head * dim, wide, rows,
             Activation::kNone, mixed.data() + head * width(), dim, scratch.data());
  }
  finish_block(last_.tail, final_norm_, mixed.data(), rows, x, out);
}

void SasrecEncoder::encode_group(const JaggedView<std::int32_t>& rows, float* out, int) const {
  const std::int64_t tokens = rows.offsets[rows.rows], dim = config_.dim, count = rows.rows;
  Scratch<float> x(tokens * dim), normed(tokens * dim), last(2 * count * dim);
  prefill(rows, nullptr, x.data(), normed.data());
  float *last_x = last.data(), *last_normed = last_x + count * dim;
  for (std::int64_t row = 0; row < count; ++row) {
    const std::int64_t at = (rows.offsets[row + 1] - 1) * dim;
    std::copy_n(x.data() + at, dim, last_x + row * dim);
    std::copy_n(normed.data() + at, dim, last_normed + row * dim);
  }
  DecodeProblem past{};
  past.keys = past.values = {normed.data(), dim, 0};
  past.offsets = rows.offsets;
  finish(last_normed, past, count, last_x, out);
}

DecodeProblem SasrecEncoder::pages(const UserState* users, std::int64_t count, std::int64_t layer,
                                   std::int64_t more, const float* const** rows,
                                   std::int64_t* lengths) const {
  for (std::int64_t i = 0; i < count; ++i) {
    rows[i] = users[i].pages;
    lengths[i] = users[i].length + more;
  }
  const bool last = layer + 1 == config_.layers;
  DecodeProblem p{};
  p.keys = p.values = {nullptr, kept(layer), last ? 0 : width()};
  p.lengths = lengths;
  p.rows = count;
  p.heads = config_.heads;
  p.width = width();
  p.scale = scale();
  p.pages = {rows, kPageTokens, part(layer), part(layer) + (last ? 0 : config_.dim)};
  return p;
}

void SasrecEncoder::step(const UserState* users, const std::int32_t* items,
                         std::int64_t count) const {
  const std::int64_t dim = config_.dim, wide = 3 * dim;
  Scratch<float> x(count * dim), normed(count * dim), qkv(count * wide), mixed(count * dim);
  Scratch<float> scratch(table_.linear->scratch);
  Scratch<const float* const*> rows(count);
  Scratch<std::int64_t> numbers(count);
  for (std::int64_t i = 0; i < count; ++i) numbers[i] = users[i].length;
  begin(items, numbers.data(), count, x.data(), normed.data(), qkv.data());
  const auto inside = static_cast<std::int64_t>(blocks_.size());
  for (std::int64_t layer = 0; layer < inside; ++layer) {
    const Block& block = blocks_[static_cast<std::size_t>(layer)];
    if (layer > 0) {
      multiply(block.qkv, normed.data(), dim, count, Activation::kNone, qkv.data(), wide,
               scratch.data());
    }
    for (std::int64_t i = 0; i < count; ++i) {
      store(users[i], layer, users[i].length, qkv.data() + i * wide + dim, wide, 1);
    }
    DecodeProblem past = pages(users, count, layer, 1, rows.data(), numbers.data());
    past.q = {qkv.data(), wide, width()};
    decode(past, count, mixed.data());
    finish_block(block.tail, norm_after(layer), mixed.data(), count, x.data(), normed.data());
  }
  for (std::int64_t i = 0; i < count; ++i) {
    store(users[i], inside, users[i].length, normed.data() + i * dim, dim, 1);
    std::copy_n(x.data() + i * dim, dim, users[i].fixed);
  }
}

void SasrecEncoder::advance(const UserState* users, const JaggedView<std::int32_t>& events) const {
  const auto length = [&](std::int64_t row) {
    return events.offsets[row + 1] - events.offsets[row];
  };
  const auto fresh = [&](std::int64_t row) { return users[row].length == 0 && length(row) > 1; };
  const std::int64_t dim = config_.dim;
  Scratch<UserState> chosen(events.rows);
  Scratch<std::int64_t> offsets(events.rows + 1);
  Scratch<std::int32_t> values(std::max(events.offsets[events.rows], std::int64_t{1}));
  // Whole histories of new users, some at a time.
  offsets[0] = 0;
  for (std::int64_t row = 0, count = 0; row < events.rows; ++row) {
    if (fresh(row)) {
      chosen[count] = users[row];
      std::copy_n(events.values + events.offsets[row], length(row), values.data() + offsets[count]);
      offsets[count + 1] = offsets[count] + length(row);
      ++count;
    }
    if (count == 0 || (offsets[count] < group_tokens() && row + 1 < events.rows)) continue;
    const std::int64_t tokens = offsets[count];
    Scratch<float> x(tokens * dim), normed(tokens * dim);
    prefill({values.data(), offsets.data(), count}, chosen.data(), x.data(), normed.data());
    for (std::int64_t i = 0; i < count; ++i) {
      std::copy_n(x.data() + (offsets[i + 1] - 1) * dim, dim, chosen[i].fixed);
    }
    count = 0;
  }
  // All others: their next events together, then the events after these, and so on.
  for (std::int64_t round = 0, left = 1; left > 0; ++round) {
    left = 0;
    std::int64_t count = 0;
    for (std::int64_t row = 0; row < events.rows; ++row) {
      if (!fresh(row) && round < length(row)) {
        chosen[count] = users[row];
        chosen[count].length += round;
        values[count] = events.values[events.offsets[row] + round];
        left += round + 1 < length(row);
        ++count;
      }
      if (count == kStepRows || (row + 1 == events.rows && count > 0)) {
        step(chosen.data(), values.data(), count);
        count = 0;
      }
    }
  }
}

void SasrecEncoder::embed_group(const UserState* users, std::int64_t count, float* out) const {
  const std::int64_t dim = config_.dim, last = config_.layers - 1;
  for (std::int64_t begin = 0; begin < count; begin += kStepRows) {
    const std::int64_t rows = std::min(kStepRows, count - begin);
    const UserState* here = users + begin;
    Scratch<float> x(rows * dim), normed(rows * dim);
    Scratch<const float* const*> places(rows);
    Scratch<std::int64_t> lengths(rows);
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t at = here[i].length - 1;
      const float* page = here[i].pages[at / kPageTokens] + part(last);
      std::copy_n(here[i].fixed, dim, x.data() + i * dim);
      std::copy_n(page + at % kPageTokens * dim, dim, normed.data() + i * dim);
    }
    finish(normed.data(), pages(here, rows, last, 0, places.data(), lengths.data()), rows, x.data(),
           out + begin * dim);
  }
}

}  // namespace seqrec
