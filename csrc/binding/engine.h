// SPDX-License-Identifier: Apache-2.0
// An engine together with the arrays that it reads, for the files of the module that work on it.
#pragma once

#include <memory>
#include <optional>

#include "binding/binding.h"
#include "engine/engine.h"

namespace seqrec {

class BoundEngine {
 public:
  /// Tables of items are float32 arrays or BoundItems; those of `items` hold the same bias.
  BoundEngine(const py::dict& config, const py::dict& weights, const py::object& items,
              const std::optional<Array<float>>& bias, int threads);

  const Engine& get() const { return *engine_; }

 private:
  py::object kept_;  // what the engine reads where it lies
  std::unique_ptr<Engine> engine_;
};

/// Items of a jagged batch, checked; `rows` is their number where it is known, else -1.
JaggedView<std::int32_t> checked_items(const char* name, const Array<std::int32_t>& values,
                                       const Array<std::int64_t>& offsets, std::int64_t rows,
                                       std::int64_t num_items, bool may_be_empty);

}  // namespace seqrec
