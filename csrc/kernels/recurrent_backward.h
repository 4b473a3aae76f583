// SPDX-License-Identifier: Apache-2.0
// Gradients of a recurrent layer: back through time over a share of the rows.
//
// Rows are taken longest first, in batches of a few cache-sized chunks of tokens, from the last
// time step to the first; a row joins when the step falls below its length. A step turns the
// gradient of the hidden states into that of the gates (recurrent_backward_gates.h) and multiplies
// it by the recurrent weights, which stay packed in the cache for the whole run: the gradient of
// the states before. Gate gradients are collected until a chunk is full. Then, while they are still
// in the cache, three more products consume them: the gradients of the inputs, of the input weights
// and of the recurrent weights. They are never written to memory as a whole.
//
// Sums over tokens are kept in registers over a chunk and added to the share's partial sums after
// it. Partial sums of all shares are added up in their order.
#pragma once

#include "base/simd.h"
#include "kernels/recurrent_backward_gates.h"
#include "kernels/recurrent_backward_products.h"
#include "kernels/recurrent_backward_types.h"

namespace seqrec {
namespace SEQREC_ISA {

/// Sizes of everything that is packed or padded.
template <int W>
struct BackwardSizes {
  std::int64_t gates;        // blocks of gate gradients a token: lstm 4, gru 4 (n, r, z, hn), rnn 1
  std::int64_t torch_gates;  // rows of a weight matrix for each unit
  std::int64_t groups;       // of one gate
  std::int64_t padded;       // hidden, in whole groups
  std::int64_t recurrent;    // the first gate that belongs to the recurrent weights
  std::int64_t hidden_width, input_width;  // columns, in whole vectors
  std::int64_t chunk;

  explicit BackwardSizes(const RecurrentProblem& p) {
    const bool gru = p.cell == RecurrentCell::kGru;
    torch_gates = recurrent_gates(p.cell);
    gates = gru ? 4 : torch_gates;
    recurrent = gru ? 1 : 0;
    groups = (p.hidden + kGroup - 1) / kGroup;
    padded = groups * kGroup;
    hidden_width = (p.hidden + W - 1) / W * W;
    input_width = (p.inputs + W - 1) / W * W;
    // half a megabyte of gate gradients, and not so many tokens that a panel of inputs leaves the
    // first cache
    const std::int64_t fit = (std::int64_t{1} << 17) / (gates * padded);
    chunk = fit < 64 ? 64 : fit > kMostTokens ? kMostTokens : fit;
  }

  static constexpr std::int64_t kMostTokens = 184;

  std::int64_t packed_hidden() const { return torch_gates * padded * hidden_width; }
  std::int64_t packed_input() const { return torch_gates * padded * input_width; }
  std::int64_t all_gates() const { return gates * padded; }
};

template <int W>
class RecurrentBackward {
 public:
  using Sizes = BackwardSizes<W>;

  static std::int64_t packed_size(const RecurrentProblem& p) {
    const Sizes s(p);
    return s.packed_hidden() + s.packed_input();
  }
  static std::int64_t partial_size(const RecurrentProblem& p) {
    const Sizes s(p);
    return s.packed_hidden() + s.packed_input() + s.all_gates();
  }
  static std::int64_t chunk_tokens(const RecurrentProblem& p) { return Sizes(p).chunk; }
  static std::int64_t groups(const RecurrentProblem& p) {
    const Sizes s(p);
    return s.torch_gates * s.groups;
  }
  static std::int64_t scratch_size(const RecurrentProblem& p) {
    const Sizes s(p);
    const std::int64_t wider = s.hidden_width > s.input_width ? s.hidden_width : s.input_width;
    return s.chunk * (s.all_gates() + wider + 2 * s.padded) + s.padded;
  }

  /// Pieces of memory that a step fetches ahead.
  static std::int64_t ahead_size(const RecurrentProblem& p) {
    constexpr std::int64_t kFloats = Ahead::kBytes / 4;
    const Sizes s(p);
    return s.chunk * ((p.inputs + (s.torch_gates + 3) * p.hidden) / kFloats + 5);
  }

  static void pack(const RecurrentProblem& p, float* packed) {
    const Sizes s(p);
    pack_weights<W>(p.w_hh, s.torch_gates, 0, p.hidden, p.hidden, packed);
    // gru: n, r, z
    pack_weights<W>(p.w_ih, s.torch_gates, p.cell == RecurrentCell::kGru ? 2 : 0, p.hidden,
                    p.inputs, packed + s.packed_hidden());
  }

