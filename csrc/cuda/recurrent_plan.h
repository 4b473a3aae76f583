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

/// Chooses form and sizes for a layer; `form` -1 chooses by itself. `single`: each row has one
/// token at most, so that nothing is ever exchanged. Returns false where the form cannot hold the
/// layer: `shared` then says the least that one slot needs.
inline bool recurrent_plan(RecurrentCell cell, RecurrentMath math, std::int64_t hidden,
                           std::int64_t rows, const RecurrentDevice& device, bool backward,
                           bool single, int form, RecurrentPlan* found) {
  const std::int64_t tiles = (hidden + kRecurrentUnits - 1) / kRecurrentUnits;
  if (tiles > std::int64_t{device.multiprocessors} * recurrent_most_warps(cell)) return false;
  RecurrentPlan plan{};
  plan.cell = cell;
  plan.math = math;
  plan.hidden = hidden;
  const int all = static_cast<int>(tiles);
  // one step alone reads all weights for few products: the more blocks read them the better
  const bool spread = single && tiles > 1;
  if (form == -1 ? !spread : form == static_cast<int>(RecurrentForm::kWhole)) {
    plan.form = RecurrentForm::kWhole;
    for (int slots = kRecurrentMostSlots; slots >= 8; slots /= 2) {
      plan.members = 1;
      plan.slots = slots;
      if (slots == 16 && rows <= 8 * std::int64_t{device.multiprocessors}) continue;
      if (!recurrent_fit(plan, device, backward)) continue;
      // a kibibyte of each block is the system's
      const int by_shared = device.shared_per_multiprocessor / (plan.shared + 1024);
      const int by_registers = 65536 / (32 * recurrent_most_warps(cell) * (65536 / (32 * recurrent_most_warps(cell)))) ;
      (void)by_registers;
      const int resident = by_shared < 1 ? 1 : by_shared > 2 ? 2 : by_shared;
      const std::int64_t most = std::int64_t{device.multiprocessors} * resident;
      plan.teams = static_cast<int>(rows < most ? rows : most);
      *found = plan;
      return true;
    }
    if (form == static_cast<int>(RecurrentForm::kWhole)) return false;
  }
  for (int kind = static_cast<int>(RecurrentForm::kSplit);
       kind <= static_cast<int>(RecurrentForm::kStreamed); ++kind) {
    if (form != -1 && form != kind) continue;
    plan.form = static_cast<RecurrentForm>(kind);
    for (plan.slots = 8; plan.slots >= 1; plan.slots /= 2) {
      // The fewer blocks a team has, the more teams there are; where there are few rows, more
      // blocks take less time for a step.
      const std::int64_t wanted = (rows + plan.slots - 1) / plan.slots;
      for (int members = form == kind && all > 1 ? 2 : 1; members <= device.multiprocessors;
           ++members) {
        const std::int64_t teams = device.multiprocessors / members;
        if (members < all && members < device.multiprocessors && teams > wanted &&
            device.multiprocessors / (members + 1) >= wanted)
          continue;
        if (kind == static_cast<int>(RecurrentForm::kStreamed) &&
            members < (all < device.multiprocessors ? all : device.multiprocessors))
          continue;
        plan.members = members;
        if (!recurrent_fit(plan, device, backward)) continue;
        const std::int64_t most = device.multiprocessors / plan.members;
        plan.teams = static_cast<int>(wanted < most ? wanted : most);
        plan.barriers = !single && plan.members > 1;
        const std::int64_t blocks = std::int64_t{plan.teams} * plan.members;
        plan.workspace = plan.teams * kRecurrentCounterBytes +
                         blocks * plan.streamed_tiles * (plan.threads / 32) *
                             recurrent_gate_count(cell) * recurrent_fragment(math);
        *found = plan;
        return true;
      }
    }
  }
  return false;
}

}  // namespace cuda
}  // namespace seqrec
