// SPDX-License-Identifier: Apache-2.0
// What all rankings are given and return: items of users, hidden items, the best k of each user.
#pragma once

#include <cstdint>
#include <optional>

#include "base/jagged.h"
#include "binding/binding.h"

namespace seqrec {

using Items = std::optional<Array<std::int32_t>>;
using Offsets = std::optional<Array<std::int64_t>>;
using Mask = std::optional<Array<std::uint8_t>>;

/// Items of a jagged batch, checked; throws std::invalid_argument. `rows` is their number where it
/// is known, else -1.
JaggedView<std::int32_t> checked_items(const char* name, const Array<std::int32_t>& values,
                                       const Array<std::int64_t>& offsets, std::int64_t rows,
                                       std::int64_t num_items, bool may_be_empty);

/// What was seen by each of `queries` users; nothing (values null) where none is given.
JaggedView<std::int32_t> checked_seen(const Items& values, const Offsets& offsets,
                                      std::int64_t queries, std::int64_t num_items);

/// The flags of hidden items, or null.
const std::uint8_t* checked_mask(const Mask& blocked, std::int64_t num_items);

void check_k(std::int64_t k);

/// Refuses more items than ids can name.
void check_num_items(const char* name, std::int64_t items);

void check_threads(int threads);

/// Scores and ids [rows, k], made with the lock and filled without it.
struct BestItems {
  BestItems(std::int64_t rows, std::int64_t k)
      : score_array({rows, k}),
        id_array({rows, k}),
        scores(score_array.mutable_data()),
        ids(id_array.mutable_data()) {}

  Array<float> score_array;
  Array<std::int64_t> id_array;
  float* scores;
  std::int64_t* ids;
};

}  // namespace seqrec
