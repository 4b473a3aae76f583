// SPDX-License-Identifier: Apache-2.0
// Embeddings of the tokens of a jagged batch, with those of their positions, and the gradients.
#pragma once

#include "isa/kernel_table.h"
#include "kernels/embedding_types.h"

namespace seqrec {

/// Tokens by their numbers in a table and, where `offsets` is not null, by their place in their
/// row, counted from 0, in a second table.
struct EmbeddingProblem {
  const std::int64_t* ids;  // [tokens]
  std::int64_t tokens;
  std::int64_t items;           // rows of the table
  const std::int64_t* offsets;  // [rows + 1], from 0 to `tokens`, never decreasing; or null
  std::int64_t rows;
  std::int64_t positions;  // rows of the second table
  std::int64_t dim;
  Dropout dropout;
};

/// out [tokens, dim]. Throws std::invalid_argument where a number or a place is in no table.
void embed(const EmbeddingProblem& problem, const float* table, const float* position_table,
           float* out, int threads, const KernelTable& kernels);

/// The dense gradients of both tables, overwritten; d_positions is null without positions. They do
/// not depend on the number of threads. Throws as embed does.
void embed_backward(const EmbeddingProblem& problem, const float* gradient, float* d_table,
                    float* d_positions, int threads, const KernelTable& kernels);

}  // namespace seqrec