  static void run(const RecurrentProblem& p, const RecurrentGradients& g,
                  const RecurrentBackwardShare& share) {
    RecurrentBackward(p, g, share).run();
  }

  static void sum(const RecurrentProblem& p, const RecurrentGradients& g, const float* partials,
                  std::int64_t count, std::int64_t first, std::int64_t end);

 private:
  RecurrentBackward(const RecurrentProblem& p, const RecurrentGradients& g,
                    const RecurrentBackwardShare& share)
      : p_(p), g_(g), share_(share), s_(p) {
    group_step_ = s_.chunk * kGroup;
    gate_step_ = s_.groups * group_step_;
    d_gates_ = share.scratch;
    inputs_ = d_gates_ + s_.chunk * s_.all_gates();
    dh_ =
        inputs_ + s_.chunk * (s_.hidden_width > s_.input_width ? s_.hidden_width : s_.input_width);
    dc_ = dh_ + s_.chunk * s_.padded;
    zeros_ = dc_ + s_.chunk * s_.padded;
    for (std::int64_t u = 0; u < s_.padded; ++u) zeros_[u] = 0.0f;
    for (std::int64_t i = 0; i < s_.chunk; ++i) share.targets[i] = dh_ + i * s_.padded;
    targets_ = share.targets + s_.chunk;
    using A = CellActivation;
    const bool tanh = p.activation == A::kTanh;
    if (p.cell == RecurrentCell::kLstm) {
      function_ = tanh ? &gate_gradients<W, LstmGradient<W, A::kTanh>>
                       : &gate_gradients<W, LstmGradient<W, A::kSigmoid>>;
    } else if (p.cell == RecurrentCell::kGru) {
      function_ = tanh ? &gate_gradients<W, GruGradient<W, A::kTanh>>
                       : &gate_gradients<W, GruGradient<W, A::kSigmoid>>;
    } else {
      function_ = tanh ? &gate_gradients<W, RnnGradient<W, A::kTanh>>
                       : &gate_gradients<W, RnnGradient<W, A::kSigmoid>>;
    }
  }

  void run() {
    const std::int64_t batches = (share_.count + s_.chunk - 1) / s_.chunk;
    for (std::int64_t b = 0; b < batches; ++b) {
      const std::int64_t begin = share_.count * b / batches;
      batch(share_.order + begin, share_.count * (b + 1) / batches - begin);
    }
    flush();
    if (!started_) {
      const std::int64_t size = partial_size(p_);
      for (std::int64_t i = 0; i < size; ++i) share_.partial[i] = 0.0f;
    }
  }

  std::int64_t length(std::int64_t row) const { return p_.offsets[row + 1] - p_.offsets[row]; }

  void batch(const std::int64_t* order, std::int64_t count) {
    std::int64_t active = 0;
    for (std::int64_t t = length(order[0]) - 1; t >= 0; --t) {
      for (; active < count && length(order[active]) > t; ++active) enter(active, order[active]);
      if (tokens_ + active > s_.chunk) flush();
      for (std::int64_t i = 0; i < active; ++i) gates(i, order[i], t);
      if (t > 0 || g_.dh0 != nullptr) {
        const WeightProduct product{d_gates_ + s_.recurrent * gate_step_ + tokens_ * kGroup,
                                    group_step_,
                                    s_.torch_gates * s_.groups,
                                    share_.packed,
                                    s_.hidden_width,
                                    share_.targets};
        multiply_weights<W>(product, active, p_.cell == RecurrentCell::kGru,
                            ahead(active, order, t));
      }
      tokens_ += active;
    }
    for (; active < count; ++active) enter(active, order[active]);
    for (std::int64_t i = 0; i < count; ++i) {
      leave(g_.dh0, dh_ + i * s_.padded, order[i]);
      leave(g_.dc0, dc_ + i * s_.padded, order[i]);
    }
  }

