// SPDX-License-Identifier: Apache-2.0
#include "ops/topk.h"

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "base/thread_pool.h"
#include "binding/binding.h"
#include "binding/item_table.h"
#include "binding/ranking.h"
#include "ops/topk_int8.h"

namespace seqrec {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

std::string text(std::int64_t n) { return std::to_string(n); }

constexpr std::int64_t kBoundsWidth = sizeof(Int8Bounds) / sizeof(float);

using Floats = std::optional<Array<float>>;

/// The best items of a problem that says where they lie; `bytes`, if not null, is how to scan them.
py::tuple solve(TopkProblem p, const Array<float>& queries, const Items& seen_values,
                const Offsets& seen_offsets, const Mask& blocked, std::int64_t k, int threads,
                const Int8Items* bytes) {
  if (queries.ndim() != 2) refuse("queries: expected two dimensions");
  p.queries = queries.data();
  p.num_queries = queries.shape(0);
  p.k = k;
  if (queries.shape(1) != p.dim) {
    refuse("queries: expected " + text(p.dim) + " columns like items, found " +
           text(queries.shape(1)));
  }
  if (p.dim < 1) refuse("items: expected at least 1 column, found 0");
  check_num_items("items", p.num_items);
  check_k(k);
  check_threads(threads);
  p.blocked = checked_mask(blocked, p.num_items);
  p.seen = checked_seen(seen_values, seen_offsets, p.num_queries, p.num_items);
  const KernelTable& table = kernels();
  BestItems best(p.num_queries, k);
  {
    const ReleasedLock release;
    const int limit = thread_count(threads);
    if (bytes != nullptr) {
      score_topk_int8(p, *bytes, limit, table, best.scores, best.ids);
    } else {
      score_topk(p, limit, table, best.scores, best.ids);
    }
  }
  return py::make_tuple(std::move(best.score_array), std::move(best.id_array));
}

py::tuple search_floats(const Array<float>& queries, const Array<float>& items, const Floats& bias,
                        const Items& seen_values, const Offsets& seen_offsets, const Mask& blocked,
                        std::int64_t k, int threads, const Int8Table* table) {
  if (queries.ndim() != 2 || items.ndim() != 2) refuse("queries, items: expected two dimensions");
  TopkProblem p{};
  p.items = items.data();
  p.num_items = items.shape(0);
  p.dim = items.shape(1);
  if (bias) {
    if (bias->ndim() != 1 || bias->shape(0) != p.num_items) {
      refuse("bias: expected one number an item (" + text(p.num_items) + ")");
    }
    p.bias = bias->data();
  }
  if (table == nullptr) {
    return solve(p, queries, seen_values, seen_offsets, blocked, k, threads, nullptr);
  }
  if (table->num_items() != p.num_items || table->dim() != p.dim ||
      table->has_bias() != (p.bias != nullptr)) {
    refuse("table: made from other items");
  }
  const Int8Items bytes = table->view();
  return solve(p, queries, seen_values, seen_offsets, blocked, k, threads, &bytes);
}

py::tuple search_table(const Array<float>& queries, const BoundItems& items,
                       const Items& seen_values, const Offsets& seen_offsets, const Mask& blocked,
                       std::int64_t k, int threads) {
  TopkProblem p{};
  p.items = items.rows();
  p.bias = items.bias();
  p.num_items = items.num_items();
  p.dim = items.dim();
  if (!items.bounds()) {
    return solve(p, queries, seen_values, seen_offsets, blocked, k, threads, nullptr);
  }
  const Int8Items bytes = items.bounds()->view();
  return solve(p, queries, seen_values, seen_offsets, blocked, k, threads, &bytes);
}

std::unique_ptr<Int8Table> make_table(const Array<float>& items,
                                      const std::optional<Array<float>>& bias, int threads) {
  if (items.ndim() != 2 || items.shape(1) < 1) {
    refuse("items: expected two dimensions and at least 1 column");
  }
  if (items.shape(1) > kInt8MaxDim) {
    refuse("items: expected at most " + text(kInt8MaxDim) + " columns for a scan of bytes, found " +
           text(items.shape(1)));
  }
  check_num_items("items", items.shape(0));
  if (bias && (bias->ndim() != 1 || bias->shape(0) != items.shape(0))) {
    refuse("bias: expected one number an item (" + text(items.shape(0)) + ")");
  }
  check_threads(threads);
  const float* biases = bias ? bias->data() : nullptr;
  const ReleasedLock release;
  return std::make_unique<Int8Table>(items.data(), biases, items.shape(0), items.shape(1),
                                     thread_count(threads));
}

/// A table that was stored, in the arrays that blocks_of and bounds_of gave.
py::object stored_table(const Array<std::uint8_t>& blocks, const Array<float>& bounds,
                        std::int64_t items, std::int64_t dim, bool has_bias) {
  if (items < 0) refuse("items: expected at least 0, found " + text(items));
  check_num_items("items", items);
  if (dim < 1 || dim > kInt8MaxDim) {
    refuse("dim: expected 1 to " + text(kInt8MaxDim) + ", found " + text(dim));
  }
  const std::int64_t rows = (items + kInt8Rows - 1) / kInt8Rows;
  const std::int64_t width = Int8Table(nullptr, nullptr, 0, dim, has_bias).block_bytes();
  if (blocks.ndim() != 2 || blocks.shape(0) != rows || blocks.shape(1) != width) {
    refuse("blocks: expected [" + text(rows) + ", " + text(width) + "] for these items");
  }
  if (bounds.ndim() != 2 || bounds.shape(0) != rows || bounds.shape(1) != kBoundsWidth) {
    refuse("bounds: expected [" + text(rows) + ", " + text(kBoundsWidth) + "] for these items");
  }
  if (reinterpret_cast<std::uintptr_t>(bounds.data()) % alignof(Int8Bounds) != 0) {
    refuse("bounds: expected aligned numbers");
  }
  const std::uint8_t* at = blocks.data();
  const auto* bounds_at = reinterpret_cast<const Int8Bounds*>(bounds.data());
  std::unique_ptr<Int8Table> table;
  {
    const ReleasedLock release;
    table = std::make_unique<Int8Table>(at, bounds_at, items, dim, has_bias);
  }
  const bool copied = table->view().blocks != at;
  py::object made = py::cast(std::move(table));
  py::detail::keep_alive_impl(made, bounds);
  if (!copied) py::detail::keep_alive_impl(made, blocks);
  return made;
}

Array<std::uint8_t> blocks_of(const py::object& self) {
  const auto& table = self.cast<const Int8Table&>();
  return Array<std::uint8_t>({table.num_blocks(), table.block_bytes()}, table.view().blocks, self);
}

Array<float> bounds_of(const py::object& self) {
  const auto& table = self.cast<const Int8Table&>();
  return Array<float>({table.num_blocks(), kBoundsWidth},
                      reinterpret_cast<const float*>(table.view().bounds), self);
}

}  // namespace

