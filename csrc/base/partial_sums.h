// SPDX-License-Identifier: Apache-2.0
// Sums over the rows of a batch that many threads make and that do not depend on how many.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "base/aligned.h"
#include "base/thread_pool.h"

namespace seqrec {

/// A row of sums for each share of the rows; the shares depend on the number of rows alone.
class PartialSums {
 public:
  /// Shares of at least `rows_of_share` rows, at most 16, each with `size` sums at 0.
  PartialSums(std::int64_t rows, std::int64_t rows_of_share, std::int64_t size)
      : shares_(std::clamp<std::int64_t>(rows / rows_of_share, 1, 16)),
        size_(size),
        sums_(static_cast<std::size_t>(shares_ * size)) {}

  std::int64_t shares() const { return shares_; }

  /// The sums of one share, set to 0: call it from the thread that fills them.
  float* begin(std::int64_t share) {
    float* sums = sums_.data() + share * size_;
    std::memset(sums, 0, static_cast<std::size_t>(size_) * sizeof(float));
    return sums;
  }

  /// Adds the sums first … first + count - 1 of all shares, in the order of the shares.
  void total(std::int64_t first, std::int64_t count, float* out) const {
    for (std::int64_t i = 0; i < count; ++i) out[i] = sums_[static_cast<std::size_t>(first + i)];
    for (std::int64_t share = 1; share < shares_; ++share) {
      const float* sums = sums_.data() + share * size_ + first;
      for (std::int64_t i = 0; i < count; ++i) out[i] += sums[i];
    }
  }

 private:
  std::int64_t shares_;
  std::int64_t size_;
  AlignedBuffer<float> sums_;
};

}  // namespace seqrec
