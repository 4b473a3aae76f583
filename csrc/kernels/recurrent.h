// SPDX-License-Identifier: Apache-2.0
// Recurrent layers forward, in one pass over the tokens of a share of the rows.
//
// A panel is the W hidden units (rnn: 4 W) whose sums fill a register tile: MR rows x all their
// gates. Its weights lie together, [k][gate][W], so that when the sums over inputs and hidden units
// are complete all gates of a unit are at hand and turn into the new state at once; no matrix of
// gate sums is ever written to memory. In each time step the panels are the outer loop and the rows
// the inner one: the weights of a panel are fetched once a step.
//
// Rows are taken longest first. Those that still run at a step are then the first ones, and the
// batch shrinks as sequences end. Hidden states are read from the output of the step before, where
// they lie.
//
// Where several threads share the rows, each has a part of the panels. Nothing that they share is
// written by two of them: hidden states are read from the output, cells lie side by side.
//
// While only a few rows run, a step is bound by the fetching of weights. The inputs of the next
// steps are then multiplied in one go (`project`), so that a step fetches the recurrent weights
// alone.
#pragma once

#include "base/simd.h"
#include "kernels/recurrent_gates.h"
#include "kernels/recurrent_tile.h"
#include "kernels/recurrent_types.h"
#include "kernels/recurrent_weights.h"

namespace seqrec {
namespace SEQREC_ISA {

using GateFunction = void (*)(const GateRows& at);

/// The gates of a cell: for whole panels, and for a panel that is only partly there.
struct GateFunctions {
  GateFunction whole, part;
};

template <int W, CellActivation A>
GateFunctions gate_functions(RecurrentCell cell, bool keep) {
  if (cell == RecurrentCell::kLstm) {
    if (keep) return {&lstm_gates<W, A, true, true>, &lstm_gates<W, A, true, false>};
    return {&lstm_gates<W, A, false, true>, &lstm_gates<W, A, false, false>};
  }
  if (cell == RecurrentCell::kGru) {
    if (keep) return {&gru_gates<W, A, true, true>, &gru_gates<W, A, true, false>};
    return {&gru_gates<W, A, false, true>, &gru_gates<W, A, false, false>};
  }
  return {&rnn_gates<W, A, true>, &rnn_gates<W, A, false>};
}

/// A share of the rows on its way through time. NV: vectors of a panel.
template <int W, int NV>
class RecurrentRun {
 public:
  static constexpr int kRows = kTileRows<NV>;
  /// At most this many rows make a step that waits for weights more than it multiplies.
  static constexpr std::int64_t kFewRows = kNativeLanes == 16 ? 3 : 2;
  static constexpr std::int64_t kProjectedTokens = 24;
  /// Tiles whose gates are computed together, so that the latency of one row hides that of others.
  static constexpr std::int64_t kGroupTiles = 4;
  static_assert(kGroupTiles * kRows <= GateRows::kMaxRows, "a group is one call of the gates");

  using Weights = RecurrentWeights<W>;

  static std::int64_t state_width(const RecurrentProblem& p) {
    return Weights::panels(p) * Weights::units(p.cell);
  }

  static std::int64_t sums_size(const RecurrentProblem& p) {
    const std::int64_t tiles = Weights::panels(p) > kGroupTiles ? Weights::panels(p) : kGroupTiles;
    return tiles * kRows * 4 * W;
  }

  static std::int64_t cells_size(const RecurrentProblem& p, std::int64_t count) {
    const bool own_cells = p.cell == RecurrentCell::kLstm && p.cells == nullptr;
    return own_cells ? state_width(p) * count : 0;
  }

  static std::int64_t scratch_size(const RecurrentProblem& p, std::int64_t count) {
    return state_width(p) + cells_size(p, count) + sums_size(p) +
           Weights::panels(p) * kProjectedTokens * NV * W;
  }

  RecurrentRun(const RecurrentProblem& problem, const RecurrentShare& share)
      : p_(problem), share_(share) {
    lstm_ = p_.cell == RecurrentCell::kLstm;
    panels_ = Weights::panels(p_);
    part_ = share.part.end > 0 ? share.part : RecurrentPart{0, panels_};
    units_ = Weights::units(p_.cell);
    state_width_ = state_width(p_);
    zeros_ = share.scratch;
    sums_ = zeros_ + state_width_;
    projected_ = sums_ + sums_size(p_);
    float* own_cells = projected_ + panels_ * kProjectedTokens * NV * W;
    cells_ = share.cells != nullptr ? share.cells : own_cells;
    for (std::int64_t i = 0; i < state_width_; ++i) share.scratch[i] = 0.0f;
    const bool keep = p_.gates != nullptr;
    gates_ = p_.activation == CellActivation::kTanh
                 ? gate_functions<W, CellActivation::kTanh>(p_.cell, keep)
                 : gate_functions<W, CellActivation::kSigmoid>(p_.cell, keep);
  }

