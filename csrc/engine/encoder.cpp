// SPDX-License-Identifier: Apache-2.0
#include "engine/encoder.h"

#include <algorithm>
#include <cmath>

#include "base/scratch.h"
#include "base/thread_pool.h"

namespace seqrec {
namespace {

constexpr double kRate = 20.0;  // multiply-adds a nanosecond on one core, on the low side

/// Rows of a request, longest first, and where each group of them begins.
struct Groups {
  explicit Groups(std::int64_t rows) : order(rows), first(rows + 1), begin(rows) {}

  Scratch<std::int64_t> order;  // [rows]
  Scratch<std::int64_t> first;  // [count + 1]
  Scratch<std::int64_t> begin;  // [rows]: where the part of a history that is read begins
  std::int64_t count = 0;
  std::int64_t tokens = 0;
};

}  // namespace

void Encoder::encode(const JaggedView<std::int32_t>& histories, float* out, int threads) const {
  const std::int64_t rows = histories.rows;
  if (rows == 0) return;
  Groups groups(rows);
  std::int64_t* order = groups.order.data();
  const auto end = [&](std::int64_t row) { return histories.offsets[row + 1]; };
  const auto length = [&](std::int64_t row) { return end(row) - groups.begin[row]; };
  bool sorted = true;
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t first = histories.offsets[row];
    groups.begin[row] = window_ > 0 ? std::max(first, end(row) - window_) : first;
    order[row] = row;
    sorted = sorted && (row == 0 || length(row) <= length(row - 1));
    groups.tokens += length(row);
  }
  if (!sorted) {
    std::sort(order, order + rows, [&](std::int64_t a, std::int64_t b) {
      return length(a) != length(b) ? length(a) > length(b) : a < b;
    });
  }
  const double cost = token_cost() * static_cast<double>(groups.tokens) / kRate;
  const int worth = threads_worth(cost, static_cast<int>(std::min<std::int64_t>(rows, threads)));
  // No group may hold more than its share, so that every thread gets one.
  const std::int64_t most = std::min(group_rows(), (rows + worth - 1) / worth);
  std::int64_t in_group = 0, tokens = 0;
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t more = length(order[i]);
    if (i == 0 || in_group == most || tokens + more > group_tokens()) {
      groups.first[groups.count++] = i;
      in_group = tokens = 0;
    }
    ++in_group;
    tokens += more;
  }
  groups.first[groups.count] = rows;
  parallel(groups.count, worth, [&](std::int64_t group) {
    const std::int64_t from = groups.first[group], count = groups.first[group + 1] - from;
    Scratch<std::int64_t> offsets(count + 1);
    offsets[0] = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      offsets[i + 1] = offsets[i] + length(order[from + i]);
    }
    Scratch<std::int32_t> values(offsets[count]);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t row = order[from + i];
      std::copy_n(histories.values + groups.begin[row], length(row), values.data() + offsets[i]);
    }
    Scratch<float> embedded(count * dim_);
    encode_group({values.data(), offsets.data(), count}, embedded.data(),
                 groups.count == 1 ? threads : 1);
    if (unit_) scale_to_unit(embedded.data(), count, dim_);
    for (std::int64_t i = 0; i < count; ++i) {
      std::copy_n(embedded.data() + i * dim_, dim_, out + order[from + i] * dim_);
    }
  });
}

void Encoder::embed(const UserState* users, std::int64_t count, float* out) const {
  embed_group(users, count, out);
  if (unit_) scale_to_unit(out, count, dim_);
}

void scale_to_unit(float* rows, std::int64_t count, std::int64_t dim) {
  for (std::int64_t row = 0; row < count; ++row) {
    float* at = rows + row * dim;
    double squares = 0.0;
    for (std::int64_t d = 0; d < dim; ++d) squares += double{at[d]} * double{at[d]};
    // the floor is that of torch.nn.functional.normalize
    const auto length = static_cast<float>(std::max(std::sqrt(squares), 1e-12));
    for (std::int64_t d = 0; d < dim; ++d) at[d] /= length;
  }
}

}  // namespace seqrec
