// SPDX-License-Identifier: Apache-2.0
// What the kernels that drop elements and those who call them share: plain data, no functions.
#pragma once

#include <cstdint>

namespace seqrec {

/// Which elements of a matrix are dropped: a function of the seed, the row and the column alone.
struct Dropout {
  std::uint64_t seed;
  std::int32_t threshold;  // of 2^24: an element whose draw is below is dropped; 0 drops none
  float scale;             // of the elements that stay
};

/// out = x * (0 or scale), both [rows, columns]; `out` may be `x`.
struct DropoutProblem {
  const float* x;
  float* out;
  std::int64_t columns;
  Dropout dropout;
};

struct DropoutKernels {
  void (*apply)(const DropoutProblem& problem, std::int64_t first_row, std::int64_t end_row);
};

}  // namespace seqrec
