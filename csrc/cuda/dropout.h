// SPDX-License-Identifier: Apache-2.0
// Which elements a kernel drops; see dropout.cuh.
#pragma once

#include <cmath>
#include <cstdint>

namespace seqrec {
namespace cuda {

struct Dropout {
  const std::int64_t* seed;  // one number in device memory; null where nothing is dropped
  std::int32_t threshold;    // of 2^24: an element whose draw is below is dropped; 0 drops none
  float scale;               // of the elements that stay
};

inline Dropout make_dropout(const std::int64_t* seed, double p) {
  constexpr double kDraws = 16777216.0;
  const double nearest = std::nearbyint(p * kDraws);
  const auto threshold = static_cast<std::int32_t>(nearest < kDraws ? nearest : kDraws - 1.0);
  return {seed, threshold, static_cast<float>(kDraws / (kDraws - threshold))};
}

}  // namespace cuda
}  // namespace seqrec
