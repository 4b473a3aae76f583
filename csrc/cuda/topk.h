// SPDX-License-Identifier: Apache-2.0
// Score + bias + exclude + top-k on a GPU: what the kernels are given.
#pragma once

#include <cstdint>

#include "cuda/numbers.h"
#include "cuda/stream.h"
#include "cuda/topk_plan.h"

namespace seqrec {
namespace cuda {

/// The numbers of queries, items and biases, and how they are multiplied.
enum class TopkType : int {
  kFloat = 0,     // float32, fused multiply-adds
  kTf32 = 1,      // float32, rounded to tf32 for the tensor cores
  kHalf = 2,      // float16, tensor cores
  kBFloat16 = 3,  // bfloat16, tensor cores
};

/// Score every item for every query and keep the best `k`.
struct TopkSearch {
  const void* queries;               // [num_queries, dim]
  const void* items;                 // [num_items, dim]
  const void* bias;                  // [num_items], of the same type, or null
  const std::uint8_t* blocked;       // [num_items], not 0 = hidden from all queries, or null
  const std::int32_t* seen;          // a row a query, ascending: hidden from it; or null
  const std::int64_t* seen_offsets;  // [num_queries + 1]
  std::int64_t seen_tokens;
  std::int64_t query_stride, item_stride;  // numbers from one row to the next
  std::int64_t num_queries, num_items, dim, k;
  std::uint64_t* lists;  // [num_queries, splits, capacity]: memory of the search
  void* scores;          // [num_queries, k], of the type of the queries
  std::int64_t* ids;     // [num_queries, k]
  bool vectors;  // whether all rows of both tables begin at multiples of 16 bytes and end so
  int block_queries, query_row, capacity, splits, items_per_split;  // of the plan
};

/// Lists of items, to be sorted.
struct TopkSeen {
  const void* values;           // [offsets[rows]]
  const std::int64_t* offsets;  // [rows + 1]
  std::int32_t* sorted;         // as values; what is no item becomes the largest int32
  std::int64_t rows, tokens, num_items;
  bool wide;  // values are int64, else int32
};

/// Sorts each row of `seen`.
void launch_topk_seen(const TopkSeen& seen, cudaStream_t stream);

/// Fills the lists with the best of each range of items, in descending order.
void launch_topk_scan(const TopkSearch& search, TopkType type, cudaStream_t stream);

/// Writes the best of all ranges.
void launch_topk_merge(const TopkSearch& search, TopkType type, cudaStream_t stream);

}  // namespace cuda
}  // namespace seqrec
