// SPDX-License-Identifier: Apache-2.0
#include "engine/block_pool.h"

#include <algorithm>
#include <limits>

#include "base/huge_pages.h"
#include "base/round_up.h"

namespace seqrec {
namespace {

constexpr std::int64_t kLeastSlab = std::int64_t{32} << 10;
constexpr std::int64_t kMostSlab = std::int64_t{4} << 20;
constexpr std::int64_t kSlabs = 64;  // a full pool has about so many: 1/64 of it may be unused

}  // namespace

BlockPool::BlockPool(std::int64_t block_bytes, std::int64_t expected)
    : block_bytes_(round_up(block_bytes, 8)), shift_(0) {
  const std::int64_t share =
      std::min(expected, std::numeric_limits<std::int64_t>::max() / (block_bytes_ + 4)) *
      block_bytes_ / kSlabs;
  const std::int64_t wanted = std::clamp(share, kLeastSlab, kMostSlab);
  while ((std::int64_t{2} << shift_) * block_bytes_ <= wanted) ++shift_;
  while (shift_ > 0 && (std::int64_t{1} << (shift_ - 1)) >= expected) --shift_;
  per_slab_ = std::int32_t{1} << shift_;
  links_bytes_ = round_up(4 * std::int64_t{per_slab_}, kCacheLine);
}

std::int32_t BlockPool::take() {
  const std::int32_t block = first_free_;
  first_free_ = next(block);
  next(block) = kNone;
  ++slabs_[static_cast<std::size_t>(block >> shift_)].in_use;
  --free_;
  return block;
}

void BlockPool::give(std::int32_t block) {
  next(block) = first_free_;
  first_free_ = block;
  --slabs_[static_cast<std::size_t>(block >> shift_)].in_use;
  ++free_;
}

void BlockPool::give_chain(std::int32_t first) {
  while (first != kNone) {
    const std::int32_t block = first;
    first = next(block);
    give(block);
  }
}

void BlockPool::grow() {
  std::size_t place = 0;
  while (place < slabs_.size() && slabs_[place].memory.size() != 0) ++place;
  if (present_ == static_cast<std::int64_t>(slabs_.size())) place = slabs_.size();
  if (static_cast<std::int64_t>(place + 1) << shift_ > std::numeric_limits<std::int32_t>::max()) {
    throw std::bad_alloc();
  }
  TableBuffer<char> memory(static_cast<std::size_t>(slab_bytes()));
  if (place == slabs_.size()) slabs_.emplace_back();
  advise_huge_pages(memory.data(), slab_bytes());
  slabs_[place].memory = std::move(memory);
  slabs_[place].in_use = 0;
  ++present_;
  blocks_ += per_slab_;
  free_ += per_slab_;
  // the lowest numbers are taken first, so that untouched memory stays at the end
  const auto first = static_cast<std::int32_t>(place << shift_);
  for (std::int32_t block = first; block < first + per_slab_; ++block) next(block) = block + 1;
  next(first + per_slab_ - 1) = first_free_;
  first_free_ = first;
}

void BlockPool::shrink() {
  const auto in_use = [this](std::int32_t block) {
    return slabs_[static_cast<std::size_t>(block >> shift_)].in_use != 0;
  };
  std::int32_t kept = kNone;
  for (std::int32_t block = first_free_; block != kNone;) {
    const std::int32_t after = next(block);
    if (in_use(block)) {
      next(block) = kept;
      kept = block;
    }
    block = after;
  }
  first_free_ = kept;
  for (Slab& slab : slabs_) {
    if (slab.in_use != 0 || slab.memory.size() == 0) continue;
    slab.memory = TableBuffer<char>();
    --present_;
    blocks_ -= per_slab_;
    free_ -= per_slab_;
  }
}

std::int64_t BlockPool::bytes() const {
  return present_ * slab_bytes() + static_cast<std::int64_t>(slabs_.capacity() * sizeof(Slab));
}

}  // namespace seqrec
