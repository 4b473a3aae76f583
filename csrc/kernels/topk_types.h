// SPDX-License-Identifier: Apache-2.0
// What the top-k kernel and those who call it share: plain data, no functions.
#pragma once

#include <cstdint>

#include "base/item_rows.h"
#include "base/jagged.h"

namespace seqrec {

/// Score every item for every query and keep the best `k`.
struct TopkProblem {
  const float* queries;           // [num_queries, dim]
  ItemRows items;                 // [num_items, dim]
  const float* bias;              // [num_items], added to the scores, or null
  const std::uint8_t* blocked;    // [num_items], not 0 = hidden from all queries, or null
  JaggedView<std::int32_t> seen;  // a row a query, ascending: hidden from it; values may be null
  std::int64_t num_queries;
  std::int64_t num_items;  // below 2^31
  std::int64_t dim;        // at least 1
  std::int64_t k;          // at least 1

  // Made of `blocked` and other filters by ops/topk_filter.h; what the kernels look at.
  const std::uint64_t* open = nullptr;  // bit i of the whole: item i may be chosen; null: all may
  const std::int32_t* listed =
      nullptr;  // ascending: scan these items alone, wherever they lie; or null
  std::int64_t num_listed = 0;
};

/// Items as bytes, sixteen a block: what the scan of topk_int8.h reads.
///
/// A block is [quads][kInt8Rows][4] bytes 128 + c, then a scale for each item, then, if the table
/// has biases, a bias for each item. An item that is not finite or too large to bound has the scale
/// NaN: it is always a candidate.
///
/// Where the items themselves are bytes, there need be no blocks: the scan lays out a few at a time
/// in memory of its own.
struct Int8Bounds {
  float norm;        // largest |c| of the block
  float rest;        // largest |r| / scale
  float bias_slack;  // what adding the bias in float32 may round away
  float exceptions;  // not 0: an item of the block may be too large to bound
};
struct Int8Items {
  const std::uint8_t* blocks;  // or null: the items of the problem are bytes
  const Int8Bounds* bounds;
  std::int64_t num_blocks;
  std::int64_t block_bytes;
  std::int64_t quads;         // groups of four dimensions
  const std::int32_t* names;  // [16 num_blocks]: the item at each place, -1 for none; null where
                              // every item has its own place
};

/// A query as signed bytes: q = step * u + rest.
struct Int8Query {
  const std::int32_t* quads;  // [quads], four signed bytes each
  std::int32_t offset;        // -128 * the sum of u, since the bytes of items carry 128 more
  float step;
  float per_norm;  // the margin of a block is per_norm * norm + per_rest * rest
  float per_rest;
  float slack;  // above what may underflow in a score
};

inline constexpr std::int64_t kInt8Rows = 16;

// Products of magnitudes below these neither overflow in any order of summation nor, with scales
// and steps of at least kInt8LeastScale, lose more to underflow than the slack of a query covers.
inline constexpr float kInt8MostItem = 0x1p60f;
inline constexpr float kInt8MostQuery = 0x1p50f;
inline constexpr float kInt8MostBias = 0x1p100f;
inline constexpr float kInt8LeastScale = 0x1p-100f;

/// Bytes of blocks that are scanned for all queries one after the other: they stay in L1.
inline constexpr std::int64_t kInt8ChunkBytes = 16 * 1024;

/// Items whose bounds are all kept at first, so that the threshold is a good one at once, and
/// queries that are opened together.
inline constexpr std::int64_t kInt8Opening = 16384;
inline constexpr std::int64_t kInt8OpeningQueries = 4;
/// Floats of memory for that: upper bounds, and maxima of lower ones over cells of items.
inline constexpr std::int64_t kInt8OpeningFloats = 2 * kInt8Opening * kInt8OpeningQueries;

/// The memory of one thread while it scans items for the queries first_query .. + num_queries.
///
/// Candidates of a query lie in order of ascending item. When they reach `limit`, the best k stay
/// and the k-th of them becomes the threshold that later scores have to beat.
struct TopkState {
  std::int64_t first_query;
  std::int64_t num_queries;
  std::int64_t limit;          // candidates at which a list is cut down: above k, or >= num_items
  std::int64_t capacity;       // room for each list: a multiple of kTopkPad, at least `limit`
  float* packed;               // [padded_queries, dim], in the order that the kernel reads
  float* threshold;            // [padded_queries]
  float* scores;               // [num_queries, capacity]; in the scan of bytes, lower bounds
  float* upper;                // [num_queries, capacity], upper bounds; only in the scan of bytes
  float* opening;              // [kInt8OpeningFloats]; only in the scan of bytes
  std::uint8_t* blocks;        // [kInt8ChunkBytes or one block], where the table has none
  std::int32_t* ids;           // [num_queries, capacity]
  std::int64_t* count;         // [num_queries]
  std::int64_t* seen_next;     // [num_queries]: the next of `seen` that the scan can meet
  float* rows;                 // [chunk_rows + kTopkRowPad, dim]
  float* row_bias;             // [chunk_rows + kTopkRowPad]
  std::int32_t* row_ids;       // [chunk_rows + kTopkRowPad]
  std::int32_t* shared_bound;  // [all queries of the problem], or null when one thread works alone
};

inline constexpr std::int64_t kTopkFirst = 480;  // items whose scores are all kept at first
inline constexpr std::int64_t kTopkPad = 16;     // the widest vector, in floats
inline constexpr std::int64_t kTopkRowPad = 32;  // the most items in one register tile
inline constexpr std::int64_t kTopkQueryPad = 64;

/// The functions of the operation, compiled for one instruction set.
struct TopkKernels {
  std::int64_t (*chunk_rows)(std::int64_t dim);
  void (*begin)(const TopkProblem& problem, TopkState& state);
  void (*scan)(const TopkProblem& problem, TopkState& state, std::int64_t first_item,
               std::int64_t end_item);
  void (*finish)(float* scores, std::int32_t* ids, std::int64_t count, std::int64_t k,
                 float* out_scores, std::int64_t* out_ids);
  /// out [count, dim] = the rows ids[0], ids[1], … of `items`, or first, first + 1, … without ids.
  void (*widen)(const ItemRows& items, std::int64_t dim, const std::int32_t* ids,
                std::int64_t first, std::int64_t count, float* out);

  // The scan of bytes. `levels` is the largest |u| of a query that the products allow.
  int (*int8_levels)(bool vnni);
  void (*int8_begin)(const TopkProblem& problem, TopkState& state);
  void (*int8_scan)(const TopkProblem& problem, const Int8Items& table, TopkState& state,
                    const Int8Query* queries, bool vnni, std::int64_t first_block,
                    std::int64_t end_block);
  void (*int8_settle)(const TopkProblem& problem, TopkState& state, std::int64_t query);

  // For lists of items (topk_lists.h).
  void (*int8_estimate)(const Int8Items& table, const Int8Query& query, bool vnni, float* scores);
  void (*int8_tighten)(const TopkProblem& problem, TopkState& state, std::int64_t query);
  float (*kth)(const float* scores, std::int64_t count, std::int64_t k);
  std::int64_t (*reaching)(const float* scores, std::int64_t count, float least,
                           std::int32_t* places);
};

}  // namespace seqrec
