// SPDX-License-Identifier: Apache-2.0
// The first steps of a transformer over items: item plus position, then norm and linear layer from
// products that were computed once for all.
//
// With s the standard deviation of x = item + position, and rows less their own mean,
//   W norm(x) + b = (W (g (item - mean)) + W (g (position - mean))) / s + W h + b.
// The first two terms depend on one item and one position alone, so that a catalogue's are a table,
// and an event costs the reading of two rows instead of a product with W. (With the mean of x taken
// off afterwards instead, items that share a large part would lose their digits in the table.)
#pragma once

#include "base/over_row.h"
#include "kernels/item_rows.h"
#include "kernels/sequence_input_types.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W>
struct SequenceInputRows {
  using F = Floats<W>;

  static void rows(const SequenceInput& p, const std::int32_t* ids, const std::int64_t* positions,
                   std::int64_t count, float* x, float* products) {
    with_item_form(p.items, [&](auto form) {
      rows_of<decltype(form)>(p, ids, positions, count, x, products);
    });
  }

  /// Vectors of an item, in the way of over_row.
  template <typename Item>
  static SEQREC_INLINE F item_part(const Item& item, std::int64_t d, const WholeVector<W>&) {
    return item.template get<W>(d);
  }
  template <typename Item>
  static SEQREC_INLINE F item_part(const Item& item, std::int64_t d, const PartOfVector<W>& part) {
    return item.template first<W>(d, part.count);
  }

  template <typename Item>
  static SEQREC_NOINLINE void rows_of(const SequenceInput& p, const std::int32_t* ids,
                                      const std::int64_t* positions, std::int64_t count, float* x,
                                      float* products) {
    const float share = 1.0f / static_cast<float>(p.dim);
    for (std::int64_t t = 0; t < count; ++t) {
      if (t + 2 < count) fetch<Item>(p, ids[t + 2], products != nullptr);
      float* row = x + t * p.dim;
      const Item item = Item::of(p.items, ids[t], p.dim);
      const float* position = p.positions + positions[t] * p.dim;
      F total{};
      over_row<W>(p.dim, [&](std::int64_t d, auto part) {
        const F sum = item_part(item, d, part) + part.get(position + d);
        part.put(row + d, sum);
        total += sum;
      });
      if (products == nullptr) continue;
      const float mean = horizontal_sum<W>(total) * share;
      F squares{};
      over_row<W>(p.dim, [&](std::int64_t d, auto part) {
        const F deviation = part.keep(part.get(row + d) - mean);
        squares += deviation * deviation;
      });
      const float variance = horizontal_sum<W>(squares) * share;
      const F inverse = broadcast<W>(1.0f / __builtin_sqrtf(variance + p.eps));
      const float* of_item = p.item_products + ids[t] * p.outputs;
      const float* of_position = p.position_products + positions[t] * p.outputs;
      float* to = products + t * p.outputs;
      const float* constants = p.constants;
      over_row<W>(p.outputs, [&](std::int64_t j, auto part) {
        const F product = part.get(of_item + j) + part.get(of_position + j);
        part.put(to + j, product * inverse + part.get(constants + j));
      });
    }
  }

  /// Rows of the tables lie anywhere, which no processor foresees.
  template <typename Item>
  static SEQREC_INLINE void fetch(const SequenceInput& p, std::int64_t id, bool products) {
    Item::fetch(p.items, id, p.dim);
    for (std::int64_t j = 0; products && j < p.outputs; j += 16) {
      __builtin_prefetch(p.item_products + id * p.outputs + j);
    }
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
