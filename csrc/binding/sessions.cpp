// SPDX-License-Identifier: Apache-2.0
#include "engine/sessions.h"

#include <algorithm>
#include <cerrno>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>

#include "base/scratch.h"
#include "binding/binding.h"
#include "binding/engine.h"
#include "binding/ranking.h"

namespace seqrec {
namespace {

constexpr Py_ssize_t kMostText = 1024;       // bytes of a key
constexpr std::int64_t kKeysAtOnce = 65536;  // of an array of integers

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

std::string shown(PyObject* object) {
  const char* type = Py_TYPE(object)->tp_name;
  // ASCII, so that it may be cut anywhere; some have none, such as integers of thousands of digits
  const auto repr = py::reinterpret_steal<py::object>(PyObject_ASCII(object));
  if (!repr) {
    PyErr_Clear();
    return std::string("a value of type ") + type;
  }
  const auto text = repr.cast<std::string>();
  return (text.size() <= 60 ? text : text.substr(0, 57) + "...") + " (" + type + ")";
}

/// The key that a Python object stands for; seen, not owned.
UserKey key_of(PyObject* user) {
  if (PyUnicode_Check(user)) {
    Py_ssize_t size;
    const char* text = PyUnicode_AsUTF8AndSize(user, &size);
    if (text == nullptr) {
      PyErr_Clear();
      refuse("user: the text has no UTF-8 form (a lone surrogate)");
    }
    if (size > kMostText) {
      refuse("user: a text of " + std::to_string(size) + " bytes; at most " +
             std::to_string(kMostText) + " are allowed");
    }
    return UserKey::of(text, static_cast<std::uint32_t>(size));
  }
  if (!PyBool_Check(user) && PyIndex_Check(user)) {
    py::object number = py::reinterpret_borrow<py::object>(user);
    if (!PyLong_Check(user)) number = py::reinterpret_steal<py::object>(PyNumber_Index(user));
    int overflow = 0;
    const long long value = number ? PyLong_AsLongLongAndOverflow(number.ptr(), &overflow) : -1;
    if (PyErr_Occurred() != nullptr) {
      PyErr_Clear();  // an array of one entry and the like: refused below
    } else if (overflow != 0) {
      refuse("user: " + shown(user) + " does not fit 64 bits; give it as text");
    } else {
      return UserKey::of(std::int64_t{value});
    }
  }
  refuse("user: found " + shown(user) + "; a user is an integer or a text");
}

/// Users of a request: an array of int64, or any sequence of integers and texts.
class Keys {
 public:
  explicit Keys(const py::object& users) {
    if (py::isinstance<Array<std::int64_t>>(users)) {
      numbers_ = users.cast<Array<std::int64_t>>();
      if (numbers_->ndim() != 1) refuse("users: expected one dimension");
      size_ = numbers_->shape(0);
      return;
    }
    // A tuple of our own: nobody can change it while the interpreter is left to others.
    held_ = py::reinterpret_steal<py::object>(PySequence_Tuple(users.ptr()));
    if (!held_) throw py::error_already_set();
    size_ = PyTuple_GET_SIZE(held_.ptr());
    keys_.reserve(static_cast<std::size_t>(size_));
    for (std::int64_t i = 0; i < size_; ++i) {
      try {
        keys_.push_back(key_of(PyTuple_GET_ITEM(held_.ptr(), i)));
      } catch (const std::invalid_argument& error) {
        refuse("users, entry " + std::to_string(i) + ": " + error.what());
      }
    }
  }

  std::int64_t size() const { return size_; }

  /// Calls body(keys, first, count) for parts until it returns less than `count`; how many it did.
  template <typename Body>
  std::int64_t each(std::int64_t begin, Body&& body) {
    if (!numbers_) return begin + body(keys_.data() + begin, begin, size_ - begin);
    const std::int64_t* number = numbers_->data();
    std::int64_t at = begin;
    while (at < size_) {
      const std::int64_t count = std::min(kKeysAtOnce, size_ - at);
      keys_.clear();
      for (std::int64_t i = 0; i < count; ++i) keys_.push_back(UserKey::of(number[at + i]));
      const std::int64_t done = body(keys_.data(), at, count);
      at += done;
      if (done < count) break;
    }
    return at;
  }

