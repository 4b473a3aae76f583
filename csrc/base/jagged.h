// SPDX-License-Identifier: Apache-2.0
// Rows of different lengths laid end to end, seen but not owned.
#pragma once

#include <cstdint>

namespace seqrec {

/// Row `i` is `values[offsets[i] .. offsets[i + 1])`. Plain data, so that the kernels, which are
/// compiled once for every instruction set, can take it without sharing any function.
template <typename T>
struct JaggedView {
  const T* values;
  const std::int64_t* offsets;  // [rows + 1]
  std::int64_t rows;
};

}  // namespace seqrec
