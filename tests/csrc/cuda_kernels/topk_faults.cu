// SPDX-License-Identifier: Apache-2.0
// The search for the best items again, each time with one thing left out.
#include <cmath>

#include "cuda/topk.h"
#include "cuda/topk_list.cuh"
#include "cuda/topk_tile.cuh"
#include "topk_search.h"
// behind them
#include "faults.h"

namespace seqrec {
namespace cuda {

[[maybe_unused]] static void faulty_seen(const TopkSeen& seen, cudaStream_t stream);
[[maybe_unused]] static void faulty_scan(const TopkSearch& search, TopkType type,
                                         cudaStream_t stream);
[[maybe_unused]] static void faulty_merge(const TopkSearch& search, TopkType type,
                                          cudaStream_t stream);

namespace {

bool copies_awaited = true;

template <int kNewest>
void faulty_copy_async_wait() {
  if (copies_awaited) copy_async_wait<kNewest>();
}

}  // namespace
}  // namespace cuda
}  // namespace seqrec

#define copy_async_wait faulty_copy_async_wait
#define launch_topk_seen faulty_seen
#define launch_topk_scan faulty_scan
#define launch_topk_merge faulty_merge

namespace {
constexpr int kFirstBarrier = __COUNTER__ + 1;
}
#include "cuda/topk.cu"
namespace {
constexpr int kBarriers = __COUNTER__ - kFirstBarrier;
}
static_assert(kBarriers == 10, "a test for each, below");

namespace {

using namespace topk_test;

// one type alone is compiled to code
void scan_halves(const TopkSearch& p, TopkType, cudaStream_t stream) {
  scan<TopkType::kHalf>(p, stream);
}

/// Two chunks of dimensions, and lists that are cut, each by a warp.
void without(int barrier, const Search& how = {}) {
  left_out = barrier;
  Search faulty = how;
  faulty.seen = &faulty_seen, faulty.scan = &scan_halves, faulty.merge = &faulty_merge;
  search<Half>(TopkType::kHalf, 5, 300, 40, 3, 7, faulty);
}

/// So many places that the merge reads several times as many candidates as it has threads, and
/// that each item which a query has seen would be among them.
void without_in_merge(int barrier) {
  left_out = barrier;
  Search faulty;
  faulty.seen = &faulty_seen, faulty.merge = &faulty_merge;
  search<Half>(TopkType::kHalf, 2, 500, 4, 300, 8, faulty);
}

}  // namespace

TEST(topk_nothing_left_out) {
  without(kNothing);
  without_in_merge(kNothing);
}

// In the order of the source. Of the scan: before a tile is multiplied, behind the cut of lists,
// between the chunks of a tile, before scores are taken, before the last cut.
TEST(fault_topk_barrier_0) { without(0); }
TEST(fault_topk_barrier_1) {
  first_warp_early = true;
  without(1);
}
TEST(fault_topk_barrier_2) { without(2); }
TEST(fault_topk_barrier_3) { without(3); }
TEST(fault_topk_barrier_4) { without(4); }
// of the merge: behind the beginning; in a round, once candidates have been added, once their
// number has been read, and at its end
TEST(fault_topk_barrier_5) { without_in_merge(5); }
TEST(fault_topk_barrier_6) { without_in_merge(6); }
TEST(fault_topk_barrier_7) { without_in_merge(7); }
TEST(fault_topk_barrier_8) { without_in_merge(8); }
// before a row of seen items is sorted
TEST(fault_topk_barrier_9) { without_in_merge(9); }

TEST(fault_topk_copy_not_awaited) {
  copies_awaited = false;
  without(kNothing);
}
TEST(fault_topk_shared_overrun) {
  shared_lacking = 16;
  without(kNothing);
}
TEST(fault_topk_lists_overrun) {
  Search how;
  how.lists_lacking = 256;  // places of the last list, of which the first is always used
  without(kNothing, how);
}
TEST(fault_topk_scores_overrun) {
  Search how;
  how.scores_lacking = 1;
  without(kNothing, how);
}
TEST(fault_topk_seen_overrun) {
  Search how;
  how.sorted_lacking = 1;
  without(kNothing, how);
}
TEST(fault_topk_items_read_overrun) {
  Search how;
  how.items_lacking = 1;
  without(kNothing, how);
}
