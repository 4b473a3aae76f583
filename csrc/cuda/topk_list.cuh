// SPDX-License-Identifier: Apache-2.0
// Candidates of the search for the best items: scores with their items as one whole number each,
// and a sort of a few of them.
#pragma once

#include <cstdint>

#include "cuda/device.cuh"

namespace seqrec {
namespace cuda {

/// A score and its item as one number: greater where the score is, and at equal scores where the
/// item is the lower one. No candidate is 0.
__device__ __forceinline__ std::uint64_t candidate(float score, int item) {
  const unsigned bits = __float_as_uint(score + 0.0f);  // -0 and 0 are equal scores
  const unsigned ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<std::uint64_t>(ordered) << 32 | (0xFFFFFFFFu - static_cast<unsigned>(item));
}

__device__ __forceinline__ float candidate_score(std::uint64_t key) {
  const unsigned ordered = static_cast<unsigned>(key >> 32);
  return __uint_as_float((ordered & 0x80000000u) != 0 ? ordered & 0x7FFFFFFFu : ~ordered);
}

__device__ __forceinline__ int candidate_item(std::uint64_t key) {
  return static_cast<int>(0xFFFFFFFFu - static_cast<unsigned>(key));
}

/// Threads that work on one list together: a warp or the whole block.
struct Group {
  int lane, size;

  __device__ __forceinline__ void sync() const {
    if (size == 32) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }
};

/// Sorts `count` numbers, of any count, by a bitonic network whose comparators all point the same
/// way: what would lie beyond the last number stays there, so that nothing is padded.
template <bool kDescending, typename T>
__device__ void sort_list(T* list, int count, const Group& group) {
  int half_padded = 1;
  while (2 * half_padded < count) half_padded *= 2;
  for (int half = 1; half < count; half *= 2) {
    // two sorted runs of `half` become one: its ends are compared first, inwards
    for (int stride = half; stride > 0; stride /= 2) {
      for (int pair = group.lane; pair < half_padded; pair += group.size) {
        const int at = pair & (stride - 1), base = 2 * (pair - at);
        const int i = base + at;
        const int j = stride == half ? base + 2 * stride - 1 - at : i + stride;
        if (j < count) {
          const T a = list[i], b = list[j];
          if (kDescending ? a < b : b < a) {
            list[i] = b;
            list[j] = a;
          }
        }
      }
      group.sync();
    }
  }
}

/// Whether an ascending list has `item`.
__device__ __forceinline__ bool has_item(const std::int32_t* list, std::int64_t count, int item) {
  std::int64_t from = 0, to = count;
  while (from < to) {
    const std::int64_t mid = from + (to - from) / 2;
    const std::int32_t found = load_readonly(list + mid);
    if (found == item) return true;
    if (found < item) {
      from = mid + 1;
    } else {
      to = mid;
    }
  }
  return false;
}

}  // namespace cuda
}  // namespace seqrec
