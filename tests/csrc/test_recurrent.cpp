// SPDX-License-Identifier: Apache-2.0
// The recurrent layers of every instruction set against a plain computation in double. Buffers end
// where the data ends, so that the address sanitizer sees every access beyond them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "ops/recurrent.h"
#include "tables.h"

namespace {

using seqrec::CellActivation;
using seqrec::RecurrentCell;
using Numbers = std::vector<float>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Case {
  RecurrentCell cell;
  CellActivation activation;
  std::int64_t inputs, hidden;
  bool extras;  // biases, initial state, and all that is kept for the gradient
  int threads;
};

class Layer {
 public:
  Layer(const Case& c, const std::vector<std::int64_t>& lengths) : case_(c), offsets_{0} {
    for (std::int64_t n : lengths) offsets_.push_back(offsets_.back() + n);
    rows_ = static_cast<std::int64_t>(lengths.size());
    gates_ = seqrec::recurrent_gates(c.cell);
    const float bound = 1 / std::sqrt(static_cast<float>(c.hidden));
    x_ = draw(tokens() * c.inputs, 1);
    w_ih_ = draw(gates_ * c.hidden * c.inputs, bound);
    w_hh_ = draw(gates_ * c.hidden * c.hidden, bound);
    b_ih_ = draw(gates_ * c.hidden, bound);
    b_hh_ = draw(gates_ * c.hidden, bound);
    h0_ = draw(rows_ * c.hidden, 1);
    c0_ = draw(rows_ * c.hidden, 1);
  }

  void check(const seqrec::KernelTable& table) const {
    const bool lstm = case_.cell == RecurrentCell::kLstm, gru = case_.cell == RecurrentCell::kGru;
    const auto poisoned = [](std::int64_t n) { return Numbers(static_cast<std::size_t>(n), kNan); };
    Numbers output = poisoned(tokens() * case_.hidden), h_end = poisoned(rows_ * case_.hidden);
    Numbers c_end = poisoned(lstm ? rows_ * case_.hidden : 0);
    Numbers kept = poisoned(lstm || gru ? tokens() * gates_ * case_.hidden : 0);
    Numbers cells = poisoned(lstm ? tokens() * case_.hidden : 0);
    Numbers hn = poisoned(gru ? tokens() * case_.hidden : 0);
    seqrec::RecurrentProblem p{};
    p.cell = case_.cell;
    p.activation = case_.activation;
    p.tokens = tokens();
    p.rows = rows_;
    p.inputs = case_.inputs;
    p.hidden = case_.hidden;
    p.x = x_.data();
    p.offsets = offsets_.data();
    p.w_ih = w_ih_.data();
    p.w_hh = w_hh_.data();
    p.output = output.data();
    p.h_end = h_end.data();
    p.c_end = c_end.data();
    if (case_.extras) {
      p.b_ih = b_ih_.data();
      p.b_hh = b_hh_.data();
      p.h0 = h0_.data();
      if (lstm) p.c0 = c0_.data();
      if (lstm || gru) p.gates = kept.data();
      if (lstm) p.cells = cells.data();
      if (gru) p.hn = hn.data();
    }
    seqrec::recurrent_forward(p, case_.threads, table);
    for (std::int64_t row = 0; row < rows_; ++row) {
      std::vector<double> h = start(h0_, row), c = start(c0_, row);
      for (std::int64_t t = offsets_[at(row)]; t < offsets_[at(row + 1)]; ++t) {
        advance(t, h, c);
        for (std::int64_t u = 0; u < case_.hidden; ++u) {
          near(table, output[at(t * case_.hidden + u)], h[at(u)]);
          if (lstm && case_.extras) near(table, cells[at(t * case_.hidden + u)], c[at(u)]);
        }
      }
      for (std::int64_t u = 0; u < case_.hidden; ++u) {
        near(table, h_end[at(row * case_.hidden + u)], h[at(u)]);
        if (lstm) near(table, c_end[at(row * case_.hidden + u)], c[at(u)]);
      }
    }
    if (!case_.extras) return;
    for (const Numbers* numbers : {&kept, &hn}) {
      for (const float v : *numbers) CHECK(!std::isnan(v), "%s: not all is kept", table.name);
    }
  }

 private:
  static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }
  static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
  double phi(double x) const {
    return case_.activation == CellActivation::kTanh ? std::tanh(x) : sigmoid(x);
  }
  std::int64_t tokens() const { return offsets_.back(); }

  static void near(const seqrec::KernelTable& table, float found, double want) {
    CHECK(std::fabs(found - want) <= 4e-6, "%s: %g, not %g", table.name, found, want);
  }

  Numbers draw(std::int64_t count, float scale) {
    std::normal_distribution<float> normal(0, scale);
    Numbers made(at(count));
    for (float& v : made) v = normal(random_);
    return made;
  }

  std::vector<double> start(const Numbers& from, std::int64_t row) const {
    std::vector<double> state(at(case_.hidden), 0);
    for (std::int64_t u = 0; u < case_.hidden && case_.extras; ++u) {
      state[at(u)] = from[at(row * case_.hidden + u)];
    }
    return state;
  }