  void run() {
    std::int64_t active = share_.count;
    std::int64_t projected_until = 0;
    for (std::int64_t t = share_.first_step;; ++t) {
      while (active > 0 && length(active - 1) <= t) --active;
      if (active == 0) break;
      if (active <= kFewRows && t >= projected_until) {
        projected_from_ = t;
        projected_until = t + kProjectedTokens / active;
        project(active, t, projected_until);
      }
      step(active, t, t < projected_until);
      if (share_.meet == nullptr || t + 1 == length(0)) continue;
      const RecurrentPart next = share_.meet(share_.team, t + 1);
      // All of a team project in the same steps: in any other, one would wait for the other.
      if (next.end != part_.end) projected_until = t + 1;
      part_ = next;
    }
    finish();
  }

 private:
  std::int64_t first_token(std::int64_t i) const { return p_.offsets[share_.order[i]]; }
  std::int64_t length(std::int64_t i) const {
    return p_.offsets[share_.order[i] + 1] - p_.offsets[share_.order[i]];
  }
  float* projection(std::int64_t panel, std::int64_t place) const {
    return projected_ + (panel * kProjectedTokens + place) * NV * W;
  }

  /// The input part of the sums of steps t to `until` of the first `active` rows. Step t + s of
  /// row i is at place i * (until - t) + s.
  void project(std::int64_t active, std::int64_t t, std::int64_t until) {
    TileInput in{};
    in.x = {x_rows_, nullptr, p_.inputs};
    in.step = 1;
    for (std::int64_t panel = part_.first; panel < part_.end; ++panel) {
      in.x.weights = weights_of(&Weights::inputs, panel);
      in.start = weights_of(&Weights::biases, panel);
      for (std::int64_t i = 0; i < active; ++i) {
        const std::int64_t end = until < length(i) ? until : length(i);
        for (std::int64_t s = t; s < end;) {
          const int rows = static_cast<int>(end - s < kRows ? end - s : kRows);
          for (int r = 0; r < rows; ++r) x_rows_[r] = p_.x + (first_token(i) + s + r) * p_.inputs;
          any_tile<W, NV, true>(rows, in, projection(panel, i * (until - t) + s - t));
          s += rows;
        }
      }
    }
    places_per_row_ = until - t;
  }

  void step(std::int64_t active, std::int64_t t, bool projected) {
    TileInput in;
    in.x.rows = x_rows_;
    in.h.rows = h_rows_;
    in.x.depth = projected ? 0 : p_.inputs;
    in.h.depth = t == 0 && p_.h0 == nullptr ? 0 : p_.hidden;
    in.start_step = projected ? places_per_row_ * NV * W : 0;
    if (active <= kRows) {
      // All sums first: the fetching of weights does not wait for gates.
      in.step = t % 2 == 0 ? 1 : -1;
      set_rows(0, static_cast<int>(active), t);
      for (std::int64_t j = part_.first; j < part_.end; ++j) {
        const std::int64_t panel = in.step > 0 ? j : part_.first + part_.end - 1 - j;
        set_panel(panel, 0, t, projected, in);
        any_tile<W, NV, false>(rows_.rows, in, sums_ + panel * active * 4 * W);
      }
      for (std::int64_t panel = part_.first; panel < part_.end; ++panel) {
        gates(panel, sums_ + panel * active * 4 * W);
      }
      return;
    }
    // Tiles of nearly the same size: one of a single row costs as much as one of two or three.
    const std::int64_t tiles = (active + kRows - 1) / kRows;
    const std::int64_t size = active / tiles, larger = active % tiles;
    in.step = 1;
    for (std::int64_t j = part_.first; j < part_.end; ++j) {
      const std::int64_t panel = t % 2 == 0 ? j : part_.first + part_.end - 1 - j;
      std::int64_t begin = 0;
      for (std::int64_t tile = 0; tile < tiles; tile += kGroupTiles) {
        const std::int64_t group = tiles - tile < kGroupTiles ? tiles - tile : kGroupTiles;
        const std::int64_t larger_here = larger > tile ? larger - tile : 0;
        const std::int64_t count = group * size + (larger_here < group ? larger_here : group);
        set_rows(begin, static_cast<int>(count), t);
        std::int64_t done = 0;
        for (std::int64_t i = 0; i < group; ++i) {
          const std::int64_t rows = size + (tile + i < larger ? 1 : 0);
          in.x.rows = x_rows_ + done;
          in.h.rows = h_rows_ + done;
          set_panel(panel, begin + done, t, projected, in);
          any_tile<W, NV, false>(static_cast<int>(rows), in, sums_ + done * 4 * W);
          in.step = -in.step;
          done += rows;
        }
        gates(panel, sums_);
        begin += count;
      }
    }
  }

