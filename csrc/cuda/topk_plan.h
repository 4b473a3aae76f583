// SPDX-License-Identifier: Apache-2.0
// How the search for the best items is cut into blocks: arithmetic of the host alone.
//
// A block takes a tile of queries, which stays in its shared memory, and a range of items, which
// passes through it once, a tile of items and a chunk of dimensions at a time. So the table is read
// once a tile of queries, and the queries once a range of items.
#pragma once

#include <cstddef>
#include <cstdint>

namespace seqrec {
namespace cuda {

inline constexpr int kTopkThreads = 128;     // of a block
inline constexpr int kTopkItems = 128;       // of a tile
inline constexpr int kTopkManyQueries = 64;  // of a block
inline constexpr int kTopkFewQueries = 16;   // of a block, where there are no more or rows are long
inline constexpr int kTopkChunk = 64;        // bytes of a row that one step multiplies
inline constexpr int kTopkStages = 3;        // chunks of items in flight or at work
inline constexpr int kTopkMostPlaces = 1024;  // the largest k
inline constexpr int kTopkWarpSort = 512;     // lists up to here are sorted by a warp each
inline constexpr std::int64_t kTopkMostItems = (std::int64_t{1} << 31) - 2 * kTopkItems;
// what a block may have on every architecture from sm_80 on (sm_86 and sm_120 have the least)
inline constexpr std::size_t kTopkSharedLimit = 99 * 1024;

/// Blocks that registers leave room for on a multiprocessor, by the launch bounds of the scan.
inline constexpr int topk_resident(int block_queries) {
  return block_queries == kTopkManyQueries ? 3 : 5;
}

/// Bytes from one row to the next in shared memory. A multiple of 64 and 16 more, so that the
/// fragments that a warp loads from eight rows lie in different banks.
inline constexpr int topk_row_bytes(std::int64_t bytes) {
  return static_cast<int>((bytes + kTopkChunk - 1) / kTopkChunk * kTopkChunk + 16);
}

struct TopkPlan {
  bool fits;            // whether the kernels can run
  int block_queries;    // queries of a block
  int query_row;        // bytes from one of them to the next in shared memory
  int capacity;         // candidates that a list holds: a power of two
  int splits;           // ranges of items
  int items_per_split;  // of each but the last: whole tiles
  std::int64_t query_tiles;
  std::size_t scan_shared, merge_shared;  // bytes
};

/// A list must hold the k best and the items of one more tile, and is cut to k when it is full:
/// room for half as many again makes cuts rare.
inline int topk_capacity(std::int64_t k) {
  int capacity = 2 * kTopkItems;
  while (capacity < k + k / 2 + kTopkItems) capacity *= 2;
  return capacity;
}

inline std::size_t topk_sort_bytes(int capacity) {
  const int lists = capacity <= kTopkWarpSort ? kTopkThreads / 32 : 1;
  return sizeof(std::uint64_t) * static_cast<std::size_t>(lists) * capacity;
}

inline std::size_t topk_scan_shared(int queries, int query_row, int capacity) {
  const std::size_t stage = topk_row_bytes(kTopkChunk);
  return topk_sort_bytes(capacity) + static_cast<std::size_t>(queries) * query_row +
         kTopkStages * kTopkItems * stage + sizeof(float) * (2 * queries + kTopkItems) + 16;
}

/// Args:
///   element: bytes of a number: 4 or 2.
///   multiprocessors, shared: how many the device has, and the shared memory of each in bytes.
inline TopkPlan plan_topk(std::int64_t queries, std::int64_t items, std::int64_t dim, int element,
                          std::int64_t k, int multiprocessors, std::int64_t shared) {
  TopkPlan plan{};
  // A row of more bytes is too long for any plan; the bound keeps the sums below from overflowing.
  if (k < 1 || k > kTopkMostPlaces || dim > (1 << 16) || items > kTopkMostItems) return plan;
  plan.capacity = topk_capacity(k);
  plan.merge_shared = sizeof(std::uint64_t) * static_cast<std::size_t>(plan.capacity) + 16;
  plan.query_row = topk_row_bytes(dim * element);
  plan.block_queries = queries <= kTopkFewQueries ? kTopkFewQueries : kTopkManyQueries;
  plan.scan_shared = topk_scan_shared(plan.block_queries, plan.query_row, plan.capacity);
  if (plan.scan_shared > kTopkSharedLimit) {
    plan.block_queries = kTopkFewQueries;
    plan.scan_shared = topk_scan_shared(plan.block_queries, plan.query_row, plan.capacity);
  }
  plan.fits = plan.scan_shared <= kTopkSharedLimit;
  plan.query_tiles = (queries + plan.block_queries - 1) / plan.block_queries;

  // As many ranges as keep every multiprocessor busy, each long enough to be worth a list. More
  // blocks than run at once would make some multiprocessors work twice as long as others.
  const int most = topk_resident(plan.block_queries) < 4 ? topk_resident(plan.block_queries) : 4;
  // the system takes a kibibyte of each block, and memory is given in pieces of 128 bytes
  std::int64_t resident =
      shared / static_cast<std::int64_t>((plan.scan_shared + 1024 + 127) / 128 * 128);
  resident = resident < 1 ? 1 : resident > most ? most : resident;
  const std::int64_t tiles = (items + kTopkItems - 1) / kTopkItems;
  std::int64_t splits = plan.query_tiles == 0 ? 1 : multiprocessors * resident / plan.query_tiles;
  const std::int64_t worth = 2 * k > 2 * kTopkItems ? 2 * k / kTopkItems : 2;  // tiles
  if (splits > tiles / worth) splits = tiles / worth;
  if (splits < 1) splits = 1;
  const std::int64_t per_split = tiles == 0 ? 1 : (tiles + splits - 1) / splits;
  plan.items_per_split = static_cast<int>(per_split * kTopkItems);
  plan.splits = tiles == 0 ? 1 : static_cast<int>((tiles + per_split - 1) / per_split);
  return plan;
}

}  // namespace cuda
}  // namespace seqrec