  void advance(std::int64_t t, std::vector<double>& h, std::vector<double>& c) const {
    const std::int64_t hidden = case_.hidden;
    std::vector<double> a(at(gates_ * hidden), 0), b(at(gates_ * hidden), 0);
    for (std::int64_t j = 0; j < gates_ * hidden; ++j) {
      if (case_.extras) a[at(j)] = b_ih_[at(j)], b[at(j)] = b_hh_[at(j)];
      for (std::int64_t k = 0; k < case_.inputs; ++k) {
        a[at(j)] +=
            static_cast<double>(x_[at(t * case_.inputs + k)]) * w_ih_[at(j * case_.inputs + k)];
      }
      for (std::int64_t k = 0; k < hidden; ++k) b[at(j)] += h[at(k)] * w_hh_[at(j * hidden + k)];
    }
    for (std::int64_t u = 0; u < hidden; ++u) {
      const auto sum = [&](std::int64_t gate) {
        return a[at(gate * hidden + u)] + b[at(gate * hidden + u)];
      };
      if (case_.cell == RecurrentCell::kRnn) {
        h[at(u)] = phi(sum(0));
      } else if (case_.cell == RecurrentCell::kLstm) {
        c[at(u)] = sigmoid(sum(1)) * c[at(u)] + sigmoid(sum(0)) * phi(sum(2));
        h[at(u)] = sigmoid(sum(3)) * phi(c[at(u)]);
      } else {
        const double n = phi(a[at(2 * hidden + u)] + sigmoid(sum(0)) * b[at(2 * hidden + u)]);
        h[at(u)] = n + sigmoid(sum(1)) * (h[at(u)] - n);
      }
    }
  }

  Case case_;
  std::vector<std::int64_t> offsets_;
  std::int64_t rows_, gates_;
  Numbers x_, w_ih_, w_hh_, b_ih_, b_hh_, h0_, c0_;
  std::mt19937 random_{7};
};

constexpr RecurrentCell kCells[] = {RecurrentCell::kRnn, RecurrentCell::kLstm, RecurrentCell::kGru};

}  // namespace

TEST(recurrent_sizes) {
  for (RecurrentCell cell : kCells) {
    for (std::int64_t hidden : {1, 5, 17, 40, 70}) {
      for (std::int64_t inputs : {1, 6}) {
        for (bool extras : {false, true}) {
          const auto activation =
              hidden % 2 == 1 ? CellActivation::kTanh : CellActivation::kSigmoid;
          const Layer layer({cell, activation, inputs, hidden, extras, 1},
                            {3, 0, 7, 1, 7, 2, 2, 5, 1, 4, 6, 50});
          for (const seqrec::KernelTable* table : all_tables()) layer.check(*table);
        }
      }
    }
  }
}

/// Few rows are shared by their hidden units.
TEST(recurrent_threads_of_few_rows) {
  for (RecurrentCell cell : kCells) {
    for (const std::vector<std::int64_t>& lengths :
         {std::vector<std::int64_t>{300}, {0, 120, 0}, {90, 150}}) {
      for (bool extras : {false, true}) {
        const Layer layer({cell, CellActivation::kTanh, 20, 140, extras, 3}, lengths);
        for (const seqrec::KernelTable* table : all_tables()) layer.check(*table);
      }
    }
  }
}

/// Packed weights are those of the layer, however it was changed, and are packed once.
TEST(recurrent_packing) {
  const std::int64_t hidden = 19, inputs = 5;
  for (const seqrec::KernelTable* table : all_tables()) {
    for (RecurrentCell cell : kCells) {
      const std::int64_t outputs = seqrec::recurrent_gates(cell) * hidden;
      const auto ones = [](std::int64_t n) { return Numbers(static_cast<std::size_t>(n), 1.0f); };
      Numbers w_ih = ones(outputs * inputs), w_hh = ones(outputs * hidden);
      Numbers b_ih = ones(outputs), b_hh = ones(outputs);
      seqrec::RecurrentProblem p{};
      p.cell = cell;
      p.inputs = inputs;
      p.hidden = hidden;
      p.w_ih = w_ih.data();
      p.w_hh = w_hh.data();
      p.b_ih = b_ih.data();
      p.b_hh = b_hh.data();
      seqrec::RecurrentPacking packing;
      const auto packed = [&] { return packing.of(p, 1, *table); };
      auto before = packed();
      CHECK(packed() == before, "%s", table->name);
      for (Numbers* numbers : {&w_ih, &w_hh, &b_ih, &b_hh}) {
        for (const std::size_t i : {std::size_t{0}, numbers->size() / 2, numbers->size() - 1}) {
          (*numbers)[i] = -(*numbers)[i];  // the one bit that multiplying cannot spread
          const auto after = packed();
          CHECK(after != before, "%s: number %zu", table->name, i);
          Numbers want(static_cast<std::size_t>(table->recurrent->packed_size(p)), kNan);
          table->recurrent->pack(p, 0, table->recurrent->panels(p), want.data());
          CHECK(std::equal(want.begin(), want.end(), after->data()), "%s", table->name);
          before = after;
        }
        // two signs at once, and two numbers that change places
        (*numbers)[0] *= -1;
        numbers->back() *= -1;
        const auto twice = packed();
        CHECK(twice != before, "%s", table->name);
        (*numbers)[1] = 3;
        const auto third = packed();
        std::swap((*numbers)[1], (*numbers)[numbers->size() / 2]);
        CHECK(packed() != third, "%s", table->name);
        before = packed();
      }
      p.b_hh = nullptr;
      CHECK(packed() != before, "%s", table->name);
      p.activation = CellActivation::kSigmoid;
      const auto sigma = packed();
      CHECK(sigma != before && packed() == sigma, "%s", table->name);
    }
  }
}

TEST(recurrent_threads) {
  std::vector<std::int64_t> lengths;
  for (std::int64_t i = 0; i < 60; ++i) lengths.push_back(i * 7 % 40);
  for (RecurrentCell cell : kCells) {
    const Layer layer({cell, CellActivation::kTanh, 40, 50, true, 4}, lengths);
    for (const seqrec::KernelTable* table : all_tables()) layer.check(*table);
  }
}
