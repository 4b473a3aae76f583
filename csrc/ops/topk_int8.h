// SPDX-License-Identifier: Apache-2.0
// The exact best items from a table of bytes: the table, made once, and the search.
#pragma once

#include "base/aligned.h"
#include "base/scratch.h"
#include "isa/kernel_table.h"
#include "kernels/topk_types.h"

namespace seqrec {

/// The most dimensions that a table of bytes may have: dot products must fit 32 bits.
inline constexpr std::int64_t kInt8MaxDim = 32768;

/// Items as bytes; see topk_int8.h. Holds neither the items nor the biases themselves.
class Int8Table {
 public:
  /// Reads `items` [num_items, dim <= kInt8MaxDim] and `bias` [num_items] or null, on up to
  /// `threads` threads. Throws std::bad_alloc.
  Int8Table(const ItemRows& items, const float* bias, std::int64_t num_items, std::int64_t dim,
            int threads);

  /// The items names[0 .. places], -1 for none, each at its place; `places` is a multiple of
  /// kInt8Rows. Without biases; whoever scans the view has to put names into it.
  Int8Table(const float* items, const std::int32_t* names, std::int64_t places, std::int64_t dim,
            int threads);

  /// Another table that was stored: `blocks` [num_blocks, block_bytes] and `bounds` [num_blocks]
  /// are used where they lie, or copied if `blocks` begin within a line of the cache. Whatever they
  /// hold, a search stays within its memory. Throws std::bad_alloc.
  Int8Table(const std::uint8_t* blocks, const Int8Bounds* bounds, std::int64_t num_items,
            std::int64_t dim, bool has_bias);

  Int8Items view() const;
  std::int64_t num_items() const { return num_items_; }
  std::int64_t dim() const { return dim_; }
  bool has_bias() const { return has_bias_; }
  std::int64_t num_blocks() const { return num_blocks_; }
  std::int64_t block_bytes() const { return block_bytes_; }
  std::size_t bytes() const {
    return static_cast<std::size_t>(num_blocks_) *
           (static_cast<std::size_t>(block_bytes_) + sizeof(Int8Bounds));
  }

 private:
  void measure();
  void take_blocks();
  void fill(const ItemRows& items, const float* bias, int threads);
  void fill_block(const ItemRows& items, const float* bias, std::int64_t block);

  std::int64_t num_items_, dim_;
  bool has_bias_;
  const std::int32_t* names_ = nullptr;  // while the table is filled
  std::int64_t quads_, block_bytes_, num_blocks_;
  TableBuffer<std::uint8_t> blocks_;
  TableBuffer<Int8Bounds> bounds_;
  const std::uint8_t* stored_blocks_ = nullptr;  // in place of those, or null
  const Int8Bounds* stored_bounds_ = nullptr;
};

/// The bounds of items that are bytes themselves: one byte an item beside them.
class ByteItemBounds {
 public:
  /// Reads `items`, which are bytes, [num_items, dim <= kInt8MaxDim] and `bias` [num_items] or
  /// null, on up to `threads` threads. Throws std::bad_alloc.
  ByteItemBounds(const ItemRows& items, const float* bias, std::int64_t num_items, std::int64_t dim,
                 int threads);

  /// The form for the scan, which then lays out the items themselves.
  Int8Items view() const;
  std::size_t bytes() const { return bounds_.size() * sizeof(Int8Bounds); }

 private:
  std::int64_t quads_, block_bytes_, num_blocks_;
  AlignedBuffer<Int8Bounds> bounds_;
};

/// Queries as bytes.
class Int8Queries {
 public:
  /// Queries that are bounded; `levels` as TopkKernels::int8_levels says.
  Int8Queries(const float* queries, std::int64_t count, std::int64_t dim, int levels);

  const Int8Query* data() const { return queries_.data(); }

  /// Whether the bounds hold for a query: false where it is not finite or very large.
  static bool bounded(const float* query, std::int64_t dim);

 private:
  Scratch<std::int32_t> quads_;
  Scratch<Int8Query> queries_;
};

/// The candidates of one thread for some queries: the memory of a TopkState.
class Int8Candidates {
 public:
  /// `block_bytes` is the size of a block where the scan has to lay them out, else 0.
  Int8Candidates(std::int64_t queries, std::int64_t capacity, std::int64_t limit,
                 std::int32_t* bound, std::int64_t block_bytes = 0);

  TopkState& state() { return state_; }
  const TopkState& state() const { return state_; }

 private:
  Scratch<float> floats_;
  Scratch<std::int32_t> ids_;
  Scratch<std::int64_t> longs_;
  Scratch<std::uint8_t> blocks_;
  TopkState state_{};
};

/// Whether the processor multiplies bytes by AVX-512 VNNI.
bool has_vnni();

/// What score_topk of ops/topk.h computes, bit for bit, by way of `items_as_bytes`, the view of a
/// table or of bounds that were made from the items and the biases of `problem`. Throws
/// std::bad_alloc.
void score_topk_int8(const TopkProblem& problem, const Int8Items& items_as_bytes, int threads,
                     const KernelTable& table, float* out_scores, std::int64_t* out_ids);

}  // namespace seqrec
