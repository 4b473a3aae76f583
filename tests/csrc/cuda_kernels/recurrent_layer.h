// SPDX-License-Identifier: Apache-2.0
// A recurrent layer on the CPU's shim, forward and back, against the same in float64. Each buffer
// is as long as it must be and begins as NaN, so that the address sanitizer sees a step beyond and
// the comparison what nobody wrote.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "../check.h"
#include "cuda/numbers.h"
#include "cuda/recurrent.h"

namespace recurrent_test {

using namespace seqrec;
using namespace seqrec::cuda;

/// What is run; `form` is a RecurrentForm.
struct Case {
  RecurrentCell cell;
  RecurrentMath math;
  int hidden;
  std::vector<int> lengths;
  RecurrentForm form;
  int multiprocessors = 4;
  int shared = 99 << 10;  // bytes that a block may have
  CellActivation activation = CellActivation::kTanh;
  // faults: bytes of shared memory forward and back, and elements, that are lacking
  int memory_lacking = 0, memory_lacking_back = 0;
  std::size_t output_lacking = 0, gradient_lacking = 0;
  std::vector<std::int64_t> lies{};  // offsets that are not the true ones; nothing may be checked
};

using Forward = void (*)(const RecurrentForward&, cudaStream_t);
using Backward = void (*)(const RecurrentBackward&, cudaStream_t);

template <typename T>
class Layer {
 public:
  explicit Layer(const Case& given) : case_(given), h_(given.hidden) {
    const int gates = recurrent_gate_count(given.cell);
    outer_ = static_cast<std::size_t>(gates) * h_;
    offsets_.push_back(0);
    for (const int length : given.lengths) offsets_.push_back(offsets_.back() + length);
    const std::size_t tokens = static_cast<std::size_t>(offsets_.back()),
                      rows = given.lengths.size();
    const double bound = 1.0 / std::sqrt(static_cast<double>(h_));
    projected_ = draw(tokens * outer_, 1.0);
    w_ = draw(outer_ * h_, bound), b_ih_ = draw(outer_, bound), b_hh_ = draw(outer_, bound);
    h0_ = draw(rows * h_, 1.0), c0_ = draw(rows * h_, 1.0);
    d_output_ = draw(tokens * h_, 1.0);
    d_h_end_ = draw(rows * h_, 1.0), d_c_end_ = draw(rows * h_, 1.0);
    w_t_.resize(w_.size());
    for (std::size_t i = 0; i < outer_; ++i) {
      for (std::size_t k = 0; k < h_; ++k) w_t_[k * outer_ + i] = w_[i * h_ + k];
    }
    output_ = empty<T>(tokens * h_ - given.output_lacking);
    h_end_ = empty<T>(rows * h_), c_end_ = empty<T>(rows * h_);
    gates_ = empty<T>(tokens * outer_), cells_ = empty<float>(tokens * h_);
    hn_ = empty<T>(tokens * h_);
    written_ = given.cell == RecurrentCell::kGru ? outer_ + h_ : outer_;
    d_gates_ = empty<T>(tokens * written_ - given.gradient_lacking);
    h_prev_ = empty<T>(tokens * h_);
    dh0_ = empty<T>(rows * h_), dc0_ = empty<T>(rows * h_);
  }

  void run(Forward forward, Backward backward = nullptr) {
    const bool rnn = case_.cell == RecurrentCell::kRnn;
    RecurrentForward p{};
    p.batch = batch();
    p.plan = plan(false);
    p.activation = case_.activation;
    p.workspace = workspace_.data();
    p.projected = projected_.data(), p.w_hh = w_.data();
    p.b_ih = b_ih_.data(), p.b_hh = b_hh_.data(), p.h0 = h0_.data(), p.c0 = c0_.data();
    p.output = output_.data(), p.h_end = h_end_.data(), p.c_end = c_end_.data();
    p.gates = rnn ? nullptr : gates_.data();
    p.cells = cells_.data(), p.hn = hn_.data();
    forward(p, nullptr);
    if (backward == nullptr) return;
    RecurrentBackward q{};
    q.batch = batch();
    q.plan = plan(true);
    q.activation = case_.activation;
    q.workspace = workspace_.data();
    q.w_hh_t = w_t_.data(), q.h0 = h0_.data(), q.c0 = c0_.data();
    q.output = output_.data(), q.gates = gates_.data(), q.cells = cells_.data();
    q.hn = hn_.data();
    q.d_output = d_output_.data(), q.d_h_end = d_h_end_.data(), q.d_c_end = d_c_end_.data();
    q.d_gates = d_gates_.data(), q.h_prev = h_prev_.data();
    q.dh0 = dh0_.data(), q.dc0 = dc0_.data();
    backward(q, nullptr);
  }

