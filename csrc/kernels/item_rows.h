// SPDX-License-Identifier: Apache-2.0
// One item of a table as the kernels read it, whatever the form in which the table is stored.
//
// Every form gives the same float32 numbers wherever it is read, so that the order of summation
// alone decides a score.
#pragma once

#include "base/item_rows.h"
#include "base/simd_narrow.h"

namespace seqrec {
namespace SEQREC_ISA {

struct FloatItem {
  static constexpr bool kScaled = false;  // rows side by side are one long row
  const float* at;

  static SEQREC_INLINE FloatItem of(const ItemRows& rows, std::int64_t row, std::int64_t dim) {
    return {rows.floats + row * dim};
  }
  template <int L>
  SEQREC_INLINE Floats<L> get(std::int64_t d) const {
    return load<L>(at + d);
  }
  template <int L>
  SEQREC_INLINE Floats<L> first(std::int64_t d, std::int64_t n) const {
    return load_first<L>(at + d, n);
  }
  static SEQREC_INLINE void fetch(const ItemRows& rows, std::int64_t row, std::int64_t dim) {
    for (std::int64_t d = 0; d < dim; d += 16) __builtin_prefetch(rows.floats + row * dim + d);
  }
};

struct HalfItem {
  static constexpr bool kScaled = false;
  const std::uint16_t* at;

  static SEQREC_INLINE HalfItem of(const ItemRows& rows, std::int64_t row, std::int64_t dim) {
    return {rows.halves + row * dim};
  }
  template <int L>
  SEQREC_INLINE Floats<L> get(std::int64_t d) const {
    return load_halves<L>(at + d);
  }
  template <int L>
  SEQREC_INLINE Floats<L> first(std::int64_t d, std::int64_t n) const {
    std::uint16_t part[L] = {};
    for (std::int64_t i = 0; i < n; ++i) part[i] = at[d + i];
    return load_halves<L>(part);
  }
  static SEQREC_INLINE void fetch(const ItemRows& rows, std::int64_t row, std::int64_t dim) {
    for (std::int64_t d = 0; d < dim; d += 32) __builtin_prefetch(rows.halves + row * dim + d);
  }
};

struct ByteItem {
  static constexpr bool kScaled = true;
  const std::int8_t* at;
  float scale;

  static SEQREC_INLINE ByteItem of(const ItemRows& rows, std::int64_t row, std::int64_t dim) {
    return {rows.bytes + row * dim, rows.scales[row]};
  }
  template <int L>
  SEQREC_INLINE Floats<L> get(std::int64_t d) const {
    return scaled(load_bytes<L>(at + d));
  }
  template <int L>
  SEQREC_INLINE Floats<L> first(std::int64_t d, std::int64_t n) const {
    std::int8_t part[L] = {};
    for (std::int64_t i = 0; i < n; ++i) part[i] = at[d + i];
    return scaled(load_bytes<L>(part));
  }
  /// Rounded here and now: a sum that follows must not take the product in unrounded.
  template <typename V>
  SEQREC_INLINE V scaled(V whole) const {
    constexpr int kLanes = sizeof(V) / sizeof(float);
    V value = whole * broadcast<kLanes>(scale);
    keep_in_register<kLanes>(value);
    return value;
  }
  static SEQREC_INLINE void fetch(const ItemRows& rows, std::int64_t row, std::int64_t dim) {
    __builtin_prefetch(rows.scales + row);
    for (std::int64_t d = 0; d < dim; d += 64) __builtin_prefetch(rows.bytes + row * dim + d);
  }
};

/// Calls `visit` with a value of the type of item that `rows` hold, made by its `of`.
template <typename Visit>
SEQREC_INLINE void with_item_form(const ItemRows& rows, const Visit& visit) {
  if (rows.floats != nullptr) return visit(FloatItem{});
  if (rows.halves != nullptr) return visit(HalfItem{});
  visit(ByteItem{});
}

/// Rows as float32, side by side; `ids` null: first, first + 1, …
template <int W>
struct WidenRows {
  template <typename Item>
  static SEQREC_INLINE void widen_row(const Item& item, std::int64_t size, float* out) {
    std::int64_t d = 0;
    for (; d + W <= size; d += W) store<W>(out + d, item.template get<W>(d));
    if (d < size) store_part<W>(out + d, item.template first<W>(d, size - d), size - d);
  }

  template <typename Item>
  static SEQREC_INLINE void widen_form(const ItemRows& rows, std::int64_t dim,
                                       const std::int32_t* ids, std::int64_t first,
                                       std::int64_t count, float* out) {
    if constexpr (!Item::kScaled) {
      if (ids == nullptr) return widen_row(Item::of(rows, first, dim), count * dim, out);
    }
    constexpr std::int64_t kAhead = 8;
    for (std::int64_t i = 0; i < count; ++i, out += dim) {
      if (ids != nullptr && i + kAhead < count) Item::fetch(rows, ids[i + kAhead], dim);
      widen_row(Item::of(rows, ids != nullptr ? std::int64_t{ids[i]} : first + i, dim), dim, out);
    }
  }

  static void widen(const ItemRows& rows, std::int64_t dim, const std::int32_t* ids,
                    std::int64_t first, std::int64_t count, float* out) {
    with_item_form(
        rows, [&](auto form) { widen_form<decltype(form)>(rows, dim, ids, first, count, out); });
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
