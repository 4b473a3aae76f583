// SPDX-License-Identifier: Apache-2.0
#include "engine/engine.h"

#include <optional>
#include <stdexcept>
#include <string>

#include "binding/binding.h"
#include "binding/engine.h"
#include "binding/item_table.h"
#include "binding/ranking.h"
#include "binding/raw_ids.h"
#include "engine/recurrent_encoder.h"
#include "engine/sasrec_encoder.h"

namespace seqrec {
namespace {

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument(why); }

std::int64_t whole(const py::dict& config, const char* name) {
  const auto value = config[name].cast<std::int64_t>();
  if (value < 1) refuse(std::string(name) + ": expected at least 1");
  return value;
}

std::unique_ptr<Encoder> make_encoder(const py::dict& config, const Tensors& tensors) {
  const auto kind = config["model"].cast<std::string>();
  const std::int64_t items = whole(config, "num_items"), dim = whole(config, "dim");
  const std::int64_t layers = whole(config, "layers");
  // several interests are scaled once they are made of the embedding
  const bool unit = config["unit"].cast<bool>() && whole(config, "interests") == 1;
  if (kind == "sasrec") {
    const std::int64_t heads = whole(config, "heads");
    if (dim % heads != 0) refuse("heads: expected a divisor of dim");
    return std::make_unique<SasrecEncoder>(SasrecConfig{items, dim, heads, whole(config, "inner"),
                                                        layers, whole(config, "max_length"), unit},
                                           tensors, kernels());
  }
  const RecurrentCell cell = kind == "rnn"    ? RecurrentCell::kRnn
                             : kind == "lstm" ? RecurrentCell::kLstm
                             : kind == "gru"  ? RecurrentCell::kGru
                                              : (refuse("model: unknown " + kind), RecurrentCell{});
  const CellActivation activation =
      config["sigmoid"].cast<bool>() ? CellActivation::kSigmoid : CellActivation::kTanh;
  return std::make_unique<RecurrentEncoder>(
      RecurrentConfig{cell, activation, items, dim, whole(config, "hidden"), layers, unit}, tensors,
      kernels());
}

std::unique_ptr<InterestHead> make_head(const py::dict& config, const Encoder& encoder,
                                        const Tensors& tensors) {
  const std::int64_t interests = whole(config, "interests");
  if (interests == 1) return nullptr;
  return std::make_unique<InterestHead>(
      InterestConfig{encoder.num_items(), encoder.dim(), interests, encoder.window(),
                     config["unit"].cast<bool>()},
      tensors, kernels());
}

}  // namespace

BoundEngine::BoundEngine(const py::dict& config, const py::dict& weights, const py::object& items,
                         const std::optional<Array<float>>& bias, int threads) {
  // Arrays of our own: nobody can change the dictionary while it is read, nor drop them later.
  std::vector<py::object> arrays;
  Tensors tensors;
  const auto copy = py::reinterpret_steal<py::dict>(PyDict_Copy(weights.ptr()));
  if (!copy) throw py::error_already_set();
  for (const auto& [name, tensor] : copy) {
    const auto key = name.cast<std::string>();
    if (py::isinstance<BoundItems>(tensor)) {
      const auto& table = tensor.cast<const BoundItems&>();
      tensors.set(key, table.rows(), table.num_items() * table.dim());
      arrays.push_back(py::reinterpret_borrow<py::object>(tensor));
    } else {
      const auto array = tensor.cast<Array<float>>();
      tensors.set(key, ItemRows(array.data()), array.size());
      arrays.push_back(array);
    }
  }
  kept_ = py::make_tuple(arrays, items, bias);
  std::unique_ptr<Encoder> encoder = make_encoder(config, tensors);
  std::unique_ptr<InterestHead> head = make_head(config, *encoder, tensors);
  ItemRows rows;
  std::int64_t size = 0;
  std::shared_ptr<const ByteItemBounds> bounds;
  if (py::isinstance<BoundItems>(items)) {
    const auto& compact = items.cast<const BoundItems&>();
    // Bounds that were made with another bias are none of this one's.
    if (compact.bias() != (bias ? bias->data() : nullptr)) refuse("bias: expected that of items");
    rows = compact.rows();
    size = compact.num_items() * compact.dim();
    bounds = compact.bounds();
  } else {
    if (!py::isinstance<Array<float>>(items)) refuse("items: expected float32 or an item table");
    const auto array = items.cast<Array<float>>();
    rows = ItemRows(array.data());
    size = array.size();
  }
  if (size != encoder->num_items() * encoder->dim()) refuse("items: expected [num_items, dim]");
  if (bias && bias->size() != encoder->num_items()) refuse("bias: expected one number an item");
  const float* biases = bias ? bias->data() : nullptr;
  const ReleasedLock released;
  engine_ = std::make_unique<Engine>(std::move(encoder), std::move(head), rows, biases,
                                     std::move(bounds), thread_count(threads), kernels());
}

