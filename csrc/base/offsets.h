// SPDX-License-Identifier: Apache-2.0
// Offsets of rows are values and not shapes: only where they are at last read can they be refused
// without breaking a traced graph, and nothing may read through wrong ones.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace seqrec {

/// Throws std::invalid_argument unless `offsets` [rows + 1] run from 0 to `count` and never
/// decrease. `what` is counted by them: "tokens of x".
inline void check_offsets(const std::int64_t* offsets, std::int64_t rows, std::int64_t count,
                          const char* what, const char* name = "offsets") {
  const auto text = [](std::int64_t n) { return std::to_string(n); };
  if (offsets[0] != 0 || offsets[rows] != count) {
    throw std::invalid_argument(std::string(name) + ": must run from 0 to the " + text(count) +
                                " " + what + ", found " + text(offsets[0]) + " to " +
                                text(offsets[rows]));
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    if (offsets[row] > offsets[row + 1]) {
      throw std::invalid_argument(std::string(name) + ": must not decrease, found " +
                                  text(offsets[row]) + " before " + text(offsets[row + 1]) +
                                  " at row " + text(row));
    }
  }
}

}  // namespace seqrec
