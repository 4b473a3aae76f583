// SPDX-License-Identifier: Apache-2.0
// Where a thread of the recurrent kernels stands, and how it reads and writes its two units.
#pragma once

#include "cuda/device.cuh"
#include "cuda/launch.h"
#include "cuda/recurrent.h"
#include "cuda/recurrent_product.cuh"

namespace seqrec {
namespace cuda {

template <RecurrentMath M>
struct RecurrentPlace {
  static constexpr int kElement = recurrent_element(M), kFragment = recurrent_fragment(M);

  int hidden;
  int team, member;     // the block
  int warp, lane;       // in the block
  int first;            // unit of the block
  int warp_unit;        // first unit of the warp
  int unit, local;      // first of the thread's two units, in the layer and in the block
  bool pairs;           // two units lie together and both exist, wherever a thread has any
  bool whole_lines;     // rows of `hidden` elements are a multiple of 16 bytes long

  __device__ explicit RecurrentPlace(const RecurrentPlan& plan) {
    hidden = static_cast<int>(plan.hidden);
    team = static_cast<int>(blockIdx.x) / plan.members;
    member = static_cast<int>(blockIdx.x) % plan.members;
    warp = static_cast<int>(threadIdx.x) / 32;
    lane = static_cast<int>(threadIdx.x) % 32;
    first = member * plan.units;
    warp_unit = first + warp * kRecurrentUnits;
    local = warp * kRecurrentUnits + lane / 4 * 2;
    unit = first + local;
    pairs = hidden % 2 == 0;
    whole_lines = hidden * kElement % 16 == 0;
  }

  /// The slot of column i of tile n.
  __device__ int slot(int n, int i) const { return n * 8 + lane % 4 * 2 + i; }

  /// Two numbers of a row of `hidden`, whose memory is aligned; zeros where the units do not exist
  /// or are not wanted.
  template <typename T>
  __device__ Two<T> read(const T* from, bool wanted = true) const {
    Two<T> found{from_float<T>(0.0f), from_float<T>(0.0f)};
    if (!wanted || unit >= hidden) return found;
    if (pairs) return load_global(reinterpret_cast<const Two<T>*>(from));
    found.a = load_global(from);
    if (unit + 1 < hidden) found.b = load_global(from + 1);
    return found;
  }

  template <typename T>
  __device__ void write(T* to, Two<T> two) const {
    if (unit >= hidden) return;
    if (pairs) return store_global(reinterpret_cast<Two<T>*>(to), two);
    store_global(to, two.a);
    if (unit + 1 < hidden) store_global(to + 1, two.b);
  }

  /// Into shared memory, where units are padded to pairs; beyond the last they stay zeros.
  template <typename T>
  __device__ void write_tile(T* to, Two<T> two) const {
    if (unit >= hidden) return;
    if (unit + 1 >= hidden) two.b = from_float<T>(0.0f);
    *reinterpret_cast<Two<T>*>(to) = two;
  }

  __device__ unsigned char* shared_weights(unsigned char* shared, const RecurrentPlan& plan,
                                           int gates) const {
    return shared + plan.weights_at +
           warp * plan.shared_tiles * gates * kFragment;
  }

  __device__ unsigned char* streamed_weights(void* workspace, const RecurrentPlan& plan,
                                             int gates) const {
    const std::int64_t before =
        std::int64_t{team * plan.members + member} * (plan.threads / 32) + warp;
    return static_cast<unsigned char*>(workspace) + std::int64_t{plan.teams} * kRecurrentCounterBytes +
           before * plan.streamed_tiles * gates * kFragment;
  }
};

/// Makes the counter of a team zero before anybody counts.
template <typename Place>
__device__ unsigned* team_counter(void* workspace, const RecurrentPlan& plan, const Place& place) {
  unsigned* counter = reinterpret_cast<unsigned*>(static_cast<unsigned char*>(workspace) +
                                                  std::int64_t{place.team} * kRecurrentCounterBytes);
  if (plan.barriers) {
    if (place.member == 0 && threadIdx.x == 0) *counter = 0;
    grid_barrier();
  }
  return counter;
}

/// A row that other blocks wrote, past the first-level cache, which does not know of it.
template <typename T>
__device__ void gather_row(const T* from, int count, bool whole_lines, T* to) {
  if (whole_lines) {
    constexpr int kLine = 16 / sizeof(T);
    for (int u = threadIdx.x * kLine; u < count; u += blockDim.x * kLine) {
      *reinterpret_cast<uint4*>(to + u) = load_shared_by_blocks(reinterpret_cast<const uint4*>(from + u));
    }
  } else {
    for (int u = threadIdx.x; u < count; u += blockDim.x) to[u] = load_shared_by_blocks(from + u);
  }
}

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

inline dim3 recurrent_grid(const RecurrentPlan& plan) {
  return dim3(static_cast<unsigned>(plan.teams * plan.members));
}
inline dim3 recurrent_threads(const RecurrentPlan& plan) {
  return dim3(static_cast<unsigned>(plan.threads));
}

}  // namespace cuda
}  // namespace seqrec
