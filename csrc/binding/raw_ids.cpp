// SPDX-License-Identifier: Apache-2.0
#include "binding/raw_ids.h"

namespace seqrec {
namespace {

bool is_row(PyObject* object) { return PyList_CheckExact(object) || PyTuple_CheckExact(object); }

Py_ssize_t size_of(PyObject* row) {
  return PyList_CheckExact(row) ? PyList_GET_SIZE(row) : PyTuple_GET_SIZE(row);
}

// A reference of our own, as another thread may change a list while it is read.
py::object entry(PyObject* row, Py_ssize_t i) {
  if (PyTuple_CheckExact(row)) {
    return py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(row, i));
  }
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* found = PyList_GetItemRef(row, i);
  if (found == nullptr) PyErr_Clear();
  return py::reinterpret_steal<py::object>(found);
#else
  if (i >= PyList_GET_SIZE(row)) return {};
  return py::reinterpret_borrow<py::object>(PyList_GET_ITEM(row, i));
#endif
}

/// The index of an id; -1 where the dictionary does not hold it or the id is of another type.
long index_of(PyObject* lookup, PyObject* id) {
  if (!PyUnicode_CheckExact(id) && !PyLong_CheckExact(id)) return -1;
  PyObject* found = nullptr;
#if PY_VERSION_HEX >= 0x030D0000
  if (PyDict_GetItemRef(lookup, id, &found) < 0) PyErr_Clear();
#else
  found = PyDict_GetItemWithError(lookup, id);
  if (found == nullptr) PyErr_Clear();
  Py_XINCREF(found);
#endif
  if (found == nullptr) return -1;
  const long index = PyLong_AsLong(found);
  if (index == -1) PyErr_Clear();  // no number
  Py_DECREF(found);
  return index;
}

}  // namespace

bool plain_histories(const py::object& histories, const py::dict& lookup, IdRows& rows) {
  if (!is_row(histories.ptr())) return false;
  const Py_ssize_t count = size_of(histories.ptr());
  rows.offsets.reserve(static_cast<std::size_t>(count) + 1);
  rows.offsets.push_back(0);
  for (Py_ssize_t r = 0; r < count; ++r) {
    const py::object row = entry(histories.ptr(), r);
    if (!row || !is_row(row.ptr())) return false;
    const Py_ssize_t length = size_of(row.ptr());
    if (length == 0) return false;
    if (r == 0) rows.values.reserve(static_cast<std::size_t>(length));
    for (Py_ssize_t i = 0; i < length; ++i) {
      const py::object id = entry(row.ptr(), i);
      const long index = id ? index_of(lookup.ptr(), id.ptr()) : -1;
      if (index < 0) return false;
      rows.values.push_back(static_cast<std::int32_t>(index));
    }
    rows.offsets.push_back(static_cast<std::int64_t>(rows.values.size()));
  }
  return true;
}

}  // namespace seqrec