namespace {

Exclusions exclusions(const BoundEngine& engine, const Items& values, const Offsets& offsets,
                      const Mask& blocked, std::int64_t rows) {
  const std::int64_t items = engine.get().encoder().num_items();
  return {checked_seen(values, offsets, rows, items), checked_mask(blocked, items)};
}

Array<float> encode(const BoundEngine& engine, const Array<std::int32_t>& values,
                    const Array<std::int64_t>& offsets, int threads) {
  const Encoder& encoder = engine.get().encoder();
  const auto rows = checked_items("histories", values, offsets, -1, encoder.num_items(), false);
  const std::int64_t interests = engine.get().interests();
  std::vector<py::ssize_t> shape{rows.rows, encoder.dim()};
  if (interests > 1) shape.insert(shape.begin() + 1, interests);
  Array<float> out(shape);
  float* to = out.mutable_data();
  {
    const ReleasedLock released;
    engine.get().encode(rows, to, thread_count(threads));
  }
  return out;
}

py::tuple recommend(const BoundEngine& engine, const Array<std::int32_t>& values,
                    const Array<std::int64_t>& offsets, const Items& seen_values,
                    const Offsets& seen_offsets, const Mask& blocked, std::int64_t k, int threads) {
  const auto rows =
      checked_items("histories", values, offsets, -1, engine.get().encoder().num_items(), false);
  const Exclusions excluded = exclusions(engine, seen_values, seen_offsets, blocked, rows.rows);
  check_k(k);
  BestItems best(rows.rows, k);
  {
    const ReleasedLock released;
    engine.get().recommend(rows, excluded, k, thread_count(threads), best.scores, best.ids);
  }
  return py::make_tuple(std::move(best.score_array), std::move(best.id_array));
}

/// Scores, items, and whether every user got `k` of them; None where the request is not plain.
py::object recommend_lists(const BoundEngine& engine, const py::object& histories,
                           const py::dict& lookup, std::int64_t k, bool exclude_seen, int threads) {
  check_k(k);
  IdRows rows;
  if (!plain_histories(histories, lookup, rows)) return py::none();
  const std::int64_t items = engine.get().encoder().num_items();
  for (const std::int32_t item : rows.values) {
    if (item >= items) refuse("lookup: made for other items");
  }
  const auto count = static_cast<std::int64_t>(rows.offsets.size()) - 1;
  const JaggedView<std::int32_t> view{rows.values.data(), rows.offsets.data(), count};
  const Exclusions excluded{exclude_seen ? view : JaggedView<std::int32_t>{}, nullptr};
  BestItems best(count, k);
  {
    const ReleasedLock released;
    engine.get().recommend(view, excluded, k, thread_count(threads), best.scores, best.ids);
  }
  bool complete = true;
  for (std::int64_t row = 1; row <= count; ++row) complete = complete && best.ids[row * k - 1] >= 0;
  return py::make_tuple(std::move(best.score_array), std::move(best.id_array), complete);
}

py::tuple rank(const BoundEngine& engine, const Array<float>& queries, const Items& seen_values,
               const Offsets& seen_offsets, const Mask& blocked, std::int64_t k, int threads) {
  const Encoder& encoder = engine.get().encoder();
  const bool several = queries.ndim() == 3;
  if ((!several && queries.ndim() != 2) || queries.shape(queries.ndim() - 1) != encoder.dim() ||
      (several && queries.shape(1) < 1)) {
    const std::string dim = std::to_string(encoder.dim());
    refuse("queries: expected [users, " + dim + "] or [users, interests, " + dim + "]");
  }
  const std::int64_t interests = several ? queries.shape(1) : 1;
  const std::int64_t count = queries.shape(0);
  const Exclusions excluded = exclusions(engine, seen_values, seen_offsets, blocked, count);
  check_k(k);
  BestItems best(count, k);
  const float* from = queries.data();
  {
    const ReleasedLock released;
    engine.get().rank_interests(from, count, interests, excluded, k, thread_count(threads),
                                best.scores, best.ids);
  }
  return py::make_tuple(std::move(best.score_array), std::move(best.id_array));
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<BoundEngine, std::shared_ptr<BoundEngine>>(m, "Engine")
      .def(py::init<const py::dict&, const py::dict&, const py::object&,
                    const std::optional<Array<float>>&, int>(),
           py::arg("config"), py::arg("tensors"), py::arg("items"), py::arg("bias").noconvert(),
           py::arg("threads") = 0)
      .def_property_readonly("window",
                             [](const BoundEngine& e) { return e.get().encoder().window(); })
      .def_property_readonly("interests", [](const BoundEngine& e) { return e.get().interests(); })
      .def_property_readonly("state_size",
                             [](const BoundEngine& e) { return e.get().encoder().state_size(); })
      .def_property_readonly("token_size",
                             [](const BoundEngine& e) { return e.get().encoder().token_size(); })
      .def_property_readonly("table_bytes",
                             [](const BoundEngine& e) { return e.get().table_bytes(); })
      .def("encode", &encode, py::arg("values").noconvert(), py::arg("offsets").noconvert(),
           py::arg("threads") = 0)
      .def("recommend", &recommend, py::arg("values").noconvert(), py::arg("offsets").noconvert(),
           py::arg("seen_values").noconvert(), py::arg("seen_offsets").noconvert(),
           py::arg("blocked").noconvert(), py::arg("k"), py::arg("threads") = 0)
      .def("recommend_lists", &recommend_lists, py::arg("histories"), py::arg("lookup"),
           py::arg("k"), py::arg("exclude_seen"), py::arg("threads") = 0)
      .def("rank", &rank, py::arg("queries").noconvert(), py::arg("seen_values").noconvert(),
           py::arg("seen_offsets").noconvert(), py::arg("blocked").noconvert(), py::arg("k"),
           py::arg("threads") = 0);
}

}  // namespace seqrec
