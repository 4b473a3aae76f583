// SPDX-License-Identifier: Apache-2.0
// A set of items as one bit an item: made of lists and masks, read by the top-k search.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned.h"

namespace seqrec {

/// Words that hold one bit for each of `items`.
constexpr std::int64_t words_of(std::int64_t items) { return (items + 63) / 64; }

/// Writes bit i of `bits` for flag i: set where the flag is 0, or with `set` where it is not 0.
/// Bits behind the last flag are 0.
void pack_flags(const std::uint8_t* flags, std::int64_t count, bool set, std::uint64_t* bits);

/// How many bits are set.
std::int64_t count_bits(const std::uint64_t* bits, std::int64_t words);

/// Writes the places of the bits that are set, ascending; returns how many there are.
std::int64_t list_bits(const std::uint64_t* bits, std::int64_t words, std::int32_t* ids);

/// Sorts ids below `num_items` and drops those that stand there twice; returns how many are left.
///
/// Many ids are sorted by marking them among all items, which takes a few nanoseconds an id.
/// Throws std::bad_alloc.
std::int64_t sort_ids(std::int32_t* ids, std::int64_t count, std::int64_t num_items);

/// Items that may be found, out of `size`.
class ItemSet {
 public:
  /// All items. Throws std::bad_alloc.
  explicit ItemSet(std::int64_t size);
  ItemSet(const ItemSet& other);
  ItemSet& operator=(const ItemSet&) = delete;

  std::int64_t size() const { return size_; }
  std::int64_t count() const { return count_bits(bits_.data(), words_of(size_)); }
  bool holds(std::int64_t id) const { return bits_[word(id)] >> (id % 64) & 1; }
  const std::uint64_t* bits() const { return bits_.data(); }

  /// Leaves only those of a list (`keep`), or takes them out. Returns the place of the first id
  /// that is out of range, or -1; the set is of no use then.
  template <typename T>
  std::int64_t apply(const T* ids, std::int64_t count, bool keep);

  /// Leaves only the items whose flag is not 0 (`keep`), or takes them out.
  void apply(const std::uint8_t* flags, bool keep);

  /// Leaves only what is in `other` too, which has the same size.
  void intersect(const ItemSet& other);

  /// Writes the items: ascending; [count()].
  void list(std::int32_t* ids) const { list_bits(bits_.data(), words_of(size_), ids); }

  /// Writes 1 for each item of the set, else 0; [size()].
  void flags(std::uint8_t* flags) const;

 private:
  static std::size_t word(std::int64_t id) { return static_cast<std::size_t>(id / 64); }

  std::int64_t size_;
  AlignedBuffer<std::uint64_t> bits_;
};

}  // namespace seqrec