 private:
  py::object held_;
  std::optional<Array<std::int64_t>> numbers_;
  std::vector<UserKey> keys_;
  std::int64_t size_ = 0;
};

/// A store together with the engine that ranks for it.
class BoundSessions {
 public:
  BoundSessions(std::shared_ptr<BoundEngine> engine, std::int64_t capacity, std::int64_t memory,
                std::int64_t ttl, std::int64_t hop, std::int64_t remember)
      : engine_(std::move(engine)),
        store_({engine_, &engine_->get().encoder()}, {capacity, memory, ttl, hop, remember}) {}

  SessionStore& store() { return store_; }
  const Engine& engine() const { return engine_->get(); }

 private:
  std::shared_ptr<BoundEngine> engine_;
  SessionStore store_;
};

void check_item(const BoundSessions& s, std::int32_t item) {
  const std::int64_t items = s.engine().encoder().num_items();
  if (item < 0 || item >= items) {
    refuse("items: found " + std::to_string(item) + ", but the items are 0 to " +
           std::to_string(items - 1));
  }
}

void observe(BoundSessions& s, const py::handle& user, std::int32_t item) {
  check_item(s, item);
  const UserKey key = key_of(user.ptr());
  const ReleasedLock released;
  if (s.store().observe(&key, &item, 1, 1) == 0) throw SessionsReplaced();
}

std::int64_t observe_many(BoundSessions& s, const py::object& users,
                          const Array<std::int32_t>& items, std::int64_t begin, int threads) {
  Keys keys(users);
  if (items.ndim() != 1 || items.shape(0) != keys.size()) {
    refuse("items: expected one a user (" + std::to_string(keys.size()) + ")");
  }
  if (begin < 0 || begin > keys.size()) refuse("begin: expected 0 to the number of users");
  const std::int32_t* item = items.data();
  for (std::int64_t i = begin; i < keys.size(); ++i) check_item(s, item[i]);
  const int limit = thread_count(threads);
  const ReleasedLock released;
  return keys.each(begin, [&](const UserKey* some, std::int64_t first, std::int64_t count) {
    return s.store().observe(some, item + first, count, limit);
  });
}

py::tuple embed(BoundSessions& s, const py::object& users, bool seen, int threads) {
  Keys keys(users);
  const std::int64_t dim = s.engine().encoder().dim();
  Array<float> out({keys.size(), dim});
  Array<std::uint8_t> known(keys.size());
  Array<std::int64_t> offsets(keys.size() + 1);
  std::vector<std::int32_t> values;
  float* to = out.mutable_data();
  std::uint8_t* to_known = known.mutable_data();
  std::int64_t* to_offsets = offsets.mutable_data();
  to_offsets[0] = 0;
  const int limit = thread_count(threads);
  {
    const ReleasedLock released;
    keys.each(0, [&](const UserKey* some, std::int64_t first, std::int64_t count) {
      s.store().embed(some, count, limit, to + first * dim, to_known + first,
                      seen ? &values : nullptr, to_offsets + first);
      return count;
    });
  }
  if (!seen) return py::make_tuple(std::move(out), std::move(known), py::none(), py::none());
  const Array<std::int32_t> items(static_cast<py::ssize_t>(values.size()), values.data());
  return py::make_tuple(std::move(out), std::move(known), items, std::move(offsets));
}

/// None where the user is not known.
py::object recommend(BoundSessions& s, const py::handle& user, std::int64_t k, bool exclude_seen,
                     int threads) {
  check_k(k);
  const UserKey key = key_of(user.ptr());
  Array<float> scores(k);
  Array<std::int64_t> ids(k);
  float* to_scores = scores.mutable_data();
  std::int64_t* to_ids = ids.mutable_data();
  const int limit = thread_count(threads);
  std::uint8_t known = 0;
  {
    const ReleasedLock released;
    Scratch<float> query(s.engine().encoder().dim());
    std::vector<std::int32_t> seen;
    std::int64_t offsets[2] = {0, 0};
    s.store().embed(&key, 1, limit, query.data(), &known, exclude_seen ? &seen : nullptr, offsets);
    if (known != 0) {
      Exclusions excluded{};
      if (!seen.empty()) excluded.seen = {seen.data(), offsets, 1};
      s.engine().rank(query.data(), 1, excluded, k, limit, to_scores, to_ids);
    }
  }
  if (known == 0) return py::none();
  return py::make_tuple(std::move(scores), std::move(ids));
}

bool forget(BoundSessions& s, const py::handle& user) {
  const UserKey key = key_of(user.ptr());
  const ReleasedLock released;
  return s.store().forget(key);
}

bool contains(BoundSessions& s, const py::handle& user) {
  const UserKey key = key_of(user.ptr());
  const ReleasedLock released;
  return s.store().contains(key);
}

py::tuple history(BoundSessions& s, const py::handle& user) {
  const UserKey key = key_of(user.ptr());
  std::vector<std::int32_t> items;
  std::int64_t events;
  {
    const ReleasedLock released;
    events = s.store().history(key, &items);
  }
  return py::make_tuple(events,
                        Array<std::int32_t>(static_cast<py::ssize_t>(items.size()), items.data()));
}

py::dict statistics(BoundSessions& s) {
  SessionStatistics found;
  {
    const ReleasedLock released;
    found = s.store().statistics();
  }
  py::dict d;
  d["users"] = found.users;
  d["hits"] = found.hits;
  d["misses"] = found.misses;
  d["evictions"] = found.evictions;
  d["expired"] = found.expired;
  d["bytes"] = found.bytes;
  d["pages"] = found.pages;
  d["observes"] = found.observes;
  d["reencodings"] = found.reencodings;
  return d;
}

const std::uint8_t* identity_of(const py::bytes& identity) {
  char* data;
  Py_ssize_t size;
  if (PyBytes_AsStringAndSize(identity.ptr(), &data, &size) != 0) throw py::error_already_set();
  if (size != SessionStore::kIdentityBytes) refuse("identity: expected 32 bytes");
  return reinterpret_cast<const std::uint8_t*>(data);
}

/// Calls body() without the interpreter; what the system refused becomes an OSError.
template <typename Body>
void with_file(Body&& body) {
  int code = 0;
  {
    const ReleasedLock released;
    try {
      body();
    } catch (const std::system_error& error) {
      code = error.code().value();
    }
  }
  if (code == 0) return;
  errno = code;
  PyErr_SetFromErrno(PyExc_OSError);
  throw py::error_already_set();
}

void save(BoundSessions& s, int file, const py::bytes& identity, std::int64_t wall) {
  const std::uint8_t* of_model = identity_of(identity);
  with_file([&] { s.store().save(file, of_model, wall); });
}

void load(BoundSessions& s, int file, const py::bytes& identity, std::int64_t wall) {
  const std::uint8_t* of_model = identity_of(identity);
  with_file([&] { s.store().load(file, of_model, wall); });
}

void take_from(BoundSessions& s, BoundSessions& old, const Array<std::int32_t>& table) {
  const std::int64_t items = old.engine().encoder().num_items();
  if (table.ndim() != 1 || table.shape(0) != items || &s == &old) {
    refuse("table: expected one entry an item of the old model");
  }
  for (std::int64_t i = 0; i < items; ++i) {
    if (table.data()[i] >= 0) check_item(s, table.data()[i]);
  }
  const std::int32_t* to_new = table.data();
  const ReleasedLock released;
  s.store().take_from(old.store(), to_new);
}

}  // namespace

void bind_sessions(py::module_& m) {
  py::register_exception<SessionsReplaced>(m, "SessionsReplaced");
  py::class_<BoundSessions>(m, "Sessions")
      .def(py::init<std::shared_ptr<BoundEngine>, std::int64_t, std::int64_t, std::int64_t,
                    std::int64_t, std::int64_t>(),
           py::arg("engine"), py::arg("capacity"), py::arg("memory"), py::arg("ttl"),
           py::arg("hop"), py::arg("remember"))
      .def("observe", &observe, py::arg("user"), py::arg("item"))
      .def("observe_many", &observe_many, py::arg("users"), py::arg("items").noconvert(),
           py::arg("begin") = 0, py::arg("threads") = 0)
      .def("embed", &embed, py::arg("users"), py::arg("seen"), py::arg("threads") = 0)
      .def("recommend", &recommend, py::arg("user"), py::arg("k"), py::arg("exclude_seen"),
           py::arg("threads") = 0)
      .def("forget", &forget, py::arg("user"))
      .def("contains", &contains, py::arg("user"))
      .def("history", &history, py::arg("user"))
      .def(
          "clear", [](BoundSessions& s) { s.store().clear(); }, py::call_guard<ReleasedLock>())
      .def("statistics", &statistics)
      .def("save", &save, py::arg("file"), py::arg("identity"), py::arg("wall"))
      .def("load", &load, py::arg("file"), py::arg("identity"), py::arg("wall"))
      .def("take_from", &take_from, py::arg("old"), py::arg("table").noconvert())
      .def(
          "set_clock", [](BoundSessions& s, std::int64_t now) { s.store().set_clock(now); },
          py::arg("nanoseconds"));
}

}  // namespace seqrec
