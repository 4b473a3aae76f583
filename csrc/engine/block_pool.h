// SPDX-License-Identifier: Apache-2.0
// Blocks of one size, cut from slabs that come from the system as they are needed.
//
// A block is known by a number, which is half the size of an address. Blocks can be chained: `next`
// belongs to whoever holds the block, and to the pool while it is free. Not safe for threads.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned.h"

namespace seqrec {

class BlockPool {
 public:
  static constexpr std::int32_t kNone = -1;

  /// `expected` blocks at most, roughly: decides how large the slabs are.
  BlockPool(std::int64_t block_bytes, std::int64_t expected);

  /// Whether `count` blocks can be taken.
  bool has(std::int64_t count) const { return free_ >= count; }
  /// A block, contents undefined, its next kNone; has(1).
  std::int32_t take();
  void give(std::int32_t block);
  /// Gives a whole chain back; kNone is an empty one.
  void give_chain(std::int32_t first);

  /// One more slab. Throws std::bad_alloc, nothing changed.
  void grow();
  /// Returns slabs without a block in use to the system.
  void shrink();

  template <typename T>
  T* at(std::int32_t block) const {
    return reinterpret_cast<T*>(const_cast<char*>(slab_of(block)) + offset_of(block));
  }
  std::int32_t& next(std::int32_t block) const {
    auto* links = reinterpret_cast<std::int32_t*>(const_cast<char*>(slab_of(block)));
    return links[block & (per_slab_ - 1)];
  }

  std::int64_t in_use() const { return blocks_ - free_; }
  std::int64_t blocks_a_slab() const { return per_slab_; }
  std::int64_t slab_bytes() const { return links_bytes_ + per_slab_ * block_bytes_; }
  /// All that is held, blocks in use and free ones.
  std::int64_t bytes() const;

 private:
  const char* slab_of(std::int32_t block) const {
    return slabs_[static_cast<std::size_t>(block >> shift_)].memory.data();
  }
  std::int64_t offset_of(std::int32_t block) const {
    return links_bytes_ + (block & (per_slab_ - 1)) * block_bytes_;
  }

  struct Slab {
    TableBuffer<char> memory;  // links [per_slab], then blocks; empty: no slab at this place
    std::int32_t in_use = 0;
  };

  std::int64_t block_bytes_;
  int shift_;
  std::int32_t per_slab_;
  std::int64_t links_bytes_;
  std::vector<Slab> slabs_;
  std::int32_t first_free_ = kNone;
  std::int64_t free_ = 0, blocks_ = 0, present_ = 0;
};

}  // namespace seqrec
