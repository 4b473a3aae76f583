// SPDX-License-Identifier: Apache-2.0
#include "cuda/topk.h"

#include <stdexcept>

#include "cuda/binding/binding.h"

namespace seqrec {
namespace cuda {
namespace {

/// A table of rows whose last dimension is dense: its address, and numbers from row to row.
using Table = std::tuple<Address, std::int64_t>;

TopkPlan plan_here(std::int64_t queries, std::int64_t items, std::int64_t dim, Number number,
                   std::int64_t k) {
  return plan_topk(queries, items, dim, number == Number::kFloat32 ? 4 : 2, k,
                   device_attribute(cudaDevAttrMultiProcessorCount),
                   device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor));
}

/// Numbers of 8 bytes that the lists of a search take; 0 where the kernels cannot run.
std::int64_t lists_size(std::int64_t queries, std::int64_t items, std::int64_t dim, int number,
                        std::int64_t k) {
  const TopkPlan plan = plan_here(queries, items, dim, static_cast<Number>(number), k);
  return plan.fits ? queries * plan.splits * plan.capacity : 0;
}

void sort_seen(Address values, bool wide, Address offsets, Address sorted, std::int64_t rows,
               std::int64_t tokens, std::int64_t num_items, Address stream) {
  TopkSeen seen{};
  seen.values = at<const void>(values);
  seen.wide = wide;
  seen.offsets = at<const std::int64_t>(offsets);
  seen.sorted = at<std::int32_t>(sorted);
  seen.rows = rows;
  seen.tokens = tokens;
  seen.num_items = num_items;
  launch_topk_seen(seen, stream_at(stream));
}

void search(const Table& queries, const Table& items, Address bias, Address blocked, Address seen,
            Address seen_offsets, std::int64_t seen_tokens, std::int64_t num_queries,
            std::int64_t num_items, std::int64_t dim, std::int64_t k, int number, bool tf32,
            Address lists, std::int64_t size, Address scores, Address ids, Address stream) {
  const Number type = static_cast<Number>(number);
  const TopkPlan plan = plan_here(num_queries, num_items, dim, type, k);
  if (!plan.fits || size < num_queries * plan.splits * plan.capacity) {
    throw std::invalid_argument("topk: the lists do not fit the search");
  }
  const std::int64_t element = type == Number::kFloat32 ? 4 : 2;
  TopkSearch p{};
  p.queries = at<const void>(std::get<0>(queries));
  p.query_stride = std::get<1>(queries);
  p.items = at<const void>(std::get<0>(items));
  p.item_stride = std::get<1>(items);
  p.bias = at<const void>(bias);
  p.blocked = at<const std::uint8_t>(blocked);
  p.seen = at<const std::int32_t>(seen);
  p.seen_offsets = at<const std::int64_t>(seen_offsets);
  p.seen_tokens = seen_tokens;
  p.num_queries = num_queries;
  p.num_items = num_items;
  p.dim = dim;
  p.k = k;
  p.lists = at<std::uint64_t>(lists);
  p.scores = at<void>(scores);
  p.ids = at<std::int64_t>(ids);
  p.vectors = (std::get<0>(queries) | std::get<0>(items)) % 16 == 0 && dim * element % 16 == 0 &&
              p.query_stride * element % 16 == 0 && p.item_stride * element % 16 == 0;
  p.block_queries = plan.block_queries;
  p.query_row = plan.query_row;
  p.capacity = plan.capacity;
  p.splits = plan.splits;
  p.items_per_split = plan.items_per_split;
  const TopkType kind = type == Number::kHalf       ? TopkType::kHalf
                        : type == Number::kBFloat16 ? TopkType::kBFloat16
                        : tf32                      ? TopkType::kTf32
                                                    : TopkType::kFloat;
  launch_topk_scan(p, kind, stream_at(stream));
  launch_topk_merge(p, kind, stream_at(stream));
}

}  // namespace

void bind_topk(py::module_& m) {
  m.attr("TOPK_MOST_PLACES") = kTopkMostPlaces;
  m.def("topk_lists_size", &lists_size);
  m.def("topk_sort_seen", &sort_seen);
  m.def("topk", &search);
}

}  // namespace cuda
}  // namespace seqrec
