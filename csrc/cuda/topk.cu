// SPDX-License-Identifier: Apache-2.0
// Score + bias + exclude + top-k in one pass over the items, and a merge.
//
// A block multiplies a tile of items with its queries, compares each score with the threshold of
// its query while it is in a register, and writes what passes to the list of the query and the
// range of items. A list that is full is rid of items that the query has seen, sorted and cut to
// the k best; the last of them is the new threshold. Items come in ascending order, so that a later
// item with the score of the threshold can never be chosen, and a comparison of scores is enough.
//
// The order in which threads write to a list is left to chance, what it holds after a cut is not:
// every candidate is a number of its own, and the order among them is total.
#include <cmath>

#include "cuda/topk.h"
#include "cuda/topk_list.cuh"
#include "cuda/topk_tile.cuh"

namespace seqrec {
namespace cuda {
namespace {

constexpr int kThreads = kTopkThreads, kItems = kTopkItems;
constexpr int kSeenThreads = 256;
constexpr int kSeenShared = 4096;  // values of a row that is sorted in shared memory

/// Where the parts of a block's shared memory are.
struct ScanMemory {
  std::uint64_t* sorting;
  unsigned char *queries, *stages;
  float *thresholds, *shifts;
  int *counts, *full;

  __device__ ScanMemory(unsigned char* memory, int queries_of_block, int query_row, int capacity) {
    sorting = reinterpret_cast<std::uint64_t*>(memory);
    queries = memory + sizeof(std::uint64_t) * capacity * (capacity <= kTopkWarpSort ? 4 : 1);
    stages = queries + queries_of_block * query_row;
    thresholds = reinterpret_cast<float*>(stages + kTopkStages * kItems * kTopkStageRow);
    counts = reinterpret_cast<int*>(thresholds + queries_of_block);
    shifts = reinterpret_cast<float*>(counts + queries_of_block);
    full = reinterpret_cast<int*>(shifts + kItems);
  }
};

/// 16 bytes of a row, from byte `at` of it, of which those beyond its end are zeros.
template <typename T>
__device__ __forceinline__ void copy_piece(unsigned char* to, const T* row, std::int64_t dim,
                                           std::int64_t at, bool inside, bool vectors) {
  constexpr int kNumbers = 16 / sizeof(T);
  const std::int64_t first = at / static_cast<std::int64_t>(sizeof(T));
  const std::int64_t left = inside ? dim - first : 0;
  if (vectors) {
    // a copy of no bytes still wants an address that exists
    copy_async<16>(to, left > 0 ? row + first : row, left > 0);
    return;
  }
  T* numbers = reinterpret_cast<T*>(to);
#pragma unroll
  for (int i = 0; i < kNumbers; ++i) {
    numbers[i] = i < left ? load_readonly(row + first + i) : from_float<T>(0.0f);
  }
}

/// The list of a query of this block.
__device__ __forceinline__ std::uint64_t* list_of(const TopkSearch& p, std::int64_t query,
                                                  int split) {
  return p.lists + (query * p.splits + split) * p.capacity;
}

struct Row {
  std::int64_t begin, count;
};

/// A row of a jagged batch. Offsets come from the caller: whatever they say, it is inside.
__device__ __forceinline__ Row row_of(const std::int64_t* offsets, std::int64_t row,
                                      std::int64_t tokens) {
  std::int64_t begin = load_readonly(offsets + row), end = load_readonly(offsets + row + 1);
  begin = begin < 0 ? 0 : begin > tokens ? tokens : begin;
  end = end < begin ? begin : end > tokens ? tokens : end;
  return {begin, end - begin};
}

/// Cuts the list of a query to its best k, or to fewer if there are no more; if `last`, all k
/// places are written.
__device__ void cut_list(const TopkSearch& p, std::int64_t query, int split, std::uint64_t* sorting,
                         int* count, float* threshold, const Group& group, bool last) {
  std::uint64_t* list = list_of(p, query, split);
  const int found = *count, k = static_cast<int>(p.k);
  Row seen{0, 0};
  if (p.seen != nullptr) seen = row_of(p.seen_offsets, query, p.seen_tokens);
  for (int i = group.lane; i < found; i += group.size) {
    const std::uint64_t key = load_global(list + i);
    const bool hidden =
        seen.count > 0 && has_item(p.seen + seen.begin, seen.count, candidate_item(key));
    sorting[i] = hidden ? 0 : key;
  }
  group.sync();
  sort_list<true>(sorting, found, group);
  const int kept = found < k ? found : k;
  for (int i = group.lane; i < (last ? k : kept); i += group.size) {
    store_global(list + i, i < kept ? sorting[i] : std::uint64_t{0});
  }
  if (group.lane == 0) {
    int chosen = kept, fewer = 0;  // items that were seen are zeros, at the end
    while (fewer < chosen) {
      const int middle = (fewer + chosen) / 2;
      if (sorting[middle] != 0) {
        fewer = middle + 1;
      } else {
        chosen = middle;
      }
    }
    *count = chosen;
    if (chosen == k) *threshold = candidate_score(sorting[k - 1]);
  }
  group.sync();
}

/// Cuts the lists that are full, or all.
template <int kQueries>
__device__ void cut_lists(const TopkSearch& p, const ScanMemory& memory, std::int64_t first_query,
                          int split, bool last) {
  const int warp = threadIdx.x / 32;
  // a warp a list, or, where that would leave warps without one, all warps list after list
  const bool by_warps = p.capacity <= kTopkWarpSort && p.num_queries - first_query >= kThreads / 32;
  const Group group = by_warps ? Group{static_cast<int>(threadIdx.x % 32), 32}
                               : Group{static_cast<int>(threadIdx.x), kThreads};
  for (int q = by_warps ? warp : 0; q < kQueries; q += by_warps ? kThreads / 32 : 1) {
    if (first_query + q >= p.num_queries) break;
    if (!last && memory.counts[q] <= p.capacity - kItems) continue;
    cut_list(p, first_query + q, split, memory.sorting + (by_warps ? warp * p.capacity : 0),
             memory.counts + q, memory.thresholds + q, group, last);
  }
}

template <TopkType kType, int kQueries>
__global__ void __launch_bounds__(kThreads, topk_resident(kQueries)) topk_scan(TopkSearch p) {
  using T = typename TopkNumbers<kType>::T;
  using Tile = TopkTile<kType, kQueries>;
  SEQREC_SHARED(shared);
  const int query_row = p.query_row;
  const ScanMemory memory(shared, kQueries, query_row, p.capacity);
  const int thread = threadIdx.x;

  // blocks of one range of items are neighbours, so that its rows come from the cache
  const unsigned tiles_of_queries =
      static_cast<unsigned>((p.num_queries + kQueries - 1) / kQueries);
  const std::int64_t first_query =
      static_cast<std::int64_t>(blockIdx.x % tiles_of_queries) * kQueries;
  const int split = static_cast<int>(blockIdx.x / tiles_of_queries);
  const std::int64_t first_item = static_cast<std::int64_t>(split) * p.items_per_split;
  const std::int64_t end_item =
      first_item + p.items_per_split < p.num_items ? first_item + p.items_per_split : p.num_items;

  const int pieces = (query_row - 16) / 16;
  for (int i = thread; i < kQueries * pieces; i += kThreads) {
    const int q = i / pieces, at = i % pieces * 16;
    const bool inside = first_query + q < p.num_queries;
    const T* row =
        static_cast<const T*>(p.queries) + (inside ? first_query + q : 0) * p.query_stride;
    copy_piece(memory.queries + q * query_row + at, row, p.dim, at, inside, p.vectors);
  }
  for (int q = thread; q < kQueries; q += kThreads) {
    // nothing is above infinity: a place without a query takes no candidates
    memory.thresholds[q] = first_query + q < p.num_queries ? -INFINITY : INFINITY;
    memory.counts[q] = 0;
  }
  if (thread == 0) *memory.full = 0;

  const int chunks = pieces / (kTopkChunk / 16);
  const int tiles = static_cast<int>((end_item - first_item + kItems - 1) / kItems);
  const int steps = tiles * chunks;
  const auto fetch = [&](int step) {
    if (step < steps) {
      const std::int64_t tile_item = first_item + static_cast<std::int64_t>(step / chunks) * kItems;
      unsigned char* stage = memory.stages + step % kTopkStages * (kItems * kTopkStageRow);
      const int piece = thread % 4;
#pragma unroll
      for (int i = 0; i < kItems; i += kThreads / 4) {
        const int row = thread / 4 + i;
        const bool inside = tile_item + row < end_item;
        const T* from = static_cast<const T*>(p.items) +
                        (inside ? tile_item + row : first_item) * p.item_stride;
        copy_piece(stage + row * kTopkStageRow + 16 * piece, from, p.dim,
                   static_cast<std::int64_t>(step % chunks) * kTopkChunk + 16 * piece, inside,
                   p.vectors);
      }
    }
    copy_async_commit();
  };
  fetch(0);
  fetch(1);

  Tile tile;
  for (int number = 0, step = 0; number < tiles; ++number) {
    copy_async_wait<1>();
    __syncthreads();
    if (*memory.full != 0) {
      cut_lists<kQueries>(p, memory, first_query, split, false);
      __syncthreads();
      if (thread == 0) *memory.full = 0;
    }
    const std::int64_t tile_item = first_item + static_cast<std::int64_t>(number) * kItems;
    // the bias of one item a thread; NaN, which passes no threshold, where it may not be chosen
    float shift = 0.0f;
    const std::int64_t mine = tile_item + thread;
    if (mine >= end_item || (p.blocked != nullptr && load_readonly(p.blocked + mine) != 0)) {
      shift = NAN;
    } else if (p.bias != nullptr) {
      shift = to_float(load_readonly(static_cast<const T*>(p.bias) + mine));
    }
    tile.clear();
    for (int chunk = 0; chunk < chunks; ++chunk, ++step) {
      if (chunk != 0) {
        copy_async_wait<1>();
        __syncthreads();
      }
      fetch(step + 2);
      tile.multiply(memory.stages + step % kTopkStages * (kItems * kTopkStageRow),
                    memory.queries + chunk * kTopkChunk, query_row);
    }
    memory.shifts[thread] = shift;
    __syncthreads();
    float shifts[Tile::kItemsOfThread];
#pragma unroll
    for (int i = 0; i < Tile::kItemsOfThread; ++i) shifts[i] = memory.shifts[Tile::item(i)];
#pragma unroll
    for (int j = 0; j < Tile::kQueriesOfThread; ++j) {
      const int q = Tile::query(j);
      const float threshold = memory.thresholds[q];
#pragma unroll
      for (int i = 0; i < Tile::kItemsOfThread; ++i) {
        // product and sum are rounded to the type of the result, one after the other
        const float product = to_float(from_float<T>(tile.sum(i, j)));
        const float score = to_float(from_float<T>(product + shifts[i]));
        if (score > threshold) {
          const int slot = atomicAdd(memory.counts + q, 1);
          store_global(list_of(p, first_query + q, split) + slot,
                       candidate(score, static_cast<int>(tile_item) + Tile::item(i)));
          if (slot >= p.capacity - kItems) atomicExch(memory.full, 1);
        }
      }
    }
  }
  copy_async_wait<0>();
  __syncthreads();
  cut_lists<kQueries>(p, memory, first_query, split, true);
}

/// The best of all ranges of items: a block takes a query.
///
/// The lists are sorted. They are read place by place, all first places before all second ones, so
/// that the threshold is near its end at once; a candidate that no longer passes has none behind it
/// in its list that would, and once none of all lists has passed, nothing is left.
__global__ void __launch_bounds__(kThreads) topk_merge(TopkSearch p, TopkType type) {
  SEQREC_SHARED(shared);
  std::uint64_t* best = reinterpret_cast<std::uint64_t*>(shared);
  int* found = reinterpret_cast<int*>(best + p.capacity);
  int* passed = found + 1;
  const int thread = threadIdx.x, k = static_cast<int>(p.k);
  const std::int64_t query = blockIdx.x;
  const Group group{thread, kThreads};
  const std::int64_t all = static_cast<std::int64_t>(p.splits) * k;
  if (thread == 0) *found = *passed = 0;
  __syncthreads();

  std::uint64_t least = 0;  // what a candidate must exceed
  std::int64_t silent = 0;  // candidates in turn, up to here, of which none has passed
  for (std::int64_t first = 0; first < all && silent < p.splits; first += kThreads) {
    const std::int64_t at = first + thread;
    if (at < all) {
      const std::uint64_t key =
          load_global(list_of(p, query, static_cast<int>(at % p.splits)) + at / p.splits);
      if (key > least) {
        best[atomicAdd(found, 1)] = key;
        atomicExch(passed, 1);
      }
    }
    __syncthreads();
    const int count = *found;
    silent = *passed != 0 ? 0 : silent + kThreads;
    __syncthreads();
    if (count > p.capacity - kThreads) {
      sort_list<true>(best, count, group);
      least = best[k - 1];
      if (thread == 0) *found = k;
    }
    if (thread == 0) *passed = 0;
    __syncthreads();
  }
  const int count = *found;
  sort_list<true>(best, count, group);
  for (int i = thread; i < k; i += kThreads) {
    const bool exists = i < count;
    const float score = exists ? candidate_score(best[i]) : -INFINITY;
    const std::int64_t to = query * k + i;
    store_global(p.ids + to, exists ? static_cast<std::int64_t>(candidate_item(best[i])) : -1);
    if (type == TopkType::kHalf) {
      store_global(static_cast<Half*>(p.scores) + to, from_float<Half>(score));
    } else if (type == TopkType::kBFloat16) {
      store_global(static_cast<BFloat16*>(p.scores) + to, from_float<BFloat16>(score));
    } else {
      store_global(static_cast<float*>(p.scores) + to, score);
    }
  }
}

/// A block sorts a row: in shared memory, or where it lies if it is too long.
template <typename Index>
__global__ void __launch_bounds__(kSeenThreads) topk_seen(TopkSeen p) {
  SEQREC_SHARED(shared);
  const int thread = threadIdx.x;
  const Row at = row_of(p.offsets, blockIdx.x, p.tokens);
  const int count = static_cast<int>(at.count);
  const bool in_shared = count <= kSeenShared;
  std::int32_t* row = in_shared ? reinterpret_cast<std::int32_t*>(shared) : p.sorted + at.begin;
  for (int i = thread; i < count; i += kSeenThreads) {
    const std::int64_t item = load_readonly(static_cast<const Index*>(p.values) + at.begin + i);
    row[i] = item >= 0 && item < p.num_items ? static_cast<std::int32_t>(item) : 0x7FFFFFFF;
  }
  __syncthreads();
  sort_list<false>(row, count, Group{thread, kSeenThreads});
  if (!in_shared) return;
  for (int i = thread; i < count; i += kSeenThreads) store_global(p.sorted + at.begin + i, row[i]);
}

template <TopkType kType>
void scan(const TopkSearch& p, cudaStream_t stream) {
  const std::int64_t tiles = (p.num_queries + p.block_queries - 1) / p.block_queries;
  const dim3 grid(static_cast<unsigned>(tiles * p.splits)), block(kThreads);
  const std::size_t bytes = topk_scan_shared(p.block_queries, p.query_row, p.capacity);
  if (p.block_queries == kTopkFewQueries) {
    launch(topk_scan<kType, kTopkFewQueries>, grid, block, bytes, stream, p);
  } else {
    launch(topk_scan<kType, kTopkManyQueries>, grid, block, bytes, stream, p);
  }
}

}  // namespace

void launch_topk_seen(const TopkSeen& seen, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(seen.rows)), block(kSeenThreads);
  const std::size_t bytes = kSeenShared * sizeof(std::int32_t);
  if (seen.wide) {
    launch(topk_seen<std::int64_t>, grid, block, bytes, stream, seen);
  } else {
    launch(topk_seen<std::int32_t>, grid, block, bytes, stream, seen);
  }
}

void launch_topk_scan(const TopkSearch& search, TopkType type, cudaStream_t stream) {
  switch (type) {
    case TopkType::kFloat:
      return scan<TopkType::kFloat>(search, stream);
    case TopkType::kTf32:
      return scan<TopkType::kTf32>(search, stream);
    case TopkType::kHalf:
      return scan<TopkType::kHalf>(search, stream);
    case TopkType::kBFloat16:
      return scan<TopkType::kBFloat16>(search, stream);
  }
}

void launch_topk_merge(const TopkSearch& search, TopkType type, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(search.num_queries)), block(kThreads);
  const std::size_t bytes = sizeof(std::uint64_t) * search.capacity + 16;
  launch(topk_merge, grid, block, bytes, stream, search, type);
}

}  // namespace cuda
}  // namespace seqrec
