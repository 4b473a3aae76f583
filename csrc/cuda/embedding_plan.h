// SPDX-License-Identifier: Apache-2.0
// Grids and blocks of the embedding kernels, from shapes alone.
#pragma once

#include <algorithm>
#include <cstdint>

namespace seqrec {
namespace cuda {

/// Neighbours in the order of ids whose gradients one block sums.
constexpr int kEmbeddingRun = 32;
/// Most tokens that a block gathers.
constexpr int kEmbeddingTile = 64;

struct EmbeddingPlan {
  int vector;            // elements that a thread moves at once
  int tile;              // tokens a block of the gather
  std::int64_t tiles;    // blocks of the gather
  std::int64_t runs;     // blocks of the sums by id
  int splits;            // shares of the rows in the sums by position
  int columns;           // threads of a block of the sums
  std::int64_t scratch;  // floats that the sums need, the larger of both kinds

  static constexpr int kThreads = 256;  // of the gather
};

/// `vectors`: whether all rows begin at multiples of 16 bytes. `rows`: of the batch, 0 without
/// positions. `ordered`: whether the sums by id go in their order.
inline EmbeddingPlan plan_embedding(std::int64_t tokens, std::int64_t dim, std::int64_t rows,
                                    std::int64_t positions, int element_bytes, bool vectors,
                                    bool ordered) {
  EmbeddingPlan plan{};
  plan.vector = vectors && dim * element_bytes % 16 == 0 ? 16 / element_bytes : 1;
  const std::int64_t pieces = std::max<std::int64_t>(1, dim / plan.vector);
  // four pieces a thread keep enough loads under way
  plan.tile = static_cast<int>(
      std::clamp<std::int64_t>(4 * EmbeddingPlan::kThreads / pieces, 1, kEmbeddingTile));
  plan.tiles = (tokens + plan.tile - 1) / plan.tile;
  plan.runs = (tokens + kEmbeddingRun - 1) / kEmbeddingRun;
  plan.splits = static_cast<int>(std::clamp<std::int64_t>((rows + 31) / 32, 1, 64));
  plan.columns = static_cast<int>(std::clamp<std::int64_t>((dim + 31) / 32 * 32, 32, 256));
  const std::int64_t by_id = ordered ? 2 * plan.runs * dim : 0;
  const std::int64_t by_position = plan.splits > 1 ? plan.splits * positions * dim : 0;
  plan.scratch = std::max(by_id, by_position);
  return plan;
}

}  // namespace cuda
}  // namespace seqrec
