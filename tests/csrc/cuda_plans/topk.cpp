// SPDX-License-Identifier: Apache-2.0
// Plans of the search for the best items on the devices that the project builds for: the blocks of
// the scan fit, and where they are more than those that run at once, tiles of queries make them so.
#include <cstdio>
#include <initializer_list>

#include "cards.h"
#include "cuda/topk_plan.h"

using namespace seqrec::cuda;

namespace {

int plans = 0, failed = 0;

void complain(const Card& card, const char* what, std::int64_t queries, std::int64_t items,
              std::int64_t dim, std::int64_t k, int element) {
  ++failed;
  std::printf("%s: %s: %d queries, %d items, %d x %d bytes, best %d\n", card.name, what,
              static_cast<int>(queries), static_cast<int>(items), static_cast<int>(dim), element,
              static_cast<int>(k));
}

void check(const Card& card, std::int64_t queries, std::int64_t items, std::int64_t dim,
           int element, std::int64_t k) {
  const auto wrong = [&](const char* what) {
    complain(card, what, queries, items, dim, k, element);
  };
  const TopkPlan plan = plan_topk(queries, items, dim, element, k, card.multiprocessors,
                                  static_cast<std::int64_t>(card.shared()));
  // whatever else there is, rows of 2 KiB are taken
  if (!plan.fits) return dim * element <= 2048 ? wrong("no plan") : void();
  ++plans;
  if (plan.capacity < k + kTopkItems || plan.capacity > 2048) wrong("a list of the wrong size");
  if (plan.scan_shared > card.optin() || plan.merge_shared > card.optin()) wrong("too much memory");
  if (plan.query_tiles * plan.block_queries < queries) wrong("queries are left out");
  if (std::int64_t{plan.splits} * plan.items_per_split < items ||
      std::int64_t{plan.splits - 1} * plan.items_per_split >= items) {
    wrong("ranges do not cover the items");
  }
  const int bound = topk_resident(plan.block_queries);
  const int scan = resident_blocks(card, kTopkThreads, most_registers(kTopkThreads, bound),
                                   kTopkThreads, plan.scan_shared);
  const int merge = resident_blocks(card, kTopkThreads, most_registers(kTopkThreads, 1),
                                    kTopkThreads, plan.merge_shared);
  if (scan < 1 || merge < 1) wrong("a block fits no multiprocessor");
  // a range of items that waits for another one would double the time
  if (plan.splits > 1 &&
      plan.query_tiles * plan.splits > std::int64_t{scan} * card.multiprocessors) {
    wrong("more blocks than run at once");
  }
}

}  // namespace

int main() {
  for (const Card& card : kCards) {
    for (const int element : {2, 4}) {
      for (const std::int64_t k : {1, 10, 85, 86, 100, 256, 257, 500, 597, 598, 1000, 1024}) {
        for (std::int64_t dim = 1; dim <= 4096; dim += dim < 300 ? 1 : 61) {
          for (const std::int64_t queries : {1, 16, 17, 64, 300, 5000}) {
            for (const std::int64_t items : {1, 127, 12000, 1000000}) {
              check(card, queries, items, dim, element, k);
            }
          }
        }
        check(card, 1, kTopkMostItems, 64, element, k);
      }
    }
  }
  std::printf("%d plans, %d failed\n", plans, failed);
  return failed == 0 && plans > 0 ? 0 : 1;
}
