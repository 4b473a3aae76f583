// SPDX-License-Identifier: Apache-2.0
#include "binding/item_table.h"

#include <cmath>
#include <stdexcept>
#include <string>

#include "base/thread_pool.h"
#include "binding/ranking.h"
#include "isa/kernel_table.h"

namespace seqrec {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

std::string text(std::int64_t n) { return std::to_string(n); }

Array<float> widened(const BoundItems& items, const Array<std::int32_t>& ids) {
  if (ids.ndim() != 1) refuse("indices: expected one dimension");
  const std::int64_t count = ids.shape(0);
  const std::int32_t* from = ids.data();
  for (std::int64_t i = 0; i < count; ++i) {
    if (from[i] < 0 || from[i] >= items.num_items()) {
      refuse("indices: found item " + text(from[i]) + " at position " + text(i) +
             ", but the items are 0 to " + text(items.num_items() - 1));
    }
  }
  Array<float> out({count, items.dim()});
  float* to = out.mutable_data();
  {
    const ReleasedLock released;
    kernels().topk->widen(items.rows(), items.dim(), from, 0, count, to);
  }
  return out;
}

}  // namespace

BoundItems::BoundItems(const py::array& values, const std::optional<Array<float>>& scales,
                       const std::optional<Array<float>>& bias, int threads) {
  if (values.ndim() != 2 || values.shape(1) < 1) {
    refuse("values: expected two dimensions and at least 1 column");
  }
  if ((values.flags() & py::array::c_style) == 0) refuse("values: expected rows side by side");
  num_items_ = values.shape(0);
  dim_ = values.shape(1);
  check_num_items("values", num_items_);
  check_threads(threads);
  if (bias && (bias->ndim() != 1 || bias->shape(0) != num_items_)) {
    refuse("bias: expected one number an item (" + text(num_items_) + ")");
  }
  if (bias) bias_ = bias->data();
  kept_ = py::make_tuple(values, scales, bias);
  if (py::isinstance<Array<std::uint16_t>>(values)) {
    if (scales) refuse("scales: only values of int8 have them");
    rows_ = ItemRows(static_cast<const std::uint16_t*>(values.data()));
    return;
  }
  if (!py::isinstance<Array<std::int8_t>>(values)) {
    refuse("values: expected uint16 (the bits of bfloat16) or int8");
  }
  if (dim_ > kInt8MaxDim) {
    refuse("values: expected at most " + text(kInt8MaxDim) + " columns of int8, found " +
           text(dim_));
  }
  if (!scales || scales->ndim() != 1 || scales->shape(0) != num_items_) {
    refuse("scales: expected one number an item (" + text(num_items_) + ")");
  }
  const float* steps = scales->data();
  for (std::int64_t i = 0; i < num_items_; ++i) {
    if (!(steps[i] >= 0.0f && std::isfinite(steps[i]))) {
      refuse("scales: expected finite numbers of at least 0, found another at item " + text(i));
    }
  }
  rows_ = ItemRows(static_cast<const std::int8_t*>(values.data()), steps);
  const ReleasedLock released;
  bounds_ =
      std::make_shared<const ByteItemBounds>(rows_, bias_, num_items_, dim_, thread_count(threads));
}

void bind_item_table(py::module_& m) {
  py::class_<BoundItems, std::shared_ptr<BoundItems>>(m, "ItemTable")
      .def(py::init<const py::array&, const std::optional<Array<float>>&,
                    const std::optional<Array<float>>&, int>(),
           py::arg("values").noconvert(), py::arg("scales").noconvert(),
           py::arg("bias").noconvert(), py::arg("threads") = 0)
      .def_property_readonly("bounds_bytes",
                             [](const BoundItems& items) {
                               return items.bounds() ? items.bounds()->bytes() : std::size_t{0};
                             })
      .def("rows", &widened, py::arg("indices").noconvert());
}

}  // namespace seqrec
