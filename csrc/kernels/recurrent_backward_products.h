// SPDX-License-Identifier: Apache-2.0
// The matrix products of the recurrent gradients, all of which have the gate gradients as one
// factor:
//
//   with weights   dh = dP U, dx = dP W     depth: gates    `multiply_weights`
//   with inputs    dU = dP' h, dW = dP' x   depth: tokens   `multiply_inputs`
//
// The gate gradients dP of a chunk of tokens lie in groups of kGroup gates, [group][token][kGroup].
// Read along the tokens a group is a panel for the second kind; a tile of rows of the first kind
// reads one cache line a row, next to each other whatever the size of the layer. So one copy,
// written by the gates themselves, serves both without strides that fall on one another in the
// cache.
#pragma once

#include "base/simd.h"
#include "kernels/recurrent_backward_gates.h"
#include "kernels/tile.h"

namespace seqrec {
namespace SEQREC_ISA {

/// Vectors of columns of a panel; the last panel may have fewer.
template <int W>
inline constexpr int kBackVectors = W == 16 ? 2 : 3;
template <int W>
inline constexpr int kInputVectors = 3;

/// Rows of a tile of NV vectors of columns: what the registers hold.
template <int W, int NV>
inline constexpr int kBackRows = W == 16   ? 12
                                 : NV == 3 ? 4
                                 : NV == 2 ? 6
                                           : 8;
template <int W, int NV>
inline constexpr int kInputRows = W == 16 ? (NV == 1 ? 16 : 8) : (NV == 1 ? 8 : 4);

/// Gates multiplied at once: their part of a panel of weights stays in the first cache.
inline constexpr std::int64_t kBlockGroups = 12;

/// Memory to be fetched into the second cache while a product runs, a few lines at a time.
struct Ahead {
  static constexpr std::int64_t kBytes = 256;
  const char* const* pieces;  // of kBytes each
  std::int64_t count;
  std::int64_t per_group;  // pieces fetched for each group of gates that a tile multiplies

