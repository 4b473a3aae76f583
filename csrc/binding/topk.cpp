// SPDX-License-Identifier: Apache-2.0
#include "ops/topk.h"

#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "base/offsets.h"
#include "base/thread_pool.h"
#include "binding/binding.h"
#include "binding/item_table.h"
#include "ops/topk_int8.h"

namespace seqrec {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

std::string text(std::int64_t n) { return std::to_string(n); }

void check_seen(const JaggedView<std::int32_t>& seen, std::int64_t tokens, std::int64_t items) {
  check_offsets(seen.offsets, seen.rows, tokens, "values", "seen offsets");
  for (std::int64_t i = 0; i < tokens; ++i) {
    if (seen.values[i] < 0 || seen.values[i] >= items) {
      refuse("seen: found item " + text(seen.values[i]) + " at position " + text(i) +
             ", but the items are 0 to " + text(items - 1) + "; encode the ids first");
    }
  }
}

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

using Floats = std::optional<Array<float>>;
using Values = std::optional<Array<std::int32_t>>;
using Offsets = std::optional<Array<std::int64_t>>;
using Mask = std::optional<Array<std::uint8_t>>;

/// The best items of a problem that says where they lie; `bytes`, if not null, is how to scan them.
py::tuple solve(TopkProblem p, const Array<float>& queries, const Values& seen_values,
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
  check_count(p.num_items);
  if (k < 1) refuse("k: expected at least 1, found " + text(k));
  check_threads(threads);
  if (blocked) {
    if (blocked->ndim() != 1 || blocked->shape(0) != p.num_items) {
      refuse("blocked: expected one flag an item (" + text(p.num_items) + ")");
    }
    p.blocked = blocked->data();
  }
  if (seen_values.has_value() != seen_offsets.has_value()) {
    refuse("seen: values and offsets are needed together");
  }
  if (seen_values) {
    if (seen_values->ndim() != 1 || seen_offsets->ndim() != 1 ||
        seen_offsets->shape(0) != p.num_queries + 1) {
      refuse("seen: expected one row a query (" + text(p.num_queries) + ")");
    }
    p.seen = {seen_values->data(), seen_offsets->data(), p.num_queries};
    check_seen(p.seen, seen_values->shape(0), p.num_items);
    if (seen_values->shape(0) == 0) p.seen = {};
  }
  const KernelTable& table = kernels();
  Array<float> scores({p.num_queries, k});
  Array<std::int64_t> ids({p.num_queries, k});
  float* out_scores = scores.mutable_data();
  std::int64_t* out_ids = ids.mutable_data();
  {
    const ReleasedLock release;
    const int limit = thread_count(threads);
    if (bytes != nullptr) {
      score_topk_int8(p, *bytes, limit, table, out_scores, out_ids);
    } else {
      score_topk(p, limit, table, out_scores, out_ids);
    }
  }
  return py::make_tuple(std::move(scores), std::move(ids));
}

py::tuple search_floats(const Array<float>& queries, const Array<float>& items, const Floats& bias,
                        const Values& seen_values, const Offsets& seen_offsets, const Mask& blocked,
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
                       const Values& seen_values, const Offsets& seen_offsets, const Mask& blocked,
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
      .def_property_readonly("nbytes", &Int8Table::bytes);
}

}  // namespace seqrec
