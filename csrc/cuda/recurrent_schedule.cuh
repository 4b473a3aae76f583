// SPDX-License-Identifier: Apache-2.0
// Which token each slot of a team works on, step by step.
//
// A team owns the rows team, team + teams, team + 2 * teams, … A slot runs one row through its
// tokens, then takes the team's next row that has any: no row waits for a longer one, and no order
// by length is needed. When rows run out, slots become idle and the batch shrinks. Everything
// follows from the offsets alone, so that all blocks of a team come to the same schedule without a
// word between them.
//
// The first warp of a block works out the step after the next while the block computes this one.
#pragma once

#include "cuda/device.cuh"
#include "cuda/recurrent.h"

namespace seqrec {
namespace cuda {

/// A slot at one step.
struct alignas(16) RecurrentSlot {
  std::int64_t token;
  int row;
  int flags;

  __device__ bool live() const { return (flags & 1) != 0; }
  __device__ bool enters() const { return (flags & 2) != 0; }  // the first step of its row
  __device__ bool leaves() const { return (flags & 4) != 0; }  // the last one
};

/// The slots of a few steps around the present one, in shared memory.
struct RecurrentRing {
  RecurrentSlot slots[kRecurrentRing][kRecurrentMostSlots];
  unsigned live[kRecurrentRing][4];  // a bit for each slot; padded to 16 bytes

  __device__ const RecurrentSlot& at(int step, int slot) const {
    return slots[step & (kRecurrentRing - 1)][slot];
  }
  __device__ unsigned mask(int step) const { return live[step & (kRecurrentRing - 1)][0]; }
};
static_assert(sizeof(RecurrentRing) == kRecurrentRingBytes, "the plan reserves it");

/// Offsets come from the caller, and the host does not look at them: whatever they say, all tokens
/// of a row exist.
__device__ inline std::int64_t row_begin(const RecurrentRows& batch, std::int64_t row) {
  if (batch.offsets == nullptr) return batch.tokens / batch.rows * row;
  const std::int64_t at = __ldg(batch.offsets + row);
  return at < 0 ? 0 : at > batch.tokens ? batch.tokens : at;
}

/// The rows of a team on their way through the slots; a lane of the first warp for each slot.
/// Direction: 1 from the first token of a row to its last, -1 back.
template <int Direction>
class RecurrentQueue {
 public:
  __device__ RecurrentQueue(const RecurrentRows& batch, int team, int teams)
      : batch_(batch), next_(team), teams_(teams) {}

  /// Works out the slots of `step`; all lanes of one warp together, step after step.
  __device__ void advance(int slots, int lane, RecurrentRing& ring, int step) {
    bool enters = false;
    if (live_) {
      live_ = token_ != last_;
      token_ += Direction;
    }
    for (;;) {
      const bool wants = lane < slots && !live_;
      const unsigned idle = __ballot_sync(0xFFFFFFFFu, wants);
      if (idle == 0 || next_ >= batch_.rows) break;
      const std::int64_t row = next_ + std::int64_t{teams_} * __popc(idle & ((1u << lane) - 1));
      if (wants && row < batch_.rows) {
        const std::int64_t begin = row_begin(batch_, row), end = row_begin(batch_, row + 1);
        if (end > begin) {
          live_ = enters = true;
          row_ = static_cast<int>(row);
          token_ = Direction > 0 ? begin : end - 1;
          last_ = Direction > 0 ? end - 1 : begin;
        }
      }
      next_ += std::int64_t{teams_} * __popc(idle);
    }
    const int place = step & (kRecurrentRing - 1);
    if (lane < kRecurrentMostSlots) {
      const int flags = live_ ? 1 + (enters ? 2 : 0) + (token_ == last_ ? 4 : 0) : 0;
      ring.slots[place][lane] = RecurrentSlot{token_, row_, flags};
    }
    const unsigned live = __ballot_sync(0xFFFFFFFFu, live_);
    if (lane == 0) ring.live[place][0] = live;
  }

 private:
  const RecurrentRows& batch_;
  std::int64_t next_;  // the same in all lanes
  int teams_;
  std::int64_t token_ = 0, last_ = 0;
  int row_ = 0;
  bool live_ = false;
};

/// Rows without tokens keep their state: to[row] = from[row], or zeros, for a block's units.
template <typename T>
__device__ void pass_empty_rows(const RecurrentRows& batch, int team, int teams, int first,
                                int units, int hidden, const T* from, T* to) {
  if (to == nullptr) return;
  const int end = first + units < hidden ? first + units : hidden;
  const int warps = static_cast<int>(blockDim.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t step = std::int64_t{teams} * warps;
  for (std::int64_t row = team + std::int64_t{teams} * (threadIdx.x / 32); row < batch.rows;
       row += step) {
    if (row_begin(batch, row) < row_begin(batch, row + 1)) continue;
    for (int u = first + lane; u < end; u += 32) {
      to[row * hidden + u] = from != nullptr ? from[row * hidden + u] : from_float<T>(0.0f);
    }
  }
}

/// Meets the other blocks of the team; what they wrote before is then in L2. `arrivals`: how often
/// the blocks of the team will have come in all, once every one of them is here; both numbers begin
/// again at 0 after 2^32.
__device__ inline void team_barrier(unsigned* counter, unsigned arrivals) {
  __syncthreads();
  if (threadIdx.x == 0) {
    add_acquire_release(counter, 1u);
    while (static_cast<int>(load_acquire(counter) - arrivals) < 0) __nanosleep(32);
  }
  __syncthreads();
}

}  // namespace cuda
}  // namespace seqrec