  SEQREC_INLINE void fetch() {
    for (std::int64_t i = 0; i < per_group && count > 0; ++i, --count, ++pieces) {
      for (std::int64_t line = 0; line < kBytes; line += 64) {
        __builtin_prefetch(*pieces + line, 0, 2);
      }
    }
  }
};

struct WeightProduct {
  const float* d_gates;       // first row in the first group
  std::ptrdiff_t group_step;  // from a group to the next
  std::int64_t groups;
  const float* packed;  // [panels][groups * kGroup][NV * W]
  std::int64_t columns;
  float* const* out;  // [rows]
};

template <int W, int NV, int MR>
SEQREC_NOINLINE void weight_tile(const WeightProduct& p, const float* a, const float* b,
                                 std::int64_t groups, bool add, float* const* out,
                                 std::int64_t column, Ahead& ahead) {
  Floats<W> acc[MR][NV] = {};
  for (std::int64_t g = 0; g < groups; ++g) {
    ahead.fetch();
    multiply_tile<W, MR, NV>(a, kGroup, b, kGroup, acc);
    a += p.group_step;
    b += kGroup * NV * W;
  }
  const std::int64_t left = p.columns - column;
  if (left >= NV * W) {
    for (int r = 0; r < MR; ++r) {
      for (int v = 0; v < NV; ++v) {
        float* to = out[r] + column + v * W;
        store<W>(to, add ? acc[r][v] + load<W>(to) : acc[r][v]);
      }
    }
    return;
  }
  for (int r = 0; r < MR; ++r) {
    for (int v = 0; v < NV; ++v) {
      float* to = out[r] + column + v * W;
      const std::int64_t part = left - v * W < W ? left - v * W : W;
      store_part<W>(to, add ? acc[r][v] + load_part<W>(to, part) : acc[r][v], part);
    }
  }
}

template <int W, int NV, int MR = kBackRows<W, NV>>
SEQREC_INLINE void any_weight_tile(int rows, const WeightProduct& p, const float* a, const float* b,
                                   std::int64_t groups, bool add, float* const* out,
                                   std::int64_t column, Ahead& ahead) {
  if constexpr (MR > 1) {
    if (rows < MR) {
      return any_weight_tile<W, NV, MR - 1>(rows, p, a, b, groups, add, out, column, ahead);
    }
  }
  weight_tile<W, NV, MR>(p, a, b, groups, add, out, column, ahead);
}

template <int W, int NV>
SEQREC_INLINE void weight_panel(const WeightProduct& p, std::int64_t rows, std::int64_t column,
                                bool add, Ahead& ahead) {
  constexpr std::int64_t kRows = kBackRows<W, NV>;
  const float* panel = p.packed + column * p.groups * kGroup;
  const std::int64_t tiles = (rows + kRows - 1) / kRows;
  for (std::int64_t g = 0; g < p.groups; g += kBlockGroups) {
    const std::int64_t groups = p.groups - g < kBlockGroups ? p.groups - g : kBlockGroups;
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t begin = rows * t / tiles, end = rows * (t + 1) / tiles;
      any_weight_tile<W, NV>(
          static_cast<int>(end - begin), p, p.d_gates + g * p.group_step + begin * kGroup,
          panel + g * kGroup * NV * W, groups, add || g > 0, p.out + begin, column, ahead);
    }
  }
}

/// Groups of gates that the tiles of a product multiply, all together.
template <int W>
SEQREC_INLINE std::int64_t weight_product_groups(std::int64_t rows, std::int64_t columns,
                                                 std::int64_t groups) {
  constexpr std::int64_t NV = kBackVectors<W>, kRows = kBackRows<W, NV>;
  return (columns + NV * W - 1) / (NV * W) * ((rows + kRows - 1) / kRows) * groups;
}

/// out[row] = (or +=) dP[row] times the packed weights.
template <int W>
void multiply_weights(const WeightProduct& p, std::int64_t rows, bool add, Ahead ahead) {
  constexpr int NV = kBackVectors<W>;
  const std::int64_t vectors = (p.columns + W - 1) / W;
  std::int64_t v = 0;
  for (; v + NV <= vectors; v += NV) weight_panel<W, NV>(p, rows, v * W, add, ahead);
  if (v == vectors) return;
  if constexpr (NV == 3) {
    if (vectors - v == 2) return weight_panel<W, 2>(p, rows, v * W, add, ahead);
  }
  weight_panel<W, 1>(p, rows, v * W, add, ahead);
}

/// Packs rows of a weight matrix for multiply_weights: `gates` blocks of `hidden` rows, the first
/// at row `first` * hidden, the following ones after it, modulo `gates`.
template <int W>
void pack_weights(const float* weight, std::int64_t gates, std::int64_t first, std::int64_t hidden,
                  std::int64_t columns, float* packed) {
  constexpr int NV = kBackVectors<W>;
  const std::int64_t padded = (hidden + kGroup - 1) / kGroup * kGroup;
  const std::int64_t vectors = (columns + W - 1) / W;
  for (std::int64_t v = 0; v < vectors; v += NV) {
    const std::int64_t width = (vectors - v < NV ? vectors - v : NV) * W;
    const std::int64_t there = columns - v * W < width ? columns - v * W : width;
    for (std::int64_t g = 0; g < gates; ++g) {
      const float* block = weight + (g + first) % gates * hidden * columns + v * W;
      for (std::int64_t u = 0; u < padded; ++u, packed += width) {
        std::int64_t j = 0;
        if (u < hidden) {
          for (; j < there; ++j) packed[j] = block[u * columns + j];
        }
        for (; j < width; ++j) packed[j] = 0.0f;
      }
    }
  }
}

/// Packs columns of the inputs of a chunk (x, or h before the token) for multiply_inputs:
/// [panels][tokens][NV * W].
template <int W, typename Row>
SEQREC_INLINE void pack_inputs(const Row& row, std::int64_t tokens, std::int64_t columns,
                               float* packed) {
  constexpr int NV = kInputVectors<W>;
  for (std::int64_t column = 0; column < columns; column += NV * W) {
    const std::int64_t left = columns - column;
    const std::int64_t width = left < NV * W ? (left + W - 1) / W * W : NV * W;
    for (std::int64_t i = 0; i < tokens; ++i, packed += width) {
      const float* from = row(i);
      for (std::int64_t j = 0; j < width; j += W) {
        Floats<W> value{};
        if (from != nullptr) {
          const float* there = from + column + j;
          value = left - j >= W ? load<W>(there) : load_part<W>(there, left - j);
        }
        store<W>(packed + j, value);
      }
    }
  }
}

template <int W, int NV>
SEQREC_NOINLINE void input_panel(const float* d_gates, std::ptrdiff_t group_step,
                                 std::int64_t groups, const float* inputs, std::int64_t tokens,
                                 bool add, float* sums) {
  constexpr int MR = kInputRows<W, NV>;
  for (std::int64_t g = 0; g < groups; ++g) {
    for (int part = 0; part < kGroup; part += MR) {
      Floats<W> acc[MR][NV] = {};
      multiply_tile<W, MR, NV, true>(d_gates + g * group_step + part, kGroup, inputs, tokens, acc);
      for (int r = 0; r < MR; ++r) {
        for (int v = 0; v < NV; ++v, sums += W) {
          store<W>(sums, add ? acc[r][v] + load<W>(sums) : acc[r][v]);
        }
      }
    }
  }
}

/// sums[panels][groups * kGroup][NV * W] = (or +=) dP transposed times packed inputs.
template <int W>
void multiply_inputs(const float* d_gates, std::ptrdiff_t group_step, std::int64_t groups,
                     const float* packed, std::int64_t columns, std::int64_t tokens, bool add,
                     float* sums) {
  constexpr int NV = kInputVectors<W>;
  const std::int64_t vectors = (columns + W - 1) / W;
  for (std::int64_t v = 0; v < vectors; v += NV) {
    const float* inputs = packed + v * tokens * W;
    float* to = sums + v * W * groups * kGroup;
    const std::int64_t left = vectors - v;
    if (left >= 3) {
      input_panel<W, 3>(d_gates, group_step, groups, inputs, tokens, add, to);
    } else if (left == 2) {
      input_panel<W, 2>(d_gates, group_step, groups, inputs, tokens, add, to);
    } else {
      input_panel<W, 1>(d_gates, group_step, groups, inputs, tokens, add, to);
    }
  }
}

}  // namespace SEQREC_ISA
}  // namespace seqrec
