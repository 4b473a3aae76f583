// SPDX-License-Identifier: Apache-2.0
#include "base/scratch.h"

#include <algorithm>
#include <vector>

namespace seqrec {
namespace {

/// Blocks in the order in which they were needed; only the last one is taken from.
class Stack {
 public:
  void* take(std::size_t bytes) {
    if (blocks_.empty() || blocks_.back().size() - used_ < bytes) grow(bytes);
    void* memory = blocks_.back().data() + used_;
    used_ += bytes;
    ++held_;
    return memory;
  }

  void give_back(void* memory, std::size_t bytes) noexcept {
    char* end = static_cast<char*>(memory) + bytes;
    // a buffer of an earlier block may end where the last one begins
    const bool last = !blocks_.empty() && bytes <= used_ && end == blocks_.back().data() + used_;
    if (last) used_ -= bytes;
    if (--held_ == 0) settle();
  }

 private:
  void grow(std::size_t bytes) {
    const std::size_t last = blocks_.empty() ? 0 : blocks_.back().size();
    blocks_.emplace_back(std::max({bytes, 2 * last, std::size_t{1} << 16}));
    used_ = 0;
  }

  /// With no buffer held: keeps the last block, which is the largest, unless it is too large.
  void settle() noexcept {
    used_ = 0;
    if (blocks_.size() > 1) blocks_.erase(blocks_.begin(), blocks_.end() - 1);
    if (blocks_.back().size() > kScratchKept) blocks_.clear();
  }

  std::vector<TableBuffer<char>> blocks_;
  std::size_t used_ = 0;  // of the last block
  std::size_t held_ = 0;
};

thread_local Stack stack;

}  // namespace

namespace detail {
void* take_scratch(std::size_t bytes) { return stack.take(bytes); }
void return_scratch(void* memory, std::size_t bytes) noexcept { stack.give_back(memory, bytes); }
}  // namespace detail

}  // namespace seqrec
