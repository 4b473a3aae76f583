// SPDX-License-Identifier: Apache-2.0
// Raw ids straight from Python's lists and dictionaries, for requests that need no explanation.
#pragma once

#include <cstdint>
#include <vector>

#include "binding/binding.h"

namespace seqrec {

/// Histories as item indices.
struct IdRows {
  std::vector<std::int32_t> values;
  std::vector<std::int64_t> offsets;
};

/// Looks the ids of `histories` up in `lookup` (raw id to index), and returns whether all is plain:
/// a list or tuple of lists or tuples, none empty, of texts and integers that the dictionary holds.
///
/// Where it is not, what to report or to raise is found out at leisure in Python.
bool plain_histories(const py::object& histories, const py::dict& lookup, IdRows& rows);

}  // namespace seqrec
