// SPDX-License-Identifier: Apache-2.0
// What the embedding kernels and those who call them share: plain data, no functions.
#pragma once

#include <cstdint>

#include "kernels/dropout_types.h"

namespace seqrec {

/// out[t] = dropout(table[ids[t]] + other[other_ids[t]]), rows of `dim` floats.
struct EmbeddingGather {
  const float* table;
  const std::int64_t* ids;        // in range
  const float* other;             // or null
  const std::int64_t* other_ids;  // in range; null with `other`
  float* out;
  std::int64_t dim;
  Dropout dropout;
};

/// d_table[ids[t]] += gradient[t] with the dropout of the gather.
struct EmbeddingScatter {
  const float* gradient;
  const std::int64_t* ids;
  float* d_table;
  std::int64_t tokens;
  std::int64_t dim;
  Dropout dropout;
};

struct EmbeddingKernels {
  void (*gather)(const EmbeddingGather& p, std::int64_t first_token, std::int64_t end_token);
  /// Adds the tokens whose id is in [first_id, end_id), in ascending order.
  void (*scatter)(const EmbeddingScatter& p, std::int64_t first_id, std::int64_t end_id);
};

}  // namespace seqrec
