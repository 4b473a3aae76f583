// SPDX-License-Identifier: Apache-2.0
// The exact best items from a table of bytes: the table, made once, and the search.
#pragma once

#include "base/aligned.h"
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

  Int8Items view() const;
  std::int64_t num_items() const { return num_items_; }
  std::int64_t dim() const { return dim_; }
  bool has_bias() const { return has_bias_; }
  std::size_t bytes() const { return blocks_.size() + bounds_.size() * sizeof(Int8Bounds); }

 private:
  void fill_block(const ItemRows& items, const float* bias, std::int64_t block);

  std::int64_t num_items_, dim_;
  bool has_bias_;
  std::int64_t quads_, block_bytes_, num_blocks_;
  AlignedBuffer<std::uint8_t> blocks_;
  AlignedBuffer<Int8Bounds> bounds_;
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

/// What score_topk of ops/topk.h computes, bit for bit, by way of `items_as_bytes`, the view of a
/// table or of bounds that were made from the items and the biases of `problem`. Throws
/// std::bad_alloc.
void score_topk_int8(const TopkProblem& problem, const Int8Items& items_as_bytes, int threads,
                     const KernelTable& table, float* out_scores, std::int64_t* out_ids);

}  // namespace seqrec
