// SPDX-License-Identifier: Apache-2.0
// The gradients of recurrent layers on every instruction set, and of the widest one's logic,
// against a plain computation in double from the same saved data. Buffers end where the data ends,
// so that the address sanitizer sees every access beyond them; outputs start as NaN.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "check.h"
#include "ops/recurrent_backward.h"
#include "tables.h"

namespace {

using seqrec::CellActivation;
using seqrec::KernelTable;
using seqrec::RecurrentCell;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

/// One layer with all that its forward pass has left, and the gradients given to it.
struct Layer {
  RecurrentCell cell;
  CellActivation activation;
  std::int64_t inputs, hidden, gates, rows, tokens;
  std::vector<std::int64_t> offsets{0};
  Floats x, w_ih, w_hh, h0, c0, output, kept, cells, hn, d_output, d_h_end, d_c_end;

  Layer(RecurrentCell kind, CellActivation phi, std::int64_t width, std::int64_t units,
        const std::vector<std::int64_t>& lengths, unsigned seed)
      : cell(kind), activation(phi), inputs(width), hidden(units) {
    gates = seqrec::recurrent_gates(cell);
    rows = static_cast<std::int64_t>(lengths.size());
    for (const std::int64_t n : lengths) offsets.push_back(offsets.back() + n);
    tokens = offsets.back();
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::int64_t n, float scale) {
      Floats values(size(n));
      for (float& value : values) value = normal(random) * scale;
      return values;
    };
    const float scale = 1.0f / std::sqrt(static_cast<float>(hidden));
    x = fill(tokens * inputs, 1);
    w_ih = fill(gates * hidden * inputs, scale);
    w_hh = fill(gates * hidden * hidden, scale);
    h0 = fill(rows * hidden, 0.5f);
    c0 = fill(rows * hidden, 0.5f);
    d_output = fill(tokens * hidden, 1);
    d_h_end = fill(rows * hidden, 1);
    d_c_end = fill(rows * hidden, 1);
    // The gradients take any gates; the output of an lstm must be o phi(c).
    kept = fill(tokens * gates * hidden, 1);
    for (std::int64_t i = 0; i < tokens * gates * hidden; ++i) {
      const std::int64_t gate = i / hidden % gates;
      const bool candidate = gate == 2 || cell == RecurrentCell::kRnn;
      kept[size(i)] = static_cast<float>(candidate ? phi_of(kept[size(i)]) : sigma(kept[size(i)]));
    }
    cells = fill(tokens * hidden, 1);
    hn = fill(tokens * hidden, 1);
    output = fill(tokens * hidden, 1);
    for (std::int64_t i = 0; i < tokens * hidden; ++i) {
      const std::int64_t token = i / hidden, u = i % hidden;
      float& h = output[size(i)];
      h = static_cast<float>(phi_of(h));
      if (cell == RecurrentCell::kLstm) {
        h = static_cast<float>(kept[size((token * 4 + 3) * hidden + u)] * phi_of(cells[size(i)]));
      }
    }
  }

  static double sigma(double v) { return 1 / (1 + std::exp(-v)); }
  double phi_of(double v) const {
    return activation == CellActivation::kTanh ? std::tanh(v) : sigma(v);
  }
  double slope(double y) const {
    return activation == CellActivation::kTanh ? 1 - y * y : y * (1 - y);
  }
};

/// The gradients in double, or those of a kernel.
template <typename T>
struct Found {
  std::vector<T> dx, dw_ih, dw_hh, db_ih, db_hh, dh0, dc0;

  Found(const Layer& l, T fill)
      : dx(size(l.tokens * l.inputs), fill),
        dw_ih(size(l.gates * l.hidden * l.inputs), fill),
        dw_hh(size(l.gates * l.hidden * l.hidden), fill),
        db_ih(size(l.gates * l.hidden), fill),
        db_hh(size(l.gates * l.hidden), fill),
        dh0(size(l.rows * l.hidden), fill),
        dc0(size(l.rows * l.hidden), fill) {}
};

