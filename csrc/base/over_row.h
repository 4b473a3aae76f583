// SPDX-License-Identifier: Apache-2.0
// A row of floats vector by vector, the last of which may be part of one.
#pragma once

#include "base/simd.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W>
struct WholeVector {
  SEQREC_INLINE Floats<W> get(const float* p) const { return load<W>(p); }
  SEQREC_INLINE void put(float* p, Floats<W> v) const { store<W>(p, v); }
  SEQREC_INLINE Floats<W> keep(Floats<W> v) const { return v; }
};

template <int W>
struct PartOfVector {
  std::int64_t count;
  SEQREC_INLINE Floats<W> get(const float* p) const { return load_part<W>(p, count); }
  SEQREC_INLINE void put(float* p, Floats<W> v) const { store_part<W>(p, v, count); }
  /// Zeros in the lanes that do not count.
  SEQREC_INLINE Floats<W> keep(Floats<W> v) const {
    for (std::int64_t i = count; i < W; ++i) v[i] = 0.0f;
    return v;
  }
};

/// Calls body(column, part) for the vectors of a row of `size` floats.
template <int W, typename Body>
SEQREC_INLINE void over_row(std::int64_t size, Body&& body) {
  std::int64_t j = 0;
  for (; j + W <= size; j += W) body(j, WholeVector<W>{});
  if (j < size) body(j, PartOfVector<W>{size - j});
}

}  // namespace SEQREC_ISA
}  // namespace seqrec