void bind_topk(py::module_& m) {
  m.def("score_topk", &search_floats, py::arg("queries").noconvert(), py::arg("items").noconvert(),
        py::arg("bias").noconvert(), py::arg("seen_values").noconvert(),
        py::arg("seen_offsets").noconvert(), py::arg("blocked").noconvert(), py::arg("k"),
        py::arg("threads") = 0, py::arg("table") = nullptr);
  m.def("score_topk_table", &search_table, py::arg("queries").noconvert(), py::arg("items"),
        py::arg("seen_values").noconvert(), py::arg("seen_offsets").noconvert(),
        py::arg("blocked").noconvert(), py::arg("k"), py::arg("threads") = 0);
  py::class_<Int8Table>(m, "Int8Table")
      .def(py::init(&make_table), py::arg("items").noconvert(), py::arg("bias").noconvert(),
           py::arg("threads") = 0)
      .def_static("stored", &stored_table, py::arg("blocks").noconvert(),
                  py::arg("bounds").noconvert(), py::arg("items"), py::arg("dim"),
                  py::arg("has_bias"))
      .def_property_readonly("blocks", &blocks_of)
      .def_property_readonly("bounds", &bounds_of)
      .def_property_readonly("nbytes", &Int8Table::bytes);
}

}  // namespace seqrec
