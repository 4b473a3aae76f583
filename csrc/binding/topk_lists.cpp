// SPDX-License-Identifier: Apache-2.0
#include "ops/topk_lists.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "base/thread_pool.h"
#include "binding/binding.h"
#include "binding/ranking.h"

namespace seqrec {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

/// A table of bytes and the item at each of its places; copies share the table.
class NamedItems {
 public:
  NamedItems(const Array<float>& items, Array<std::int32_t> names, int threads)
      : NamedItems(std::move(names)) {
    if (items.ndim() != 2 || items.shape(1) < 1 || items.shape(1) > kInt8MaxDim) {
      refuse("items: expected two dimensions and 1 to " + std::to_string(kInt8MaxDim) + " columns");
    }
    check_below(items.shape(0));
    const ReleasedLock release;
    table_ = std::make_shared<const Int8Table>(items.data(), names_.data(), names_.shape(0),
                                               items.shape(1), thread_count(threads));
  }

  /// The same bytes with other names; only those of items that are gone may differ.
  NamedItems renamed(Array<std::int32_t> names) const {
    NamedItems found(std::move(names));
    if (found.names_.shape(0) != names_.shape(0)) refuse("names: expected one for each place");
    found.table_ = table_;
    return found;
  }

  void check_below(std::int64_t items) const {
    if (most_ >= items) refuse("names: found an item beyond the last");
  }

  const Int8Table& table() const { return *table_; }
  const std::int32_t* names() const { return names_.data(); }
  std::size_t bytes() const {
    return table_->bytes() + static_cast<std::size_t>(names_.shape(0)) * 4;
  }

 private:
  explicit NamedItems(Array<std::int32_t> names) : names_(std::move(names)) {
    if (names_.ndim() != 1 || names_.shape(0) % kInt8Rows != 0) {
      refuse("names: expected a multiple of 16 places");
    }
    const std::int32_t* first = names_.data();
    for (std::int64_t i = 0; i < names_.shape(0); ++i) {
      if (first[i] < -1) refuse("names: expected -1 for none");
      most_ = std::max(most_, first[i]);
    }
  }

  Array<std::int32_t> names_;  // the table looks into them while it is made only
  std::int32_t most_ = -1;
  std::shared_ptr<const Int8Table> table_;
};

/// Where lists lie, and their centres.
class Lists {
 public:
  Lists(Array<std::int64_t> starts, const Array<float>& centres, Array<float> spread,
        std::optional<Array<float>> covariance)
      : starts_(std::move(starts)), spread_(std::move(spread)), covariance_(std::move(covariance)) {
    if (centres.ndim() != 2 || centres.shape(1) < 1 || centres.shape(1) > kInt8MaxDim) {
      refuse("centres: expected two dimensions");
    }
    const std::int64_t lists = centres.shape(0), dim = centres.shape(1);
    if (starts_.ndim() != 1 || starts_.shape(0) != lists + 1 || starts_.at(0) != 0) {
      refuse("starts: expected the first block of each list and the end");
    }
    for (std::int64_t i = 0; i < lists; ++i) {
      if (starts_.data()[i] > starts_.data()[i + 1]) refuse("starts: expected ascending numbers");
    }
    if (spread_.ndim() != 1 || spread_.shape(0) != lists) refuse("spread: expected one a list");
    if (covariance_ && (covariance_->ndim() != 2 || covariance_->shape(0) != dim ||
                        covariance_->shape(1) != dim)) {
      refuse("covariance: expected [dim, dim]");
    }
    centres_ = std::make_unique<const Int8Table>(centres.data(), static_cast<const float*>(nullptr),
                                                 lists, dim, 1);
  }

  ListedItems listed(const NamedItems& items, const NamedItems* tail) const {
    const std::int64_t lists = centres_->num_items();
    if (starts_.data()[lists] != items.table().num_items() / kInt8Rows) {
      refuse("starts: expected to end with the table");
    }
    return {&items.table(),
            items.names(),
            starts_.data(),
            centres_.get(),
            spread_.data(),
            covariance_ ? covariance_->data() : nullptr,
            tail != nullptr ? &tail->table() : nullptr,
            tail != nullptr ? tail->names() : nullptr,
            lists};
  }

  std::int64_t dim() const { return centres_->dim(); }
  std::size_t bytes() const { return centres_->bytes(); }

 private:
  Array<std::int64_t> starts_;
  Array<float> spread_;
  std::optional<Array<float>> covariance_;
  std::unique_ptr<const Int8Table> centres_;
};

py::tuple bound_score_topk_lists(const Array<float>& queries, const Array<float>& items,
                                 const Lists& lists, const NamedItems& table,
                                 const NamedItems* tail, const Items& seen_values,
                                 const Offsets& seen_offsets, const Mask& blocked, std::int64_t k,
                                 std::int64_t most, float reach, int threads) {
  const std::int64_t dim = lists.dim();
  if (queries.ndim() != 2 || items.ndim() != 2 || queries.shape(1) != dim ||
      items.shape(1) != dim || table.table().dim() != dim ||
      (tail != nullptr && tail->table().dim() != dim)) {
    refuse("queries, items, table, tail: expected the columns of the centres");
  }
  table.check_below(items.shape(0));
  if (tail != nullptr) tail->check_below(items.shape(0));
  check_k(k);
  if (most < 1 || !(reach >= 0.0f)) refuse("most, reach: out of range");
  check_threads(threads);
  TopkProblem p{};
  p.queries = queries.data();
  p.items = items.data();
  p.num_queries = queries.shape(0);
  p.num_items = items.shape(0);
  p.dim = dim;
  p.k = k;
  p.blocked = checked_mask(blocked, p.num_items);
  p.seen = checked_seen(seen_values, seen_offsets, p.num_queries, p.num_items);
  const ListedItems listed = lists.listed(table, tail);
  const ListProbe probe{most, reach};
  BestItems best(p.num_queries, k);
  {
    const ReleasedLock release;
    score_topk_lists(p, listed, probe, thread_count(threads), kernels(), best.scores, best.ids);
  }
  return py::make_tuple(std::move(best.score_array), std::move(best.id_array));
}

}  // namespace

void bind_topk_lists(py::module_& m) {
  py::class_<NamedItems>(m, "NamedItems")
      .def(py::init<const Array<float>&, Array<std::int32_t>, int>(), py::arg("items").noconvert(),
           py::arg("names").noconvert(), py::arg("threads") = 0)
      .def("renamed", &NamedItems::renamed, py::arg("names").noconvert())
      .def_property_readonly("nbytes", &NamedItems::bytes);
  py::class_<Lists>(m, "Lists")
      .def(py::init<Array<std::int64_t>, const Array<float>&, Array<float>,
                    std::optional<Array<float>>>(),
           py::arg("starts").noconvert(), py::arg("centres").noconvert(),
           py::arg("spread").noconvert(), py::arg("covariance").noconvert())
      .def_property_readonly("nbytes", &Lists::bytes);
  m.def("score_topk_lists", &bound_score_topk_lists, py::arg("queries").noconvert(),
        py::arg("items").noconvert(), py::arg("lists"), py::arg("table"),
        py::arg("tail").none(true), py::arg("seen_values").noconvert(),
        py::arg("seen_offsets").noconvert(), py::arg("blocked").noconvert(), py::arg("k"),
        py::arg("most"), py::arg("reach"), py::arg("threads") = 0);
}

}  // namespace seqrec
