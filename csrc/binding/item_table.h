// SPDX-License-Identifier: Apache-2.0
// A compact item table together with the arrays that it reads, for the files of the module.
#pragma once

#include <memory>
#include <optional>

#include "base/item_rows.h"
#include "binding/binding.h"
#include "ops/topk_int8.h"

namespace seqrec {

class BoundItems {
 public:
  /// `values` is uint16 (bfloat16) or int8 [items, dim]; `scales` [items] belong to int8 alone.
  BoundItems(const py::array& values, const std::optional<Array<float>>& scales,
             const std::optional<Array<float>>& bias, int threads);

  const ItemRows& rows() const { return rows_; }
  const float* bias() const { return bias_; }
  std::int64_t num_items() const { return num_items_; }
  std::int64_t dim() const { return dim_; }
  /// Of bytes alone; else null.
  const std::shared_ptr<const ByteItemBounds>& bounds() const { return bounds_; }

 private:
  py::object kept_;  // what is read where it lies
  ItemRows rows_;
  const float* bias_ = nullptr;
  std::int64_t num_items_, dim_;
  std::shared_ptr<const ByteItemBounds> bounds_;
};

}  // namespace seqrec
