// SPDX-License-Identifier: Apache-2.0
// The sums of a time step: a few rows against the weights of one panel, held in registers.
#pragma once

#include "base/simd.h"
#include "kernels/recurrent_gates.h"

namespace seqrec {
namespace SEQREC_ISA {

/// acc[r][v] += sum over k of a[r][k] * b[k][v]; k ascends with step 1 and descends with step -1.
template <int W, int NV, int MR>
SEQREC_INLINE void accumulate(const float* const* rows, std::int64_t depth, const float* b,
                              std::ptrdiff_t step, Floats<W> (&acc)[MR][NV]) {
  const float* a[MR];
  for (int r = 0; r < MR; ++r) a[r] = rows[r];
  std::ptrdiff_t k = step > 0 ? 0 : depth - 1;
  const std::ptrdiff_t b_step = step * NV * W;
  b += k * NV * W;
  std::int64_t left = depth;
  if constexpr (MR == 1) {
    // one row has too few sums to hide the latency of a multiply-add: each is split in S
    constexpr int S = kNativeLanes == 16 ? 2 : 3;
    Floats<W> part[S][NV] = {};
    for (; left >= S; left -= S) {
      for (int s = 0; s < S; ++s) {
        const Floats<W> x = broadcast<W>(a[0][k]);
        for (int v = 0; v < NV; ++v) part[s][v] += x * load<W>(b + v * W);
        k += step;
        b += b_step;
      }
    }
    for (int s = 0; s < S; ++s) {
      for (int v = 0; v < NV; ++v) acc[0][v] += part[s][v];
    }
  }
  for (; left > 0; --left) {
    if constexpr (MR < NV && MR > 2 && kNativeLanes < 16) {
      // 16 registers: 12 sums, 3 rows and one column
      Floats<W> x[MR];
      for (int r = 0; r < MR; ++r) x[r] = broadcast<W>(a[r][k]);
      for (int v = 0; v < NV; ++v) {
        const Floats<W> column = load<W>(b + v * W);
        for (int r = 0; r < MR; ++r) acc[r][v] += x[r] * column;
      }
    } else {
      Floats<W> column[NV];
      for (int v = 0; v < NV; ++v) {
        column[v] = load<W>(b + v * W);
        if constexpr (MR > 1) keep_in_register<W>(column[v]);
      }
      for (int r = 0; r < MR; ++r) {
        const Floats<W> x = broadcast<W>(a[r][k]);
        for (int v = 0; v < NV; ++v) acc[r][v] += x * column[v];
      }
    }
    k += step;
    b += b_step;
  }
}

/// A factor of the sums: rows (inputs or hidden states), their weights, and how many there are.
struct TileFactor {
  const float* const* rows;  // a pointer a row
  const float* weights;
  std::int64_t depth;  // 0: inputs that have been projected, hidden states that are all zeros
};

/// What one tile of rows multiplies, and what its sums begin with.
struct TileInput {
  TileFactor x, h;
  const float* start;         // [NV][W] a row
  std::ptrdiff_t start_step;  // from one row to the next; 0: the biases, the same for all
  // Or, where not null, a start for each row: what lies `start_at` floats behind these.
  const float* const* starts = nullptr;
  std::ptrdiff_t start_at = 0;
  const float* bias_hn;  // gru: [W]
  // 1: inputs, then hidden states, in ascending order; -1: all of it backwards. Tiles take turns:
  // what has been fetched last is still near, and no stream of fetches begins anew.
  std::ptrdiff_t step;
};

/// Products that are added up in one chain, before the chain is added to the sum: the rounding
/// error of a sum grows with the length of its chains.
inline constexpr std::int64_t kChain = 128;

/// sums[r][slot of v] += sum over k of rows[r][k] * weights[k][v], chain by chain. The last vector
/// of a panel has the slot `last`, the others have their own.
template <int W, int NV, int MR>
SEQREC_INLINE void add_factor(const TileFactor& factor, std::ptrdiff_t step, std::ptrdiff_t last,
                              float* sums) {
  const float* rows[MR];
  for (std::int64_t done = 0; done < factor.depth; done += kChain) {
    const std::int64_t left = factor.depth - done;
    const std::int64_t depth = left < kChain ? left : kChain;
    const std::int64_t from = step > 0 ? done : left - depth;
    for (int r = 0; r < MR; ++r) rows[r] = factor.rows[r] + from;
    Floats<W> acc[MR][NV] = {};
    accumulate<W, NV, MR>(rows, depth, factor.weights + from * NV * W, step, acc);
    for (int r = 0; r < MR; ++r) {
      for (int v = 0; v < NV; ++v) {
        float* to = sums + (r * 4 + (v < NV - 1 ? v : last)) * W;
        store<W>(to, load<W>(to) + acc[r][v]);
      }
    }
  }
}

/// The sums of MR rows, [MR][4][W]: rnn and lstm one a vector; gru r, z, and of n the input part
/// and the hidden part.
template <int W, int NV, int MR>
SEQREC_NOINLINE void tile_sums(const TileInput& in, float* sums) {
  for (int r = 0; r < MR; ++r) {
    const float* start = in.starts ? in.starts[r] + in.start_at : in.start + r * in.start_step;
    for (int v = 0; v < NV; ++v) store<W>(sums + (r * 4 + v) * W, load<W>(start + v * W));
    if constexpr (NV == 3) store<W>(sums + (r * 4 + 3) * W, load<W>(in.bias_hn));
  }
  const bool forward = in.step > 0;
  // the candidate of a gru keeps its two sums apart
  constexpr std::ptrdiff_t kInputs = NV - 1, kHidden = 3;
  add_factor<W, NV, MR>(forward ? in.x : in.h, in.step, forward ? kInputs : kHidden, sums);
  add_factor<W, NV, MR>(forward ? in.h : in.x, in.step, forward ? kHidden : kInputs, sums);
}

/// The input part of the sums of MR tokens, [MR][NV][W].
template <int W, int NV, int MR>
SEQREC_NOINLINE void tile_projection(const TileInput& in, float* sums) {
  // biases come last: sums that began with larger ones would lose digits at every product
  Floats<W> acc[MR][NV] = {};
  accumulate<W, NV, MR>(in.x.rows, in.x.depth, in.x.weights, in.step, acc);
  for (int r = 0; r < MR; ++r) {
    for (int v = 0; v < NV; ++v) {
      store<W>(sums + (r * NV + v) * W, acc[r][v] + load<W>(in.start + v * W));
    }
  }
}

/// Rows of a full tile: as many as fill the registers.
template <int NV>
inline constexpr int kTileRows = kNativeLanes == 16 ? (NV == 4 ? 6 : 8) : (NV == 4 ? 3 : 4);

/// tile_sums (or tile_projection) of `rows` rows, 1 to kTileRows.
template <int W, int NV, bool Projection, int MR = kTileRows<NV>>
SEQREC_INLINE void any_tile(int rows, const TileInput& in, float* sums) {
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
