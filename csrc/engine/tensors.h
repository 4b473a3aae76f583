// SPDX-License-Identifier: Apache-2.0
// The weights of a trained model by name, and a linear layer made of them.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

#include "base/item_rows.h"
#include "isa/kernel_table.h"
#include "ops/linear.h"

namespace seqrec {

/// Seen, not owned: dense arrays under the names of the torch model's state, float32 but for tables
/// of items, which may be of fewer bits.
class Tensors {
 public:
  void set(const std::string& name, const ItemRows& data, std::int64_t size);
  bool has(const std::string& name) const { return found_.count(name) != 0; }

  /// The table; throws std::invalid_argument where it is missing or has another size.
  const ItemRows& rows(const std::string& name, std::int64_t size) const;

  /// The tensor; throws std::invalid_argument also where it is not float32.
  const float* at(const std::string& name, std::int64_t size) const;

 private:
  struct Entry {
    ItemRows data;
    std::int64_t size;
  };
  std::unordered_map<std::string, Entry> found_;
};

/// y = activation(x W^T + b) on the calling thread, in `scratch` of table.linear->scratch floats.
void multiply(const PackedLinear& layer, const float* x, std::int64_t x_stride, std::int64_t rows,
              Activation activation, float* y, std::int64_t y_stride, float* scratch);

}  // namespace seqrec