  /// Every result of `run` against float64.
  void check(bool back) {
    for (std::size_t row = 0; row + 1 < offsets_.size(); ++row) check_row(row, back);
  }

 private:
  using Row = std::vector<double>;

  static double number(T x) { return static_cast<double>(to_float(x)); }
  static double number(float x, int) { return static_cast<double>(x); }

  template <typename U>
  static std::vector<U> empty(std::size_t count) {
    std::vector<U> made(count);
    if (count != 0) std::memset(static_cast<void*>(made.data()), 0xFF, count * sizeof(U));
    return made;
  }

  std::vector<T> draw(std::size_t count, double scale) {
    std::uniform_real_distribution<double> some(-scale, scale);
    std::vector<T> made;
    for (std::size_t i = 0; i < count; ++i) {
      made.push_back(from_float<T>(static_cast<float>(some(random_))));
    }
    return made;
  }

  RecurrentRows batch() const {
    return {offsets_.back(), static_cast<std::int64_t>(case_.lengths.size()),
            case_.lies.empty() ? offsets_.data() : case_.lies.data()};
  }

  RecurrentPlan plan(bool back) {
    const RecurrentDevice device{case_.multiprocessors, case_.shared, case_.shared + 1024};
    RecurrentPlan found{};
    CHECK(plan_recurrent({case_.cell, case_.math, case_.hidden,
                          static_cast<std::int64_t>(case_.lengths.size()), back, false,
                          static_cast<int>(case_.form)},
                         device, &found),
          "no plan");
    CHECK(found.form != RecurrentForm::kStreamed || found.streamed_tiles > 0,
          "nothing is streamed");
    found.shared -= back ? case_.memory_lacking_back : case_.memory_lacking;
    workspace_ = empty<unsigned char>(static_cast<std::size_t>(found.workspace));
    return found;
  }

  static double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
  double activate(double x) const {
    return case_.activation == CellActivation::kTanh ? std::tanh(x) : sigmoid(x);
  }
  double slope(double y) const {
    return case_.activation == CellActivation::kTanh ? 1.0 - y * y : y - y * y;
  }

  /// Each step rounds what it leaves, and hands on what the ones before it have lost.
  void compare(double mine, double truth, std::size_t steps, const char* what) const {
    const double epsilon = case_.math == RecurrentMath::kFloat32    ? std::ldexp(1.0, -24)
                           : case_.math == RecurrentMath::kBfloat16 ? std::ldexp(1.0, -9)
                                                                    : std::ldexp(1.0, -12);
    const double limit =
        8.0 * static_cast<double>(steps + 1) * epsilon * std::max(1.0, std::fabs(truth));
    CHECK(std::fabs(mine - truth) <= limit, "%s: %g instead of %g", what, mine, truth);
  }

  void check_row(std::size_t row, bool back) {
    const std::size_t begin = offsets_[row], end = offsets_[row + 1];
    const bool lstm = case_.cell == RecurrentCell::kLstm, gru = case_.cell == RecurrentCell::kGru;
    std::vector<Row> h(end - begin + 1, Row(h_)), c = h, y, hidden_part;
    for (std::size_t u = 0; u < h_; ++u) {
      h[0][u] = number(h0_[row * h_ + u]), c[0][u] = number(c0_[row * h_ + u]);
    }
    for (std::size_t t = begin; t < end; ++t) {
      const std::size_t step = t - begin;
      Row given(outer_), own(outer_);
      for (std::size_t i = 0; i < outer_; ++i) {
        given[i] = number(projected_[t * outer_ + i]) + number(b_ih_[i]);
        own[i] = number(b_hh_[i]);
        for (std::size_t k = 0; k < h_; ++k) own[i] += number(w_[i * h_ + k]) * h[step][k];
      }
      Row& next = h[step + 1];
      for (std::size_t u = 0; u < h_; ++u) {
        const auto both = [&](std::size_t g) { return given[g * h_ + u] + own[g * h_ + u]; };
        if (lstm) {
          const double gates[4] = {sigmoid(both(0)), sigmoid(both(1)), activate(both(2)),
                                   sigmoid(both(3))};
          c[step + 1][u] = gates[1] * c[step][u] + gates[0] * gates[2];
          next[u] = gates[3] * activate(c[step + 1][u]);
          for (std::size_t g = 0; g < 4; ++g) own[g * h_ + u] = gates[g];
        } else if (gru) {
          const double reset = sigmoid(both(0)), update = sigmoid(both(1));
          given[u] = own[2 * h_ + u];
          const double candidate = activate(given[2 * h_ + u] + reset * given[u]);
          next[u] = candidate + update * (h[step][u] - candidate);
          own[u] = reset, own[h_ + u] = update, own[2 * h_ + u] = candidate;
        } else {
          next[u] = own[u] = activate(both(0));
        }
        compare(number(output_[t * h_ + u]), next[u], step, "output");
        if (lstm) compare(number(cells_[t * h_ + u], 0), c[step + 1][u], step, "cell");
      }
      y.push_back(own), hidden_part.push_back(given);
    }
    for (std::size_t u = 0; u < h_; ++u) {
      compare(number(h_end_[row * h_ + u]), h.back()[u], end - begin, "h_end");
      if (lstm) compare(number(c_end_[row * h_ + u]), c.back()[u], end - begin, "c_end");
    }
    if (back) check_gradients(row, h, c, y, hidden_part);
  }

