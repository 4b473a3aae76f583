// SPDX-License-Identifier: Apache-2.0
#include "ops/item_set.h"

#include <algorithm>
#include <cstring>

#include "base/scratch.h"

namespace seqrec {
namespace {

// Ids from which on marking beats sorting, and words of marks that one id is worth.
constexpr std::int64_t kMarkedIds = 64;
constexpr std::int64_t kWordsPerId = 16;

/// One bit for each byte of a word that is not 0, the lowest byte first.
std::uint64_t flag_bits(const std::uint8_t* flags) {
  constexpr std::uint64_t kSeven = 0x7f7f7f7f7f7f7f7f;
  std::uint64_t bytes;
  std::memcpy(&bytes, flags, sizeof bytes);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  bytes = __builtin_bswap64(bytes);
#endif
  bytes = (((bytes & kSeven) + kSeven) | bytes) >> 7 & 0x0101010101010101;
  return bytes * 0x0102040810204080 >> 56;
}

/// Bits that belong to items in the word that begins with item `first`.
std::uint64_t real_bits(std::int64_t first, std::int64_t items) {
  const std::int64_t left = items - first;
  return left >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << left) - 1;
}

/// Marks ids in bits that are 0. Returns the place of the first that is out of range, or -1.
///
/// A word stays in a register as long as ids fall into it: a write that waits for the one before it
/// costs several cycles.
template <typename T>
std::int64_t mark(const T* ids, std::int64_t count, std::int64_t size, std::uint64_t* bits) {
  std::uint64_t at = 0, word = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto id = static_cast<std::uint64_t>(static_cast<std::int64_t>(ids[i]));
    if (id >= static_cast<std::uint64_t>(size)) return i;
    if (id / 64 != at) {
      bits[at] |= word;
      at = id / 64;
      word = 0;
    }
    word |= std::uint64_t{1} << (id % 64);
  }
  if (count > 0) bits[at] |= word;
  return -1;
}

}  // namespace

void pack_flags(const std::uint8_t* flags, std::int64_t count, bool set, std::uint64_t* bits) {
  const std::uint64_t turn = set ? 0 : ~std::uint64_t{0};
  std::int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    std::uint64_t word = 0;
    for (int part = 0; part < 8; ++part) word |= flag_bits(flags + i + part * 8) << (part * 8);
    bits[i / 64] = word ^ turn;
  }
  if (i == count) return;
  std::uint64_t word = 0;
  for (std::int64_t last = i; last < count; ++last) {
    word |= std::uint64_t{flags[last] != 0} << (last - i);
  }
  bits[i / 64] = (word ^ turn) & real_bits(i, count);
}

std::int64_t count_bits(const std::uint64_t* bits, std::int64_t words) {
  std::uint64_t total = 0;
  for (std::int64_t w = 0; w < words; ++w) {  // written out, so that it vectorises everywhere
    std::uint64_t x = bits[w];
    x -= x >> 1 & 0x5555555555555555;
    x = (x & 0x3333333333333333) + (x >> 2 & 0x3333333333333333);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0f;
    x += x >> 8;
    x += x >> 16;
    x += x >> 32;
    total += x & 0x7f;
  }
  return static_cast<std::int64_t>(total);
}

std::int64_t list_bits(const std::uint64_t* bits, std::int64_t words, std::int32_t* ids) {
  std::int64_t count = 0;
  for (std::int64_t w = 0; w < words; ++w) {
    for (std::uint64_t left = bits[w]; left; left &= left - 1) {
      ids[count++] = static_cast<std::int32_t>(w * 64 + __builtin_ctzll(left));
    }
  }
  return count;
}

std::int64_t sort_ids(std::int32_t* ids, std::int64_t count, std::int64_t num_items) {
  const std::int64_t words = words_of(num_items);
  if (count < kMarkedIds || words > count * kWordsPerId) {
    std::sort(ids, ids + count);
    return std::unique(ids, ids + count) - ids;
  }
  Scratch<std::uint64_t> bits(words);
  std::fill_n(bits.data(), words, 0);
  mark(ids, count, num_items, bits.data());
  return list_bits(bits.data(), words, ids);
}

ItemSet::ItemSet(std::int64_t size) : size_(size), bits_(static_cast<std::size_t>(words_of(size))) {
  const std::int64_t words = words_of(size);
  std::fill_n(bits_.data(), words, ~std::uint64_t{0});
  if (words > 0) bits_[word(size - 1)] = real_bits((words - 1) * 64, size);
}

ItemSet::ItemSet(const ItemSet& other) : size_(other.size_), bits_(other.bits_.size()) {
  std::copy_n(other.bits_.data(), other.bits_.size(), bits_.data());
}

template <typename T>
std::int64_t ItemSet::apply(const T* ids, std::int64_t count, bool keep) {
  const std::int64_t words = words_of(size_);
  if (!keep && count < words / 8) {  // sooner than a pass over all items
    const auto place = std::find_if(ids, ids + count, [&](T id) { return id < 0 || id >= size_; });
    if (place != ids + count) return place - ids;
    for (const T* id = ids; id != ids + count; ++id) {
      bits_[word(*id)] &= ~(std::uint64_t{1} << (*id % 64));
    }
    return -1;
  }
  Scratch<std::uint64_t> marks(words);
  std::fill_n(marks.data(), words, 0);
  const std::int64_t bad = mark(ids, count, size_, marks.data());
  if (bad >= 0) return bad;
  const std::uint64_t turn = keep ? 0 : ~std::uint64_t{0};
  for (std::int64_t w = 0; w < words; ++w) bits_.data()[w] &= marks[w] ^ turn;
  return -1;
}

template std::int64_t ItemSet::apply(const std::int32_t*, std::int64_t, bool);
template std::int64_t ItemSet::apply(const std::int64_t*, std::int64_t, bool);

void ItemSet::apply(const std::uint8_t* flags, bool keep) {
  const std::int64_t words = words_of(size_);
  Scratch<std::uint64_t> marks(words);
  pack_flags(flags, size_, keep, marks.data());
  for (std::int64_t w = 0; w < words; ++w) bits_.data()[w] &= marks[w];
}

void ItemSet::intersect(const ItemSet& other) {
  const std::int64_t words = words_of(size_);
  for (std::int64_t w = 0; w < words; ++w) bits_.data()[w] &= other.bits_.data()[w];
}

void ItemSet::flags(std::uint8_t* flags) const {
  for (std::int64_t i = 0; i < size_; ++i) flags[i] = holds(i) ? 1 : 0;
}

}  // namespace seqrec
