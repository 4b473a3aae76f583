// SPDX-License-Identifier: Apache-2.0
#include "binding/ranking.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "base/offsets.h"

namespace seqrec {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

std::string text(std::int64_t n) { return std::to_string(n); }

}  // namespace

JaggedView<std::int32_t> checked_items(const char* name, const Array<std::int32_t>& values,
                                       const Array<std::int64_t>& offsets, std::int64_t rows,
                                       std::int64_t num_items, bool may_be_empty) {
  const std::string of(name);
  if (values.ndim() != 1 || offsets.ndim() != 1 || offsets.shape(0) < 1) {
    refuse(of + ": expected values [tokens] and offsets [rows + 1]");
  }
  if (rows >= 0 && offsets.shape(0) != rows + 1) {
    refuse(of + ": expected one row a query (" + text(rows) + ")");
  }
  const JaggedView<std::int32_t> view{values.data(), offsets.data(), offsets.shape(0) - 1};
  check_offsets(view.offsets, view.rows, values.shape(0), "values", (of + " offsets").c_str());
  for (std::int64_t row = 0; row < view.rows && !may_be_empty; ++row) {
    if (view.offsets[row] == view.offsets[row + 1]) {
      refuse(of + ": row " + text(row) + " holds no item");
    }
  }
  // One pass without branches, which is several times as fast; negative ids are large there.
  std::uint32_t most = 0;
  for (std::int64_t i = 0; i < values.shape(0); ++i) {
    most = std::max(most, static_cast<std::uint32_t>(view.values[i]));
  }
  if (most < num_items) return view;
  for (std::int64_t i = 0; i < values.shape(0); ++i) {
    if (view.values[i] < 0 || view.values[i] >= num_items) {
      refuse(of + ": found item " + text(view.values[i]) + " at position " + text(i) +
             ", but the items are 0 to " + text(num_items - 1) + "; encode the ids first");
    }
  }
  return view;
}

JaggedView<std::int32_t> checked_seen(const Items& values, const Offsets& offsets,
                                      std::int64_t queries, std::int64_t num_items) {
  if (values.has_value() != offsets.has_value()) {
    refuse("seen: values and offsets are needed together");
  }
  if (!values) return {};
  const auto seen = checked_items("seen", *values, *offsets, queries, num_items, true);
  return values->shape(0) > 0 ? seen : JaggedView<std::int32_t>{};
}

const std::uint8_t* checked_mask(const Mask& blocked, std::int64_t num_items) {
  if (!blocked) return nullptr;
  if (blocked->ndim() != 1 || blocked->shape(0) != num_items) {
    refuse("blocked: expected one flag an item (" + text(num_items) + ")");
  }
  return blocked->data();
}

void check_k(std::int64_t k) {
  if (k < 1) refuse("k: expected at least 1, found " + text(k));
}

void check_num_items(const char* name, std::int64_t items) {
  // One below the limit stays free for the padding of the candidate lists.
  if (items >= std::numeric_limits<std::int32_t>::max()) {
    refuse(std::string(name) + ": expected fewer than 2147483647 rows, found " + text(items));
  }
}

void check_threads(int threads) {
  if (threads < 0 || threads > kMaxThreads) {
    refuse("threads: expected 1 to " + text(kMaxThreads) + " (0 = the set number), found " +
           text(threads));
  }
}

}  // namespace seqrec
