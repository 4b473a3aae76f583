// SPDX-License-Identifier: Apache-2.0
// Decode attention on a GPU: what the kernels are given.
#pragma once

#include <cstdint>

#include "cuda/decode_attention_plan.h"
#include "cuda/numbers.h"
#include "cuda/stream.h"

namespace seqrec {
namespace cuda {

/// Numbers from one token, head and page to the next, of [tokens, heads, width] or
/// [pages, tokens, heads, width] whose width is dense.
struct DecodeView {
  const void* data;
  std::int64_t page, token, head;
};

/// One query a row against the keys and values that the row has cached.
struct DecodeAttention {
  DecodeView q;             // [rows, heads, width]
  DecodeView keys, values;  // [cached tokens, heads, width] or [pages, page_tokens, heads, width]
  const std::int64_t* offsets;  // [rows + 1]: where each row's cache begins; null where in pages
  const std::int64_t* lengths;  // [rows]: how much of it is filled; null: all, not in pages
  const void* page_table;       // [rows, row_pages]: the pages of each row, in order
  bool wide;                    // the page table is int64, else int32
  std::int64_t table_row;       // numbers from one row of it to the next
  std::int64_t row_pages, page_tokens, pages;
  std::int64_t rows, heads, width, tokens;  // tokens: of all caches, where they are not in pages
  float scale;
  void* out;                  // [rows, heads, width], dense
  float* parts;               // [plan.parts, width + 2]: numerators, denominator, maximum
  bool vectors;               // all rows of a head begin and end at multiples of 16 bytes
  std::int64_t chunk, slots;  // of the plan
  int pieces;
};

/// Writes the result, or the parts of it if the plan has any.
void launch_decode_attention(const DecodeAttention& problem, Number type, cudaStream_t stream);

/// Puts the parts together.
void launch_decode_attention_merge(const DecodeAttention& problem, Number type,
                                   cudaStream_t stream);

}  // namespace cuda
}  // namespace seqrec