  /// What the next step reads, and the flush after it.
  Ahead ahead(std::int64_t active, const std::int64_t* order, std::int64_t t) {
    constexpr std::int64_t kFloats = Ahead::kBytes / 4;
    std::int64_t count = 0;
    const auto add = [&](const float* begin, std::int64_t floats) {
      for (std::int64_t i = 0; i < floats; i += kFloats) {
        share_.ahead[count++] = reinterpret_cast<const char*>(begin + i);
      }
    };
    const std::int64_t hidden = p_.hidden;
    for (std::int64_t i = 0; i < active; ++i) {
      const std::int64_t token = p_.offsets[order[i]] + t;
      add(p_.x + token * p_.inputs, p_.inputs);
      if (t == 0) continue;
      add(p_.output + (token - 1) * hidden, hidden);
      if (p_.gates != nullptr)
        add(p_.gates + (token - 1) * s_.torch_gates * hidden, s_.torch_gates * hidden);
      if (p_.cells != nullptr && t > 1) add(p_.cells + (token - 2) * hidden, hidden);
      if (p_.hn != nullptr) add(p_.hn + (token - 1) * hidden, hidden);
      if (g_.d_output != nullptr) add(g_.d_output + (token - 1) * hidden, hidden);
    }
    const std::int64_t groups =
        weight_product_groups<W>(active, s_.hidden_width, s_.torch_gates * s_.groups);
    return {share_.ahead, count, (count + groups - 1) / groups};
  }

  void enter(std::int64_t i, std::int64_t row) {
    const float* h = g_.d_h_end != nullptr ? g_.d_h_end + row * p_.hidden : zeros_;
    const float* c = g_.d_c_end != nullptr ? g_.d_c_end + row * p_.hidden : zeros_;
    for (std::int64_t u = 0; u < s_.padded; ++u) {
      dh_[i * s_.padded + u] = u < p_.hidden ? h[u] : 0.0f;
      dc_[i * s_.padded + u] = u < p_.hidden ? c[u] : 0.0f;
    }
  }

  void leave(float* to, const float* from, std::int64_t row) const {
    if (to == nullptr) return;
    for (std::int64_t u = 0; u < p_.hidden; ++u) to[row * p_.hidden + u] = from[u];
  }

  void gates(std::int64_t i, std::int64_t row, std::int64_t t) {
    const std::int64_t token = p_.offsets[row] + t;
    const std::int64_t hidden = p_.hidden;
    GateGradientToken at;
    at.gates = p_.gates != nullptr ? p_.gates + token * s_.torch_gates * hidden : nullptr;
    at.output = p_.output + token * hidden;
    at.h_prev = t > 0 ? at.output - hidden : p_.h0 != nullptr ? p_.h0 + row * hidden : nullptr;
    share_.tokens[tokens_ + i] = {token, at.h_prev};
    if (at.h_prev == nullptr) at.h_prev = zeros_;
    at.hn = p_.hn != nullptr ? p_.hn + token * hidden : nullptr;
    at.c_prev = t == 0                ? (p_.c0 != nullptr ? p_.c0 + row * hidden : zeros_)
                : p_.cells != nullptr ? p_.cells + (token - 1) * hidden
                                      : nullptr;
    at.d_output = g_.d_output != nullptr ? g_.d_output + token * hidden : zeros_;
    at.dh = dh_ + i * s_.padded;
    at.dc = dc_ + i * s_.padded;
    at.d_gates = d_gates_ + (tokens_ + i) * kGroup;
    at.group_step = group_step_;
    at.gate_step = gate_step_;
    at.hidden = hidden;
    at.padded = s_.padded;
    function_(at);
  }

  /// Takes what else there is to be had from the collected gate gradients.
  void flush() {
    if (tokens_ == 0) return;
    const std::int64_t gate_groups = s_.torch_gates * s_.groups;
    if (g_.dx != nullptr) {
      for (std::int64_t i = 0; i < tokens_; ++i) {
        targets_[i] = g_.dx + share_.tokens[i].token * p_.inputs;
      }
      const WeightProduct product{d_gates_,    group_step_,
                                  gate_groups, share_.packed + s_.packed_hidden(),
                                  p_.inputs,   targets_};
      multiply_weights<W>(product, tokens_, false, Ahead{nullptr, 0, 0});
    }
    const RecurrentToken* tokens = share_.tokens;
    float* sums = share_.partial;
    if (g_.dw_hh != nullptr) {
      pack_inputs<W>([&](std::int64_t i) { return tokens[i].h_prev; }, tokens_, p_.hidden, inputs_);
      multiply_inputs<W>(d_gates_ + s_.recurrent * gate_step_, group_step_, gate_groups, inputs_,
                         p_.hidden, tokens_, started_, sums);
    }
    sums += s_.packed_hidden();
    if (g_.dw_ih != nullptr) {
      const float* x = p_.x;
      const std::int64_t width = p_.inputs;
      pack_inputs<W>([&](std::int64_t i) { return x + tokens[i].token * width; }, tokens_, width,
                     inputs_);
      multiply_inputs<W>(d_gates_, group_step_, gate_groups, inputs_, width, tokens_, started_,
                         sums);
    }
    sums += s_.packed_input();
    if (g_.db_ih != nullptr || g_.db_hh != nullptr) add_up_gates(sums);
    started_ = true;
    tokens_ = 0;
  }

