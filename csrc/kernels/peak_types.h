// SPDX-License-Identifier: Apache-2.0
// The probes of what the machine can do, by which the other kernels are judged.
#pragma once

#include <cstdint>

namespace seqrec {

struct PeakKernels {
  /// Runs `rounds` rounds of independent multiply-adds; returns a number that depends on them all.
  float (*multiply_add)(std::int64_t rounds);
  /// Floating-point operations of one round.
  std::int64_t operations_per_round;
  /// Reads `count` floats once and returns their sum.
  float (*read)(const float* data, std::int64_t count);
};

}  // namespace seqrec
