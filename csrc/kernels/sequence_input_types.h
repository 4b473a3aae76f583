// SPDX-License-Identifier: Apache-2.0
// Data of the input of a transformer over items: plain structs, shared by all instruction sets.
#pragma once

#include <cstdint>

#include "base/item_rows.h"

namespace seqrec {

/// x = item + position, and, where the products are given, W norm(x) + b of a layer norm and a
/// linear layer that follow.
struct SequenceInput {
  ItemRows items;          // [num_items, dim]
  const float* positions;  // [max_length, dim]
  std::int64_t dim;
  float eps;

  // With g and h the weight and bias of the norm, and rows less their own mean.
  const float* item_products;      // [num_items, outputs], W (g (item - mean)); or null
  const float* position_products;  // [max_length, outputs], W (g (position - mean))
  const float* constants;          // [outputs], W h + b
  std::int64_t outputs;
};

struct SequenceInputKernels {
  /// x [count, dim] for events of `ids` at `positions`; products [count, outputs], or null.
  void (*rows)(const SequenceInput& p, const std::int32_t* ids, const std::int64_t* positions,
               std::int64_t count, float* x, float* products);
};

}  // namespace seqrec
