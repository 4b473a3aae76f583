// SPDX-License-Identifier: Apache-2.0
// What the feed-forward kernels and those who call them share: plain data, no functions.
#pragma once

#include <cstdint>

#include "kernels/dropout_types.h"
#include "kernels/linear_types.h"

namespace seqrec {

/// What lies between the two products: hidden = dropout(activation(z)), rows of `inner` elements.
struct HiddenLayer {
  Activation activation;  // relu, silu, gelu or gelu_tanh
  Dropout dropout;
  std::int64_t inner;
};

struct FeedForwardKernels {
  /// Rows first_row … of the layer: z and hidden are dense and start with that row.
  void (*activate)(const HiddenLayer& layer, std::int64_t first_row, std::int64_t rows,
                   const float* z, float* hidden);

  /// The same again, and d, the gradient of hidden, becomes that of z.
  void (*differentiate)(const HiddenLayer& layer, std::int64_t first_row, std::int64_t rows,
                        const float* z, float* hidden, float* d);
};

}  // namespace seqrec
