// SPDX-License-Identifier: Apache-2.0
// Searches of every type, and around the edges of lists, blocks and ranges.
#include "topk_search.h"

using namespace topk_test;

#ifndef SEQREC_SHIM_THREADS  // which would take minutes

TEST(topk_all_types) {
  search<float>(TopkType::kFloat, 3, 300, 20, 7, 1);
  search<float>(TopkType::kTf32, 17, 140, 16, 90, 2);
  search<Half>(TopkType::kHalf, 65, 129, 32, 5, 3);
  search<BFloat16>(TopkType::kBFloat16, 2, 700, 9, 30, 4);
}

TEST(topk_lists_of_a_block) { search<float>(TopkType::kFloat, 2, 1500, 4, 400, 5); }

TEST(topk_ranges_of_items) { search<BFloat16>(TopkType::kBFloat16, 1, 2100, 8, 12, 6); }

#endif

/// As few items as fill a list and have it cut.
TEST(topk_small) {
  search<Half>(TopkType::kHalf, 5, 300, 40, 3, 7);
  search<float>(TopkType::kFloat, 2, 700, 4, 300, 8);
}
