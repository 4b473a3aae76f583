// SPDX-License-Identifier: Apache-2.0
// Sets of items, and the top-k search behind them: what seqrec_fast.retrieval filters with.
#include "ops/topk_filter.h"

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "binding/binding.h"
#include "binding/item_table.h"
#include "binding/ranking.h"
#include "ops/item_set.h"
#include "ops/topk.h"

namespace seqrec {
namespace {

[[noreturn]] void refuse(const std::string& text) { throw std::invalid_argument(text); }

std::string text(std::int64_t n) { return std::to_string(n); }

/// Rows of item ids: values and offsets.
using Rows = std::pair<Array<std::int32_t>, Array<std::int64_t>>;

/// The rows of several batches, one behind the other.
struct JoinedRows {
  std::vector<std::int32_t> values;
  std::vector<std::int64_t> offsets;

  explicit JoinedRows(const std::vector<JaggedView<std::int32_t>>& parts) {
    const std::int64_t rows = parts.front().rows;
    std::int64_t total = 0;
    for (const auto& part : parts) total += part.offsets[rows];
    values.reserve(static_cast<std::size_t>(total));
    offsets.push_back(0);
    for (std::int64_t row = 0; row < rows; ++row) {
      for (const auto& part : parts) {
        values.insert(values.end(), part.values + part.offsets[row],
                      part.values + part.offsets[row + 1]);
      }
      offsets.push_back(static_cast<std::int64_t>(values.size()));
    }
  }
};

py::tuple search(const Array<float>& queries, const py::object& items,
                 const std::optional<Array<float>>& bias, const Int8Table* table_of_bytes,
                 const ItemSet* open, const std::vector<Rows>& hidden,
                 const std::optional<Rows>& allowed, std::int64_t k, int threads) {
  if (queries.ndim() != 2) refuse("queries: expected two dimensions");
  TopkProblem p{};
  p.queries = queries.data();
  p.num_queries = queries.shape(0);
  std::optional<Int8Items> bytes;
  if (py::isinstance<BoundItems>(items)) {
    const auto& compact = items.cast<const BoundItems&>();
    p.items = compact.rows();
    p.bias = compact.bias();
    p.num_items = compact.num_items();
    p.dim = compact.dim();
    if (compact.bounds()) bytes = compact.bounds()->view();
  } else {
    const auto rows = items.cast<Array<float>>();
    if (rows.ndim() != 2) refuse("items: expected two dimensions");
    p.items = rows.data();
    p.num_items = rows.shape(0);
    p.dim = rows.shape(1);
  }
  p.k = k;
  if (queries.shape(1) != p.dim || p.dim < 1) {
    refuse("queries: expected " + text(p.dim) + " columns like items, found " +
           text(queries.shape(1)));
  }
  check_num_items("items", p.num_items);
  check_k(k);
  check_threads(threads);
  if (bias) {
    if (bias->ndim() != 1 || bias->shape(0) != p.num_items) {
      refuse("bias: expected one number an item (" + text(p.num_items) + ")");
    }
    p.bias = bias->data();
  }
  if (table_of_bytes != nullptr) {
    if (table_of_bytes->num_items() != p.num_items || table_of_bytes->dim() != p.dim ||
        table_of_bytes->has_bias() != (p.bias != nullptr)) {
      refuse("table: made from other items");
    }
    bytes = table_of_bytes->view();
  }
  if (open != nullptr) {
    if (open->size() != p.num_items) refuse("open: made for " + text(open->size()) + " items");
    p.open = open->bits();
  }
  std::vector<JaggedView<std::int32_t>> seen;
  for (const Rows& rows : hidden) {
    const auto view =
        checked_items("exclude", rows.first, rows.second, p.num_queries, p.num_items, true);
    if (view.offsets[p.num_queries] > 0) seen.push_back(view);
  }
  JaggedView<std::int32_t> only{};
  if (allowed) {
    only =
        checked_items("allow", allowed->first, allowed->second, p.num_queries, p.num_items, true);
  }
  const KernelTable& table = kernels();
  BestItems best(p.num_queries, k);
  {
    const ReleasedLock release;
    std::optional<JoinedRows> joined;
    if (seen.size() == 1) p.seen = seen.front();
    if (seen.size() > 1) {
      joined.emplace(seen);
      p.seen = {joined->values.data(), joined->offsets.data(), p.num_queries};
    }
    const int limit = thread_count(threads);
    if (allowed) {
      score_topk_allowed(p, bytes ? &*bytes : nullptr, only, limit, table, best.scores, best.ids);
    } else if (bytes) {
      score_topk_int8(p, *bytes, limit, table, best.scores, best.ids);
    } else {
      score_topk(p, limit, table, best.scores, best.ids);
    }
  }
  return py::make_tuple(std::move(best.score_array), std::move(best.id_array));
}

template <typename T>
void apply_ids(ItemSet& set, const std::string& name, const Array<T>& ids, bool keep) {
  if (ids.ndim() != 1) refuse(name + ": expected one list of item ids");
  const std::int64_t bad = set.apply(ids.data(), ids.shape(0), keep);
  if (bad < 0) return;
  refuse(name + ": found item " + text(ids.data()[bad]) + ", but the items are 0 to " +
         text(set.size() - 1));
}

void apply_flags(ItemSet& set, const std::string& name, const Array<bool>& flags, bool keep) {
  if (flags.ndim() != 1 || flags.shape(0) != set.size()) {
    refuse(name + ": a mask needs one truth value for each of the " + text(set.size()) +
           " ids, found " + text(flags.size()));
  }
  set.apply(reinterpret_cast<const std::uint8_t*>(flags.data()), keep);
}

std::unique_ptr<ItemSet> make_set(std::int64_t size) {
  if (size < 0) refuse("size: expected at least 0, found " + text(size));
  return std::make_unique<ItemSet>(size);
}

Array<bool> flags_of(const ItemSet& set) {
  Array<bool> found({set.size()});
  set.flags(reinterpret_cast<std::uint8_t*>(found.mutable_data()));
  return found;
}

Array<std::int32_t> list_of(const ItemSet& set) {
  Array<std::int32_t> found({set.count()});
  set.list(found.mutable_data());
  return found;
}

}  // namespace

void bind_topk_filter(py::module_& m) {
  py::class_<ItemSet>(m, "ItemSet")
      .def(py::init(&make_set), py::arg("size"))
      .def("copy", [](const ItemSet& set) { return std::make_unique<ItemSet>(set); })
      .def("apply_ids", &apply_ids<std::int32_t>, py::arg("name"), py::arg("ids").noconvert(),
           py::arg("keep"))
      .def("apply_ids", &apply_ids<std::int64_t>, py::arg("name"), py::arg("ids").noconvert(),
           py::arg("keep"))
      .def("apply_flags", &apply_flags, py::arg("name"), py::arg("flags").noconvert(),
           py::arg("keep"))
      .def(
          "intersect",
          [](ItemSet& set, const ItemSet& other) {
            if (set.size() != other.size()) refuse("other: made for another number of items");
            set.intersect(other);
          },
          py::arg("other"))
      .def("flags", &flags_of)
      .def("ids", &list_of)
      .def_property_readonly("size", &ItemSet::size)
      .def_property_readonly("count", &ItemSet::count);
  m.def("score_topk_filtered", &search, py::arg("queries").noconvert(), py::arg("items"),
        py::arg("bias").noconvert(), py::arg("table"), py::arg("open"), py::arg("hidden"),
        py::arg("allowed"), py::arg("k"), py::arg("threads") = 0);
}

}  // namespace seqrec
