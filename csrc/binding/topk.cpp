// SPDX-License-Identifier: Apache-2.0
#include "ops/topk.h"

#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "base/thread_pool.h"
#include "binding/binding.h"
#include "binding/ranking.h"
#include "ops/topk_int8.h"

namespace seqrec {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

std::string text(std::int64_t n) { return std::to_string(n); }

void check_count(std::int64_t items) {
  // One below the limit stays free for the padding of the candidate lists.
  if (items >= std::numeric_limits<std::int32_t>::max()) {
    refuse("items: expected fewer than 2147483647 rows, found " + text(items));
  }
}

void check_threads(int threads) {
  if (threads < 0 || threads > kMaxThreads) {
    refuse("threads: expected 1 to " + text(kMaxThreads) + " (0 = the set number), found " +
           text(threads));
  }
}

py::tuple bound_score_topk(const Array<float>& queries, const Array<float>& items,
                           const std::optional<Array<float>>& bias, const Items& seen_values,
                           const Offsets& seen_offsets, const Mask& blocked, std::int64_t k,
                           int threads, const Int8Table* table_of_bytes) {
  if (queries.ndim() != 2 || items.ndim() != 2) refuse("queries, items: expected two dimensions");
  TopkProblem p{};
  p.queries = queries.data();
  p.items = items.data();
  p.num_queries = queries.shape(0);
  p.num_items = items.shape(0);
  p.dim = items.shape(1);
  p.k = k;
  if (queries.shape(1) != p.dim) {
    refuse("queries: expected " + text(p.dim) + " columns like items, found " +
           text(queries.shape(1)));
  }
  if (p.dim < 1) refuse("items: expected at least 1 column, found 0");
  check_count(p.num_items);
  check_k(k);
  check_threads(threads);
  if (bias) {
    if (bias->ndim() != 1 || bias->shape(0) != p.num_items) {
      refuse("bias: expected one number an item (" + text(p.num_items) + ")");
    }
    p.bias = bias->data();
  }
  p.blocked = checked_mask(blocked, p.num_items);
  p.seen = checked_seen(seen_values, seen_offsets, p.num_queries, p.num_items);
  if (table_of_bytes != nullptr &&
      (table_of_bytes->num_items() != p.num_items || table_of_bytes->dim() != p.dim ||
       table_of_bytes->has_bias() != (p.bias != nullptr))) {
    refuse("table: made from other items");
  }
  const KernelTable& table = kernels();
  BestItems best(p.num_queries, k);
  {
    const ReleasedLock release;
    const int limit = thread_count(threads);
    if (table_of_bytes != nullptr) {
      score_topk_int8(p, *table_of_bytes, limit, table, best.scores, best.ids);
    } else {
      score_topk(p, limit, table, best.scores, best.ids);
    }
  }
  return py::make_tuple(std::move(best.score_array), std::move(best.id_array));
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
  check_count(items.shape(0));
  if (bias && (bias->ndim() != 1 || bias->shape(0) != items.shape(0))) {
    refuse("bias: expected one number an item (" + text(items.shape(0)) + ")");
  }
  check_threads(threads);
  const float* biases = bias ? bias->data() : nullptr;
  const ReleasedLock release;
  return std::make_unique<Int8Table>(items.data(), biases, items.shape(0), items.shape(1),
                                     thread_count(threads));
}

}  // namespace

void bind_topk(py::module_& m) {
  m.def("score_topk", &bound_score_topk, py::arg("queries").noconvert(),
        py::arg("items").noconvert(), py::arg("bias").noconvert(),
        py::arg("seen_values").noconvert(), py::arg("seen_offsets").noconvert(),
        py::arg("blocked").noconvert(), py::arg("k"), py::arg("threads") = 0,
        py::arg("table") = nullptr);
  py::class_<Int8Table>(m, "Int8Table")
      .def(py::init(&make_table), py::arg("items").noconvert(), py::arg("bias").noconvert(),
           py::arg("threads") = 0)
      .def_property_readonly("nbytes", &Int8Table::bytes);
}

}  // namespace seqrec
