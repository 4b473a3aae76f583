// SPDX-License-Identifier: Apache-2.0
// Rows of a table by their numbers, with those of positions added and dropout, and the sums of
// their gradients. Matrices are dense and row-major, of the type that `number` says.
#pragma once

#include <cstdint>

#include "cuda/dropout.h"
#include "cuda/embedding_plan.h"
#include "cuda/numbers.h"
#include "cuda/stream.h"

namespace seqrec {
namespace cuda {

/// The tokens of a batch. A number that is no row of its table takes no memory: what is gathered
/// for it is NaN, and its gradient is dropped, because the host does not look at the values.
struct EmbeddingTokens {
  const std::int64_t* ids;      // [tokens]
  const std::int64_t* offsets;  // [rows + 1], or null: no positions
  std::int64_t tokens;
  std::int64_t items;
  std::int64_t rows;
  std::int64_t positions;
  std::int64_t dim;
  Dropout dropout;
};

struct EmbeddingGather {
  EmbeddingTokens batch;
  EmbeddingPlan plan;
  const void* table;           // [items, dim]
  const void* position_table;  // [positions, dim], or null
  void* out;                   // [tokens, dim]
};

struct EmbeddingScatter {
  EmbeddingTokens batch;
  EmbeddingPlan plan;
  const void* gradient;               // [tokens, dim]
  const std::int64_t* sorted_ids;     // ids in ascending order, or null: sums by atomic additions
  const std::int64_t* sorted_tokens;  // the token of each
  void* d_table;                      // [items, dim], all zero
  void* d_positions;                  // [positions, dim], or null
  float* scratch;                     // [plan.scratch]
};

/// One kernel.
void launch_embedding_gather(const EmbeddingGather& p, Number number, cudaStream_t stream);

/// The gradient of the table: one kernel by atomic additions (float32 alone), two in the order of
/// the ids, where the sum of a row depends on nothing but its gradients and their number.
void launch_embedding_scatter(const EmbeddingScatter& p, Number number, cudaStream_t stream);

/// The gradient of the positions, one or two kernels, always in the order of the rows.
void launch_embedding_positions(const EmbeddingScatter& p, Number number, cudaStream_t stream);

}  // namespace cuda
}  // namespace seqrec