  void check_gradients(std::size_t row, const std::vector<Row>& h, const std::vector<Row>& c,
                       const std::vector<Row>& y, const std::vector<Row>& hidden_part) {
    const std::size_t begin = offsets_[row], end = offsets_[row + 1], steps = 2 * (end - begin);
    const bool lstm = case_.cell == RecurrentCell::kLstm, gru = case_.cell == RecurrentCell::kGru;
    Row dh(h_), dc(h_);
    for (std::size_t u = 0; u < h_; ++u) {
      dh[u] = number(d_h_end_[row * h_ + u]), dc[u] = number(d_c_end_[row * h_ + u]);
    }
    for (std::size_t t = end; t-- > begin;) {
      const std::size_t step = t - begin;
      Row d(outer_), carried(h_);
      for (std::size_t u = 0; u < h_; ++u) {
        const auto gate = [&](std::size_t g) { return y[step][g * h_ + u]; };
        const auto gradient = [&](std::size_t g, double value, std::size_t place) {
          if (g < outer_ / h_) d[g * h_ + u] = value;
          compare(number(d_gates_[t * written_ + place * h_ + u]), value, steps, "d_gates");
        };
        const double dy = dh[u] + number(d_output_[t * h_ + u]);
        if (lstm) {
          const double shown = activate(c[step + 1][u]);
          const double all = dc[u] + dy * gate(3) * slope(shown);
          gradient(0, all * gate(2) * gate(0) * (1 - gate(0)), 0);
          gradient(1, all * c[step][u] * gate(1) * (1 - gate(1)), 1);
          gradient(2, all * gate(0) * slope(gate(2)), 2);
          gradient(3, dy * shown * gate(3) * (1 - gate(3)), 3);
          dc[u] = all * gate(1);
        } else if (gru) {
          const double dn = dy * (1 - gate(1)) * slope(gate(2));
          gradient(2, dn * gate(0), 0);
          gradient(0, dn * hidden_part[step][u] * gate(0) * (1 - gate(0)), 1);
          gradient(1, dy * (h[step][u] - gate(2)) * gate(1) * (1 - gate(1)), 2);
          gradient(3, dn, 3);
          carried[u] = dy * gate(1);
        } else {
          gradient(0, dy * slope(gate(0)), 0);
        }
        compare(number(h_prev_[t * h_ + u]), h[step][u], step, "h_prev");
      }
      dh = carried;
      for (std::size_t i = 0; i < outer_; ++i) {
        for (std::size_t k = 0; k < h_; ++k) dh[k] += d[i] * number(w_[i * h_ + k]);
      }
    }
    for (std::size_t u = 0; u < h_; ++u) {
      compare(number(dh0_[row * h_ + u]), dh[u], steps, "dh0");
      if (lstm) compare(number(dc0_[row * h_ + u]), dc[u], steps, "dc0");
    }
  }

  const Case case_;
  const std::size_t h_;
  std::size_t outer_, written_;
  std::mt19937 random_{1};
  std::vector<std::int64_t> offsets_;
  std::vector<T> projected_, w_, w_t_, b_ih_, b_hh_, h0_, c0_, d_output_, d_h_end_, d_c_end_;
  std::vector<T> output_, h_end_, c_end_, gates_, hn_, d_gates_, h_prev_, dh0_, dc0_;
  std::vector<float> cells_;
  std::vector<unsigned char> workspace_;
};

}  // namespace recurrent_test
