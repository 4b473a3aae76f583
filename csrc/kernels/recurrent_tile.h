// SPDX-License-Identifier: Apache-2.0
// The sums of a time step: a few rows against the weights of one panel, held in registers.
#pragma once

#include "base/simd.h"
#include "kernels/recurrent_gates.h"

namespace seqrec {
namespace SEQREC_ISA {

/// acc[r][v] += sum over k of a[r][k] * b[k][v].
template <int W, int NV, int MR>
SEQREC_INLINE void accumulate(const float* const* rows, std::int64_t depth, const float* b,
                              Floats<W> (&acc)[MR][NV]) {
  if constexpr (MR == 1) {
    // one row has too few sums to hide the latency of a multiply-add: each is split in S
    constexpr int S = kNativeLanes == 16 ? 2 : 3;
    Floats<W> part[S][NV] = {};
    const float* a = rows[0];
    std::int64_t k = 0;
    for (; k + S <= depth; k += S) {
      for (int s = 0; s < S; ++s) {
        const Floats<W> x = broadcast<W>(a[k + s]);
        for (int v = 0; v < NV; ++v) part[s][v] += x * load<W>(b + ((k + s) * NV + v) * W);
      }
    }
    for (; k < depth; ++k) {
      const Floats<W> x = broadcast<W>(a[k]);
      for (int v = 0; v < NV; ++v) part[0][v] += x * load<W>(b + (k * NV + v) * W);
    }
    for (int s = 0; s < S; ++s) {
      for (int v = 0; v < NV; ++v) acc[0][v] += part[s][v];
    }
  } else {
    const float* a[MR];
    for (int r = 0; r < MR; ++r) a[r] = rows[r];
    for (std::int64_t k = 0; k < depth; ++k) {
      if constexpr (MR < NV && kNativeLanes < 16) {
        Floats<W> x[MR];
        for (int r = 0; r < MR; ++r) x[r] = broadcast<W>(a[r][k]);
        for (int v = 0; v < NV; ++v) {
          const Floats<W> column = load<W>(b + v * W);
          for (int r = 0; r < MR; ++r) acc[r][v] += x[r] * column;
        }
      } else {
        Floats<W> column[NV];
        for (int v = 0; v < NV; ++v) column[v] = load<W>(b + v * W);
        for (int r = 0; r < MR; ++r) {
          const Floats<W> x = broadcast<W>(a[r][k]);
          for (int v = 0; v < NV; ++v) acc[r][v] += x * column[v];
        }
      }
      b += NV * W;
    }
  }
}

/// What one tile of rows multiplies: inputs (none where they have been projected), hidden states
/// (none at a step from zeros), and what the sums begin with.
template <int W>
struct TileInput {
  const float* x[GateRows::kMaxRows];
  const float* h[GateRows::kMaxRows];
  std::int64_t x_depth;
  std::int64_t h_depth;
  const float* wx;
  const float* wh;
  const float* start;         // [NV][W] a row
  std::ptrdiff_t start_step;  // from one row to the next; 0: the biases, the same for all
  const float* bias_hn;       // gru: [W]
};

/// The sums of MR rows, [MR][4][W].
template <int W, int NV, int MR>
SEQREC_NOINLINE void tile_sums(const TileInput<W>& in, float* sums) {
  Floats<W> acc[MR][NV];
  for (int r = 0; r < MR; ++r) {
    for (int v = 0; v < NV; ++v) acc[r][v] = load<W>(in.start + r * in.start_step + v * W);
  }
  accumulate<W, NV, MR>(in.x, in.x_depth, in.wx, acc);
  if constexpr (NV == 3) {
    // the candidate of a gru keeps its two sums apart
    const Floats<W> bias = load<W>(in.bias_hn);
    for (int r = 0; r < MR; ++r) {
      store<W>(sums + (r * 4 + 2) * W, acc[r][2]);
      acc[r][2] = bias;
    }
  }
  accumulate<W, NV, MR>(in.h, in.h_depth, in.wh, acc);
  for (int r = 0; r < MR; ++r) {
    store<W>(sums + r * 4 * W, acc[r][0]);
    store<W>(sums + (r * 4 + 1) * W, acc[r][1]);
    if constexpr (NV == 4) store<W>(sums + (r * 4 + 2) * W, acc[r][2]);
    store<W>(sums + (r * 4 + 3) * W, acc[r][NV - 1]);
  }
}

/// The input part of the sums of MR tokens, [MR][NV][W].
template <int W, int NV, int MR>
SEQREC_NOINLINE void tile_projection(const TileInput<W>& in, float* sums) {
  Floats<W> acc[MR][NV];
  for (int r = 0; r < MR; ++r) {
    for (int v = 0; v < NV; ++v) acc[r][v] = load<W>(in.start + v * W);
  }
  accumulate<W, NV, MR>(in.x, in.x_depth, in.wx, acc);
  for (int r = 0; r < MR; ++r) {
    for (int v = 0; v < NV; ++v) store<W>(sums + (r * NV + v) * W, acc[r][v]);
  }
}

/// Rows of a full tile: as many as fill the registers.
template <int NV>
inline constexpr int kTileRows = kNativeLanes == 16 ? (NV == 4 ? 6 : 8) : (NV == 4 ? 3 : 4);

/// tile_sums (or tile_projection) of `rows` rows, 1 to kTileRows.
template <int W, int NV, bool Projection, int MR = kTileRows<NV>>
SEQREC_INLINE void any_tile(int rows, const TileInput<W>& in, float* sums) {
  if constexpr (MR > 1) {
    if (rows < MR) return any_tile<W, NV, Projection, MR - 1>(rows, in, sums);
  }
  if constexpr (Projection) {
    tile_projection<W, NV, MR>(in, sums);
  } else {
    tile_sums<W, NV, MR>(in, sums);
  }
}

}  // namespace SEQREC_ISA
}  // namespace seqrec
