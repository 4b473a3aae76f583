// SPDX-License-Identifier: Apache-2.0
// Dropout whose mask is computed, not stored: the draw of an element is a hash of the seed, its
// row and its column, so that a backward pass repeats it, and neither the number of threads nor
// the width of the vectors changes it.
//
// A row gets two 32-bit keys from a 64-bit mixer (the finaliser of Steele, Lea and Flood 2014,
// "Fast splittable pseudorandom number generators"). A column gives 32 bits by two multiplications
// between shifts, with one key before the first and the other before the second, so that rows are
// not shifted copies of one sequence. About ten integer instructions a vector, where torch's
// generator costs as much as the matrix product beside it.
#pragma once

#include "base/simd.h"
#include "kernels/dropout_types.h"

namespace seqrec {
namespace SEQREC_ISA {

/// The factors (0 or the scale) of the elements of one row.
template <int W>
struct DropoutRow {
  Words<W> first, second;
  Ints<W> threshold;
  Floats<W> scale;

  SEQREC_INLINE DropoutRow(const Dropout& d, std::int64_t row) {
    std::uint64_t z = d.seed + (static_cast<std::uint64_t>(row) + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    Words<W> lanes;
    for (int i = 0; i < W; ++i) lanes[i] = static_cast<std::uint32_t>(i) * kColumn;
    first = lanes + static_cast<std::uint32_t>(z);
    second = Words<W>{} + static_cast<std::uint32_t>(z >> 32);
    threshold = broadcast<W>(d.threshold - 1);
    scale = broadcast<W>(d.scale);
  }

  /// The factors of columns `column` … `column + W - 1`.
  SEQREC_INLINE Floats<W> factors(std::int64_t column) const {
    Words<W> x = first + static_cast<std::uint32_t>(column) * kColumn;
    x ^= x >> 16;
    x = x * 0x7FEB352Du + second;
    x ^= x >> 15;
    x *= 0x846CA68Bu;
    const Ints<W> draw = reinterpret_cast<Ints<W>>(x >> 8);
    return floats_of<W>((draw > threshold) & bits_of<W>(scale));
  }

 private:
  static constexpr std::uint32_t kColumn = 0x9E3779B9u;
};

template <int W>
SEQREC_NOINLINE void apply_dropout(const DropoutProblem& p, std::int64_t first_row,
                                   std::int64_t end_row) {
  for (std::int64_t row = first_row; row < end_row; ++row) {
    const DropoutRow<W> drop(p.dropout, row);
    const float* x = p.x + row * p.columns;
    float* out = p.out + row * p.columns;
    std::int64_t j = 0;
    for (; j + W <= p.columns; j += W) store<W>(out + j, load<W>(x + j) * drop.factors(j));
    if (j < p.columns) {
      const std::int64_t rest = p.columns - j;
      store_part<W>(out + j, load_part<W>(x + j, rest) * drop.factors(j), rest);
    }
  }
}

}  // namespace SEQREC_ISA
}  // namespace seqrec
