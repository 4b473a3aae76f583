// SPDX-License-Identifier: Apache-2.0
// The dropout of kernels/dropout.h on the GPU: the same numbers of the same seed, row and column.
// The seed lies in device memory, so that a captured graph draws anew when it is replayed.
#pragma once

#include <cstdint>

#include "cuda/device.cuh"
#include "cuda/dropout.h"

namespace seqrec {
namespace cuda {

/// The factors (0 or the scale) of the elements of one row.
struct DropoutRow {
  std::uint32_t first, second;
  std::int32_t threshold;
  float scale;

  SEQREC_DEVICE DropoutRow(const Dropout& d, std::uint64_t seed, std::int64_t row)
      : threshold(d.threshold), scale(d.scale) {
    std::uint64_t z = seed + (static_cast<std::uint64_t>(row) + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    first = static_cast<std::uint32_t>(z);
    second = static_cast<std::uint32_t>(z >> 32);
  }

  SEQREC_DEVICE float factor(std::int64_t column) const {
    std::uint32_t x = first + static_cast<std::uint32_t>(column) * 0x9E3779B9u;
    x ^= x >> 16;
    x = x * 0x7FEB352Du + second;
    x ^= x >> 15;
    x *= 0x846CA68Bu;
    return static_cast<std::int32_t>(x >> 8) >= threshold ? scale : 0.0f;
  }
};

/// The seed; 0 where nothing is dropped.
SEQREC_DEVICE std::uint64_t seed_of(const Dropout& d) {
  return d.threshold > 0 ? static_cast<std::uint64_t>(load_readonly(d.seed)) : 0;
}

}  // namespace cuda
}  // namespace seqrec