  void set_panel(std::int64_t panel, std::int64_t row, std::int64_t t, bool projected,
                 TileInput& in) const {
    in.x.weights = weights_of(&Weights::inputs, panel);
    in.h.weights = weights_of(&Weights::recurrent, panel);
    const float* bias = weights_of(&Weights::biases, panel);
    in.bias_hn = bias + 3 * W;
    in.start = projected ? projection(panel, row * places_per_row_ + t - projected_from_) : bias;
  }

  /// Where the rows begin, begin + 1, … of the share read and write at step t.
  void set_rows(std::int64_t begin, int rows, std::int64_t t) {
    const std::int64_t hidden = p_.hidden;
    rows_.rows = rows;
    rows_.hidden = hidden;
    for (int r = 0; r < rows; ++r) {
      const std::int64_t i = begin + r, row = share_.order[i];
      const std::int64_t token = p_.offsets[row] + t;
      x_rows_[r] = p_.x + token * p_.inputs;
      h_rows_[r] = t > 0              ? p_.output + (token - 1) * hidden
                   : p_.h0 != nullptr ? p_.h0 + row * hidden
                                      : zeros_;
      rows_.h_prev[r] = h_rows_[r];
      rows_.output[r] = p_.output + token * hidden;
      if (lstm_) {
        float* own = p_.cells != nullptr ? p_.cells + token * hidden : cells_ + i * state_width_;
        rows_.c_next[r] = own;
        rows_.c_prev[r] = t > 0              ? (p_.cells != nullptr ? own - hidden : own)
                          : p_.c0 != nullptr ? p_.c0 + row * hidden
                                             : zeros_;
      }
      if (p_.gates != nullptr) {
        rows_.gates[r] = p_.gates + token * recurrent_gates(p_.cell) * hidden;
      }
      if (p_.hn != nullptr) rows_.hn[r] = p_.hn + token * hidden;
    }
  }

  void gates(std::int64_t panel, const float* sums) {
    rows_.sums = sums;
    rows_.unit = panel * units_;
    const std::int64_t left = p_.hidden - rows_.unit;
    rows_.width = left < units_ ? left : units_;
    (rows_.width == units_ ? gates_.whole : gates_.part)(rows_);
  }

  void finish() {
    const std::int64_t hidden = p_.hidden, from = part_.first * units_;
    const std::int64_t to = part_.end * units_ < hidden ? part_.end * units_ : hidden;
    for (std::int64_t i = 0; i < share_.count; ++i) {
      const std::int64_t row = share_.order[i];
      const std::int64_t last = p_.offsets[row + 1] - 1;
      const float* h = p_.output + last * hidden;
      for (std::int64_t u = from; u < to; ++u) p_.h_end[row * hidden + u] = h[u];
      if (!lstm_) continue;
      const float* c = p_.cells != nullptr ? p_.cells + last * hidden : cells_ + i * state_width_;
      for (std::int64_t u = from; u < to; ++u) p_.c_end[row * hidden + u] = c[u];
    }
  }

  const float* weights_of(float* (*part)(float*, const RecurrentProblem&, std::int64_t),
                          std::int64_t panel) const {
    return part(const_cast<float*>(share_.packed), p_, panel);
  }

  const RecurrentProblem& p_;
  const RecurrentShare& share_;
  GateFunctions gates_;
  GateRows rows_;
  const float* x_rows_[GateRows::kMaxRows];
  const float* h_rows_[GateRows::kMaxRows];
  bool lstm_;
  std::int64_t panels_, units_, state_width_;
  RecurrentPart part_;
  std::int64_t projected_from_ = 0, places_per_row_ = 0;
  float* zeros_;      // [state_width]
  float* sums_;       // of a group of tiles, or of all panels of a single tile
  float* projected_;  // [panels][kProjectedTokens][NV][W]
  float* cells_;      // [count][state_width], where the caller does not keep them
};

template <int W>
std::int64_t recurrent_scratch_size(const RecurrentProblem& p, std::int64_t count) {
  return p.cell == RecurrentCell::kGru ? RecurrentRun<W, 3>::scratch_size(p, count)
                                       : RecurrentRun<W, 4>::scratch_size(p, count);
}

template <int W>
std::int64_t recurrent_cells_size(const RecurrentProblem& p, std::int64_t count) {
  return RecurrentRun<W, 4>::cells_size(p, count);  // none but for the lstm
}

template <int W>
void recurrent_run(const RecurrentProblem& p, const RecurrentShare& share) {
  if (p.cell == RecurrentCell::kGru) {
    RecurrentRun<W, 3>(p, share).run();
  } else {
    RecurrentRun<W, 4>(p, share).run();
  }
}

}  // namespace SEQREC_ISA
}  // namespace seqrec