Found<double> expected(const Layer& l, bool from_output, bool from_end, bool has_state) {
  Found<double> out(l, 0.0);
  const std::int64_t h = l.hidden, all = l.gates * h;
  for (std::int64_t row = 0; row < l.rows; ++row) {
    Doubles dh(size(h)), dc(size(h));
    for (std::int64_t u = 0; u < h; ++u) {
      dh[size(u)] = from_end ? l.d_h_end[size(row * h + u)] : 0;
      dc[size(u)] = from_end ? l.d_c_end[size(row * h + u)] : 0;
    }
    for (std::int64_t k = l.offsets[size(row + 1)] - 1; k >= l.offsets[size(row)]; --k) {
      const bool first = k == l.offsets[size(row)];
      const auto before = [&](const Floats& each, const Floats& start, std::int64_t u) -> double {
        if (!first) return each[size((k - 1) * h + u)];
        return has_state ? start[size(row * h + u)] : 0.0f;
      };
      Doubles d_in(size(all)), d_back(size(all)), dh_prev(size(h));
      for (std::int64_t u = 0; u < h; ++u) {
        const auto gate = [&](std::int64_t g) {
          return static_cast<double>(l.kept[size(k * all + g * h + u)]);
        };
        const auto both = [&](std::int64_t g, double value) {
          d_in[size(g * h + u)] = d_back[size(g * h + u)] = value;
        };
        const double now = l.output[size(k * h + u)];
        const double d = dh[size(u)] + (from_output ? l.d_output[size(k * h + u)] : 0);
        if (l.cell == RecurrentCell::kRnn) {
          both(0, d * l.slope(now));
        } else if (l.cell == RecurrentCell::kLstm) {
          const double i = gate(0), f = gate(1), g = gate(2), o = gate(3);
          const double shown = l.phi_of(l.cells[size(k * h + u)]);
          const double c = dc[size(u)] + d * o * l.slope(shown);
          both(0, c * g * i * (1 - i));
          both(1, c * before(l.cells, l.c0, u) * f * (1 - f));
          both(2, c * i * l.slope(g));
          both(3, d * shown * o * (1 - o));
          dc[size(u)] = c * f;
        } else {
          const double r = gate(0), z = gate(1), n = gate(2);
          const double dn = d * (1 - z) * l.slope(n);
          both(0, dn * l.hn[size(k * h + u)] * r * (1 - r));
          both(1, d * (before(l.output, l.h0, u) - n) * z * (1 - z));
          d_in[size(2 * h + u)] = dn;
          d_back[size(2 * h + u)] = dn * r;
          dh_prev[size(u)] = d * z;
        }
      }
      for (std::int64_t g = 0; g < all; ++g) {
        const double in = d_in[size(g)], back = d_back[size(g)];
        for (std::int64_t u = 0; u < h; ++u) {
          dh_prev[size(u)] += back * l.w_hh[size(g * h + u)];
          out.dw_hh[size(g * h + u)] += back * before(l.output, l.h0, u);
        }
        for (std::int64_t j = 0; j < l.inputs; ++j) {
          out.dx[size(k * l.inputs + j)] += in * l.w_ih[size(g * l.inputs + j)];
          out.dw_ih[size(g * l.inputs + j)] += in * l.x[size(k * l.inputs + j)];
        }
        out.db_ih[size(g)] += in;
        out.db_hh[size(g)] += back;
      }
      dh = dh_prev;
    }
    std::copy(dh.begin(), dh.end(), out.dh0.begin() + row * h);
    std::copy(dc.begin(), dc.end(), out.dc0.begin() + row * h);
  }
  return out;
}

void check_close(const Floats& got, const Doubles& want, const char* name, const char* isa) {
  double largest = 1e-3;
  for (const double value : want) largest = std::max(largest, std::abs(value));
  for (std::size_t i = 0; i < want.size(); ++i) {
    CHECK(std::abs(got[i] - want[i]) <= 2e-5 * largest, "%s %s[%zu]: %g, expected %g", isa, name, i,
          static_cast<double>(got[i]), want[i]);
  }
}

struct Options {
  bool from_output = true, from_end = true, has_state = true;
  int threads = 1;
};

