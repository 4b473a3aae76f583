// SPDX-License-Identifier: Apache-2.0
// Data of decode attention: plain structs, shared by the kernels of every instruction set.
#pragma once

#include "kernels/attention_types.h"

namespace seqrec {

/// Keys and values in pages of equal size: page i of a row holds its tokens i * tokens and on.
struct DecodePages {
  const float* const* const* rows;  // [rows][pages]; null where the cache is not in pages
  std::int64_t tokens;              // of a page: a multiple of 16 that divides 256
  std::int64_t keys, values;        // where in a page its first key and value of head 0 lie
};

/// One query a row against the keys and values that the row has cached.
struct DecodeProblem {
  HeadsView<const float> q;             // [rows, heads, width]
  HeadsView<const float> keys, values;  // [cached tokens, heads, width]; no data where in pages
  const std::int64_t* offsets;  // [rows + 1]: where each row's cache begins; unused in pages
  const std::int64_t* lengths;  // [rows]: how much of it is filled; null: all, not in pages
  std::int64_t rows, heads, width;
  double scale;
  DecodePages pages = {};

  std::int64_t length(std::int64_t row) const {
    return lengths != nullptr ? lengths[row] : offsets[row + 1] - offsets[row];
  }
};

/// One row and one head at a time, in scratch memory of the caller.
struct DecodeKernels {
  std::int64_t (*scratch)(std::int64_t width);  // floats
  void (*decode)(const DecodeProblem& p, std::int64_t row, std::int64_t head, float* scratch,
                 HeadsView<float> out);
};

}  // namespace seqrec
