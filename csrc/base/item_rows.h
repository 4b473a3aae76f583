// SPDX-License-Identifier: Apache-2.0
// Item vectors in the form in which they are stored: seen, not owned.
#pragma once

#include <cstdint>

namespace seqrec {

/// A table [items, dim] of which exactly one of `floats`, `halves` and `bytes` is set. All are
/// computed with as the float32 numbers that they stand for.
struct ItemRows {
  const float* floats = nullptr;
  const std::uint16_t* halves = nullptr;  // bfloat16: the upper halves of float32 numbers
  const std::int8_t* bytes = nullptr;     // times the scale of the row, rounded to float32
  const float* scales = nullptr;          // [items], finite and at least 0; only with bytes

  constexpr ItemRows() = default;
  constexpr ItemRows(const float* rows) : floats(rows) {}
  constexpr ItemRows(const std::uint16_t* rows) : halves(rows) {}
  constexpr ItemRows(const std::int8_t* rows, const float* steps) : bytes(rows), scales(steps) {}
};

}  // namespace seqrec
