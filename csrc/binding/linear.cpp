// SPDX-License-Identifier: Apache-2.0
#include "ops/linear.h"

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "binding/binding.h"

namespace seqrec {
namespace {

Activation activation_of(int code) {
  if (code < 0 || code > static_cast<int>(Activation::kSigmoid)) {
    throw std::invalid_argument("activation: unknown code " + std::to_string(code));
  }
  return static_cast<Activation>(code);
}

/// For callers that hold tensors: addresses and sizes that they have checked.
void bound_linear(Address x, std::int64_t x_stride, std::int64_t rows, Address weight,
                  std::int64_t output_stride, std::int64_t input_stride, std::int64_t outputs,
                  std::int64_t inputs, Address bias, int activation, Address y,
                  std::int64_t y_stride, int threads) {
  const KernelTable& table = kernels();
  const Activation applied = activation_of(activation);
  const ReleasedLock release;
  const PackedLinear packed = pack_linear(at<const float>(weight), output_stride, input_stride,
                                          outputs, inputs, at<const float>(bias), table);
  linear(packed, at<const float>(x), x_stride, rows, applied, at<float>(y), y_stride,
         thread_count(threads));
}

void bound_weight_gradient(Address a, Address b, std::int64_t tokens, std::int64_t outputs,
                           std::int64_t inputs, Address sum, Address columns, int threads) {
  const KernelTable& table = kernels();
  const ReleasedLock release;
  weight_gradient(at<const float>(a), at<const float>(b), tokens, outputs, inputs, at<float>(sum),
                  at<float>(columns), thread_count(threads), table);
}

std::unique_ptr<PackedLinear> make_packed(const Array<float>& weight,
                                          const std::optional<Array<float>>& bias) {
  if (weight.ndim() != 2) throw std::invalid_argument("weight: expected two dimensions");
  const std::int64_t outputs = weight.shape(0), inputs = weight.shape(1);
  if (bias && (bias->ndim() != 1 || bias->shape(0) != outputs)) {
    throw std::invalid_argument("bias: expected one number an output (" + std::to_string(outputs) +
                                ")");
  }
  return std::make_unique<PackedLinear>(pack_linear(weight.data(), inputs, 1, outputs, inputs,
                                                    bias ? bias->data() : nullptr, kernels()));
}

Array<float> call_packed(const PackedLinear& packed, const Array<float>& x, int activation,
                         int threads) {
  if (x.ndim() != 2 || x.shape(1) != packed.inputs) {
    throw std::invalid_argument("x: expected [rows, " + std::to_string(packed.inputs) + "]");
  }
  const Activation applied = activation_of(activation);
  const std::int64_t rows = x.shape(0);
  Array<float> y({rows, packed.outputs});
  float* to = y.mutable_data();
  {
    const ReleasedLock release;
    linear(packed, x.data(), packed.inputs, rows, applied, to, packed.outputs,
           thread_count(threads));
  }
  return y;
}

}  // namespace

void bind_linear(py::module_& m) {
  m.def("linear", &bound_linear, py::arg("x"), py::arg("x_stride"), py::arg("rows"),
        py::arg("weight"), py::arg("output_stride"), py::arg("input_stride"), py::arg("outputs"),
        py::arg("inputs"), py::arg("bias"), py::arg("activation"), py::arg("y"),
        py::arg("y_stride"), py::arg("threads") = 0);
  m.def("weight_gradient", &bound_weight_gradient, py::arg("a"), py::arg("b"), py::arg("tokens"),
        py::arg("outputs"), py::arg("inputs"), py::arg("sum"), py::arg("columns"),
        py::arg("threads") = 0);
  py::class_<PackedLinear>(m, "PackedLinear")
      .def(py::init(&make_packed), py::arg("weight").noconvert(), py::arg("bias").noconvert())
      .def("__call__", &call_packed, py::arg("x").noconvert(), py::arg("activation"),
           py::arg("threads"));
}

}  // namespace seqrec
