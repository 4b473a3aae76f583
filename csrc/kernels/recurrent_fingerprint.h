// SPDX-License-Identifier: Apache-2.0
// A hash of the weights of a recurrent layer, by which packed weights are known to be still true.
//
// Weights are memory that anybody may write to, at any time and without a word. Reading all of them
// costs a fifth of packing them. Each lane of eight vectors mixes its own words (an odd multiplier
// and a shift, so that a changed bit reaches all bits above and below it); in the end they are
// folded into 64 bits. Two sets of weights that differ have the same hash once in some 2^32 at
// worst, where a single lane has seen all of the change.
#pragma once

#include "base/simd.h"
#include "kernels/recurrent_types.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W>
class Fingerprint {
 public:
  void add(const float* values, std::int64_t count) {
    Words<W> state[kStates];
    for (int s = 0; s < kStates; ++s) state[s] = state_[s];
    std::int64_t i = 0;
    for (; i + kStates * W <= count; i += kStates * W) {
      for (int s = 0; s < kStates; ++s) mix(state[s], load<W>(values + i + s * W));
    }
    for (; i < count; i += W) {
      mix(state[0], load_first<W>(values + i, count - i < W ? count - i : W));
    }
    for (int s = 0; s < kStates; ++s) state_[s] = state[s];
  }

  std::uint64_t value() const {
    std::uint64_t folded = 0;
    for (int s = 0; s < kStates; ++s) {
      for (int i = 0; i < W; ++i) {
        folded = (folded ^ state_[s][i]) * 0xD6E8FEB86659FD93u;
        folded ^= folded >> 32;
      }
    }
    return folded;
  }

 private:
  static constexpr int kStates = 8;

  static SEQREC_INLINE void mix(Words<W>& state, Floats<W> values) {
    state = (state ^ reinterpret_cast<Words<W>>(values)) * 0x9E3779B1u;
    state ^= state >> 15;
  }

  Words<W> state_[kStates] = {};
};

/// The hash of the weights and biases of a problem; nothing else of it is looked at.
template <int W>
SEQREC_NOINLINE std::uint64_t recurrent_fingerprint(const RecurrentProblem& p) {
  const std::int64_t outputs = recurrent_gates(p.cell) * p.hidden;
  Fingerprint<W> hash;
  hash.add(p.w_ih, outputs * p.inputs);
  hash.add(p.w_hh, outputs * p.hidden);
  if (p.b_ih != nullptr) hash.add(p.b_ih, outputs);
  if (p.b_hh != nullptr) hash.add(p.b_hh, outputs);
  return hash.value();
}

}  // namespace SEQREC_ISA
}  // namespace seqrec