Found<float> computed(Layer& l, const KernelTable& table, const Options& o) {
  Found<float> got(l, std::numeric_limits<float>::quiet_NaN());
  const bool lstm = l.cell == RecurrentCell::kLstm, gru = l.cell == RecurrentCell::kGru;
  seqrec::RecurrentProblem p{};
  p.cell = l.cell;
  p.activation = l.activation;
  p.tokens = l.tokens;
  p.rows = l.rows;
  p.inputs = l.inputs;
  p.hidden = l.hidden;
  p.x = l.x.data();
  p.offsets = l.offsets.data();
  p.w_ih = l.w_ih.data();
  p.w_hh = l.w_hh.data();
  p.h0 = o.has_state ? l.h0.data() : nullptr;
  p.c0 = o.has_state && lstm ? l.c0.data() : nullptr;
  p.output = l.output.data();
  p.gates = lstm || gru ? l.kept.data() : nullptr;
  p.cells = lstm ? l.cells.data() : nullptr;
  p.hn = gru ? l.hn.data() : nullptr;
  seqrec::RecurrentGradients g{};
  g.d_output = o.from_output ? l.d_output.data() : nullptr;
  g.d_h_end = o.from_end ? l.d_h_end.data() : nullptr;
  g.d_c_end = o.from_end && lstm ? l.d_c_end.data() : nullptr;
  g.dx = got.dx.data();
  g.dw_ih = got.dw_ih.data();
  g.dw_hh = got.dw_hh.data();
  g.db_ih = got.db_ih.data();
  g.db_hh = gru ? got.db_hh.data() : nullptr;
  g.dh0 = got.dh0.data();
  g.dc0 = lstm ? got.dc0.data() : nullptr;
  seqrec::recurrent_backward(p, g, o.threads, table);
  return got;
}

void check(Layer& l, const Options& o) {
  const Found<double> want = expected(l, o.from_output, o.from_end, o.has_state);
  for (const KernelTable* table : all_tables()) {
    const Found<float> got = computed(l, *table, o);
    check_close(got.dx, want.dx, "dx", table->name);
    check_close(got.dw_ih, want.dw_ih, "dw_ih", table->name);
    check_close(got.dw_hh, want.dw_hh, "dw_hh", table->name);
    check_close(got.db_ih, want.db_ih, "db_ih", table->name);
    check_close(got.dh0, want.dh0, "dh0", table->name);
    if (l.cell == RecurrentCell::kGru) check_close(got.db_hh, want.db_hh, "db_hh", table->name);
    if (l.cell == RecurrentCell::kLstm) check_close(got.dc0, want.dc0, "dc0", table->name);
  }
}

constexpr RecurrentCell kCells[] = {RecurrentCell::kRnn, RecurrentCell::kLstm, RecurrentCell::kGru};

TEST(recurrent_backward_of_odd_sizes) {
  unsigned seed = 0;
  for (const RecurrentCell cell : kCells) {
    for (const CellActivation phi : {CellActivation::kTanh, CellActivation::kSigmoid}) {
      for (const auto& [inputs, hidden] : {std::pair<int, int>{1, 1}, {3, 5}, {17, 16}, {50, 37}}) {
        Layer l(cell, phi, inputs, hidden, {0, 3, 1, 7, 0, 2, 7, 5}, ++seed);
        check(l, {});
      }
    }
  }
}

TEST(recurrent_backward_of_every_tile) {
  unsigned seed = 100;
  for (std::int64_t rows = 1; rows <= 26; ++rows) {
    for (const RecurrentCell cell : kCells) {
      Layer l(cell, CellActivation::kTanh, 8 * (rows % 13) + 1, 20,
              std::vector<std::int64_t>(size(rows), 2), ++seed);
      check(l, {true, rows % 2 == 0, rows % 3 == 0, 1});
    }
  }
}

TEST(recurrent_backward_without_tokens) {
  for (const RecurrentCell cell : kCells) {
    Layer none(cell, CellActivation::kTanh, 3, 5, {0, 0}, 1);
    check(none, {});
    Layer no_rows(cell, CellActivation::kTanh, 3, 5, {}, 1);
    check(no_rows, {});
  }
}

TEST(recurrent_backward_threads) {
  std::vector<std::int64_t> lengths;
  std::mt19937 random(3);
  for (int i = 0; i < 300; ++i) lengths.push_back(static_cast<std::int64_t>(random() % 12));
  for (const RecurrentCell cell : kCells) {
    Layer l(cell, CellActivation::kTanh, 12, 21, lengths, 7);
    check(l, {true, true, true, 4});
    const KernelTable& table = seqrec::kernels();
    const Found<float> one = computed(l, table, {true, true, true, 1});
    const Found<float> four = computed(l, table, {true, true, true, 4});
    const auto same = [](const Floats& a, const Floats& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    };
    CHECK(same(one.dw_hh, four.dw_hh) && same(one.dw_ih, four.dw_ih));
    CHECK(same(one.db_ih, four.db_ih) && same(one.dx, four.dx) && same(one.dh0, four.dh0));
  }
}

}  // namespace