  void add_up_gates(float* sums) const {
    for (std::int64_t group = 0; group < s_.gates * s_.groups; ++group) {
      for (int v = 0; v < kGroup; v += W, sums += W) {
        const float* from = d_gates_ + group * group_step_ + v;
        Floats<W> even{}, odd{};
        std::int64_t i = 0;
        for (; i + 2 <= tokens_; i += 2) {
          even += load<W>(from + i * kGroup);
          odd += load<W>(from + (i + 1) * kGroup);
        }
        if (i < tokens_) even += load<W>(from + i * kGroup);
        const Floats<W> total = even + odd;
        store<W>(sums, started_ ? total + load<W>(sums) : total);
      }
    }
  }

  const RecurrentProblem& p_;
  const RecurrentGradients& g_;
  const RecurrentBackwardShare& share_;
  const Sizes s_;
  std::ptrdiff_t group_step_, gate_step_;
  void (*function_)(const GateGradientToken& at);
  float* d_gates_;   // [gates][groups][chunk][kGroup]
  float* inputs_;    // the inputs of a chunk, packed
  float* dh_;        // [chunk][padded]
  float* dc_;        // [chunk][padded]
  float* zeros_;     // [padded]
  float** targets_;  // [chunk]
  std::int64_t tokens_ = 0;
  bool started_ = false;  // the partial sums hold something
};

/// One matrix of weight gradients: partial sums of `rows` gates from `first` on, unpacked.
template <int W>
SEQREC_INLINE void unpack_sums(const float* partials, std::int64_t count, std::int64_t partial_size,
                               std::int64_t gates, std::int64_t padded, std::int64_t gate,
                               std::int64_t unit, std::int64_t columns, float* out) {
  constexpr int NV = kInputVectors<W>;
  const std::int64_t vectors = (columns + W - 1) / W;
  for (std::int64_t v = 0; v < vectors; ++v) {
    const std::int64_t panel = v / NV * NV;
    const std::int64_t width = vectors - panel < NV ? vectors - panel : NV;
    const float* from =
        partials + (panel * gates * padded + (gate * padded + unit) * width + v - panel) * W;
    Floats<W> total = load<W>(from);
    for (std::int64_t i = 1; i < count; ++i) total += load<W>(from + i * partial_size);
    const std::int64_t left = columns - v * W;
    if (left >= W) {
      store<W>(out + v * W, total);
    } else {
      store_part<W>(out + v * W, total, left);
    }
  }
}

template <int W>
void RecurrentBackward<W>::sum(const RecurrentProblem& p, const RecurrentGradients& g,
                               const float* partials, std::int64_t count, std::int64_t first,
                               std::int64_t end) {
  const Sizes s(p);
  const std::int64_t size = partial_size(p);
  const float* biases = partials + s.packed_hidden() + s.packed_input();
  for (std::int64_t group = first; group < end; ++group) {
    const std::int64_t gate = group / s.groups;  // in the order of torch
    // where the input weights' gate is among the partial sums
    const std::int64_t input_gate = p.cell == RecurrentCell::kGru ? (gate + 1) % 3 : gate;
    for (std::int64_t j = 0; j < kGroup; ++j) {
      const std::int64_t unit = group % s.groups * kGroup + j;
      if (unit >= p.hidden) break;
      const std::int64_t row = gate * p.hidden + unit;
      if (g.dw_hh != nullptr) {
        unpack_sums<W>(partials, count, size, s.torch_gates, s.padded, gate, unit, p.hidden,
                       g.dw_hh + row * p.hidden);
      }
      if (g.dw_ih != nullptr) {
        unpack_sums<W>(partials + s.packed_hidden(), count, size, s.torch_gates, s.padded,
                       input_gate, unit, p.inputs, g.dw_ih + row * p.inputs);
      }
      if (g.db_ih != nullptr) {
        const float* from = biases + input_gate * s.padded + unit;
        float total = from[0];
        for (std::int64_t i = 1; i < count; ++i) total += from[i * size];
        g.db_ih[row] = total;
      }
      if (g.db_hh != nullptr) {
        const float* from = biases + (gate + s.recurrent) * s.padded + unit;
        float total = from[0];
        for (std::int64_t i = 1; i < count; ++i) total += from[i * size];
        g.db_hh[row] = total;
      }
    }
  }
}

}  // namespace SEQREC_ISA
}  // namespace seqrec
