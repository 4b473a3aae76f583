// SPDX-License-Identifier: Apache-2.0
// How a recurrent layer is laid out on a GPU: pure arithmetic of the host.
//
// A *team* of blocks takes a share of the rows through all their time steps, some rows (slots) at a
// time. Each block of it owns a slice of the hidden units and keeps their recurrent weights: first
// in registers, then in shared memory, and what fits in neither is read from L2 in every step.
//   whole    the team is one block, and all weights are in it: no barrier between blocks
//   split    a team of several blocks, which exchange what they computed through L2 in every step
//   streamed as split, with weights beyond what all multiprocessors hold
#pragma once

#include <cstdint>

#include "kernels/recurrent_types.h"

namespace seqrec {
namespace cuda {

/// What numbers are stored as and how products are computed; sums are float32 in all of them.
enum class RecurrentMath : std::int32_t { kFloat32, kTf32, kFloat16, kBfloat16 };
enum class RecurrentForm : std::int32_t { kWhole, kSplit, kStreamed };

struct RecurrentDevice {
  int multiprocessors;
  int shared_per_block;           // bytes, after opting in
  int shared_per_multiprocessor;  // bytes
};

struct RecurrentPlan {
  RecurrentCell cell;
  RecurrentMath math;
  RecurrentForm form;
  std::int64_t hidden;
  int teams;
  int members;  // blocks of a team
  int threads;  // of a block: a warp for each 16 units
  int units;    // of a block, a multiple of 16
  int slots;    // rows that a team takes at a time: 1, 2, 4, 8 or 16
  int tiles;    // steps of the product over `hidden`, kTileDepth wide
  int shared_tiles;    // of those: in shared memory
  int streamed_tiles;  // of those: in the workspace
  int tile_stride;     // elements between two slots of the operand in shared memory
  int part_stride;     // backward: elements between two gates of a slot
  bool barriers;       // blocks of a team wait for each other
  int bias_at, operand_at, weights_at;  // bytes from the beginning of shared memory
  int shared;                           // bytes
  std::int64_t workspace;               // bytes of device memory
};

inline constexpr int kRecurrentUnits = 16;  // of a warp
inline constexpr int kRecurrentMostSlots = 16;

/// Warps of a block at most: registers hold weights, so that there cannot be many threads.
constexpr int recurrent_most_warps(RecurrentCell cell) {
  return cell == RecurrentCell::kRnn ? 16 : 8;
}

constexpr int recurrent_gate_count(RecurrentCell cell) {
  return cell == RecurrentCell::kLstm ? 4 : cell == RecurrentCell::kGru ? 3 : 1;
}

constexpr int recurrent_element(RecurrentMath math) {
  return math == RecurrentMath::kFloat32 || math == RecurrentMath::kTf32 ? 4 : 2;
}

/// Depth of one step of the product.
constexpr int recurrent_tile_depth(RecurrentMath math) {
  return math == RecurrentMath::kFloat32 ? 4 : math == RecurrentMath::kTf32 ? 8 : 16;
}

/// Steps whose weights a thread keeps in registers. The multiply-add form shares each weight among
/// four threads, which registers cannot.
constexpr int recurrent_held_tiles(RecurrentMath math, int gates, bool backward) {
  return math == RecurrentMath::kFloat32                    ? 0
         : math == RecurrentMath::kTf32 || backward ? 4
         : gates == 4                                       ? 7
                                                            : 8;
}

/// Bytes of the weights of one warp, one gate and one step.
constexpr int recurrent_fragment(RecurrentMath math) {
  return kRecurrentUnits * recurrent_tile_depth(math) * recurrent_element(math);
}

inline constexpr int kRecurrentRing = 4;  // steps whose slots are known at a time
inline constexpr int kRecurrentRingBytes = kRecurrentRing * (kRecurrentMostSlots * 16 + 16);
inline constexpr int kRecurrentCounterBytes = 128;  // a counter has a cache line to itself

constexpr std::int64_t recurrent_round_up(std::int64_t value, std::int64_t to) {
  return (value + to - 1) / to * to;
}

constexpr int recurrent_divide_up(std::int64_t value, std::int64_t by) {
  return static_cast<int>((value + by - 1) / by);
}

/// What a form needs beside `slots` and `members`, filled into the plan. Returns whether it fits.
inline bool recurrent_fit(RecurrentPlan& plan, const RecurrentDevice& device, bool backward) {
  const int gates = recurrent_gate_count(plan.cell), element = recurrent_element(plan.math);
  const int all = recurrent_divide_up(plan.hidden, kRecurrentUnits);
  const int warps = recurrent_divide_up(all, plan.members);
  if (warps > recurrent_most_warps(plan.cell)) return false;
  plan.members = recurrent_divide_up(all, warps);
  plan.threads = 32 * warps;
  plan.units = kRecurrentUnits * warps;
  plan.tiles = recurrent_divide_up(plan.hidden, recurrent_tile_depth(plan.math));
  // Rows of slots are offset so that the eight of a fragment fall onto different banks; the
  // multiply-add form reads pairs of them.
  const int line = 128 / element;
  const int padded = static_cast<int>(recurrent_round_up(plan.hidden, line));
  const int offset = (plan.math == RecurrentMath::kFloat32 ? 16 : 32) / element;
  plan.part_stride = backward ? padded : 0;
  plan.tile_stride = padded * (backward ? gates : 1) + offset;
  const std::int64_t operands = plan.form == RecurrentForm::kWhole ? 2 : 1;
  const std::int64_t operand_bytes = operands * plan.slots * plan.tile_stride * element;
  plan.bias_at = kRecurrentRingBytes;
  plan.operand_at = plan.bias_at + (backward ? 0 : 4 * plan.units * 4);
  const std::int64_t weights_at = plan.operand_at + operand_bytes;
  if (weights_at > device.shared_per_block) return false;
  plan.weights_at = static_cast<int>(weights_at);
  const std::int64_t tile_bytes = std::int64_t{warps} * gates * recurrent_fragment(plan.math);
  const int held = recurrent_held_tiles(plan.math, gates, backward);
  const int left = plan.tiles > held ? plan.tiles - held : 0;
  const std::int64_t room = (device.shared_per_block - weights_at) / tile_bytes;
  plan.shared_tiles = room < left ? static_cast<int>(room) : left;
  plan.streamed_tiles = left - plan.shared_tiles;
  plan.shared = plan.weights_at + static_cast<int>(plan.shared_tiles * tile_bytes);
  return plan.streamed_tiles == 0 || plan.form == RecurrentForm::kStreamed;
}

/// What decides a plan. `single`: each row has one token at most, so that nothing is ever
/// exchanged. `form`: a RecurrentForm, or -1 to choose.
struct RecurrentShape {
  RecurrentCell cell;
  RecurrentMath math;
  std::int64_t hidden;
  std::int64_t rows;  // at least 1
  bool backward;
  bool single;
  int form;
};

/// One block a team. Rows are spread over all multiprocessors before any takes more of them.
inline bool plan_recurrent_whole(RecurrentPlan plan, const RecurrentShape& shape,
                                 const RecurrentDevice& device, RecurrentPlan* found) {
  plan.form = RecurrentForm::kWhole;
  plan.members = 1;
  for (plan.slots = kRecurrentMostSlots; plan.slots >= 8; plan.slots /= 2) {
    if (plan.slots == kRecurrentMostSlots && shape.rows <= 8 * std::int64_t{device.multiprocessors})
      continue;
    if (!recurrent_fit(plan, device, shape.backward)) continue;
    // a kibibyte of each block is the system's
    const bool two = device.shared_per_multiprocessor / (plan.shared + 1024) >= 2;
    const std::int64_t most = std::int64_t{device.multiprocessors} * (two ? 2 : 1);
    plan.teams = static_cast<int>(shape.rows < most ? shape.rows : most);
    *found = plan;
    return true;
  }
  return false;
}

/// Several blocks a team, at most one on each multiprocessor: all of them run at once, as a
/// cooperative launch asks. Of few rows a step takes less time the more blocks share it; of many,
/// more rows are on their way the fewer blocks a team has.
inline bool plan_recurrent_split(RecurrentPlan plan, const RecurrentShape& shape,
                                 const RecurrentDevice& device, RecurrentPlan* found) {
  const int units = recurrent_divide_up(shape.hidden, kRecurrentUnits);
  const int most = units < device.multiprocessors ? units : device.multiprocessors;
  for (plan.slots = 8; plan.slots >= 1; plan.slots /= 2) {
    const std::int64_t teams = (shape.rows + plan.slots - 1) / plan.slots;
    const std::int64_t share = device.multiprocessors / teams;
    const int least = plan.form == RecurrentForm::kStreamed ? most
                      : share < 2                           ? (most < 2 ? most : 2)
                      : share < most                        ? static_cast<int>(share)
                                                            : most;
    for (int members = least; members <= most; ++members) {
      plan.members = members;
      if (!recurrent_fit(plan, device, shape.backward)) continue;
      const std::int64_t room = device.multiprocessors / plan.members;
      plan.teams = static_cast<int>(teams < room ? teams : room);
      plan.barriers = !shape.single && plan.members > 1;
      const std::int64_t warps = std::int64_t{plan.teams} * plan.members * (plan.threads / 32);
      plan.workspace = std::int64_t{plan.teams} * kRecurrentCounterBytes +
                       warps * plan.streamed_tiles * recurrent_gate_count(plan.cell) *
                           recurrent_fragment(plan.math);
      *found = plan;
      return true;
    }
  }
  return false;
}

/// Returns false where no form can hold the layer.
inline bool plan_recurrent(const RecurrentShape& shape, const RecurrentDevice& device,
                           RecurrentPlan* found) {
  constexpr std::int64_t kMostHidden = 1 << 16;  // so that all offsets in a row are ints
  if (shape.hidden > kMostHidden) return false;
  RecurrentPlan plan{};
  plan.cell = shape.cell;
  plan.math = shape.math;
  plan.hidden = shape.hidden;
  const auto tries = [&](RecurrentForm form) {
    return shape.form == -1 || shape.form == static_cast<int>(form);
  };
  // A single step reads all weights for few products: the more blocks read them the better.
  const bool spread = shape.form == -1 && shape.single && shape.hidden > kRecurrentUnits;
  if (!spread && tries(RecurrentForm::kWhole) &&
      plan_recurrent_whole(plan, shape, device, found)) {
    return true;
  }
  plan.form = RecurrentForm::kSplit;
  if (tries(plan.form) && plan_recurrent_split(plan, shape, device, found)) return true;
  plan.form = RecurrentForm::kStreamed;
  return tries(plan.form) && plan_recurrent_split(plan, shape, device, found);
}

}  // namespace cuda
}  // namespace seqrec
