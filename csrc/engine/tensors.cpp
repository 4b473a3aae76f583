// SPDX-License-Identifier: Apache-2.0
#include "engine/tensors.h"

#include <stdexcept>

#include "base/round_up.h"

namespace seqrec {

void Tensors::set(const std::string& name, const ItemRows& data, std::int64_t size) {
  found_[name] = {data, size};
}

const ItemRows& Tensors::rows(const std::string& name, std::int64_t size) const {
  const auto found = found_.find(name);
  if (found == found_.end()) throw std::invalid_argument("tensor " + name + " is missing");
  if (found->second.size != size) {
    throw std::invalid_argument("tensor " + name + ": expected " + std::to_string(size) +
                                " numbers, found " + std::to_string(found->second.size));
  }
  return found->second.data;
}

const float* Tensors::at(const std::string& name, std::int64_t size) const {
  const ItemRows& found = rows(name, size);
  if (found.floats == nullptr && size > 0) {
    throw std::invalid_argument("tensor " + name + ": expected float32");
  }
  return found.floats;
}

void multiply(const PackedLinear& layer, const float* x, std::int64_t x_stride, std::int64_t rows,
              Activation activation, float* y, std::int64_t y_stride, float* scratch) {
  const LinearKernels& kernel = *layer.table->linear;
  const float* bias = layer.bias.size() > 0 ? layer.bias.data() : nullptr;
  const LinearProblem problem{x,    x_stride,     layer.weight.data(), bias,
                              rows, layer.inputs, layer.outputs,       activation,
                              y,    y_stride};
  const std::int64_t panels = round_up(layer.outputs, kernel.panel) / kernel.panel;
  kernel.multiply(problem, 0, rows, 0, panels, scratch);
}

}  // namespace seqrec
