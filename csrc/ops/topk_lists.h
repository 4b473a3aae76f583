// SPDX-License-Identifier: Apache-2.0
// The best items from inverted lists: items grouped around centres, of which a query visits a few.
//
// Items lie in a table of bytes list after list, each list from a block boundary on. A query orders
// the lists by how good their items may be expected to be,
//
//   promise(list) = q · centre + reach * sd(q) * spread,   sd(q)^2 = q' C q,
//
// with C the covariance of all items about their centres and `spread` how wide the list is beside
// the others, so that `reach` counts standard deviations whatever the data and the direction. It
// scans lists in descending order of promise and stops where the promise falls below its k-th best
// score so far: a query among crowded lists visits many, one with clear winners a handful. What is
// found is scored again in float32 (topk_int8.h), so scores are those of the exact search.
#pragma once

#include "isa/kernel_table.h"
#include "kernels/topk_types.h"
#include "ops/topk_int8.h"

namespace seqrec {

/// Lists of items and those that are in none; places are those of tables of named items.
struct ListedItems {
  const Int8Table* lists;
  const std::int32_t* names;   // [16 blocks of lists]: the item at each place, or -1
  const std::int64_t* starts;  // [num_lists + 1]: first block of each list
  const Int8Table* centres;    // [num_lists]
  const float* spread;         // [num_lists]
  const float* covariance;     // [dim, dim], or null for the identity
  const Int8Table* tail;       // items that are in no list, scanned by every query; or null
  const std::int32_t* tail_names;
  std::int64_t num_lists;
};

/// How far a query looks.
struct ListProbe {
  std::int64_t most;  // lists it visits at most, unless fewer than k items were found
  float reach;        // standard deviations; infinite: it visits `most` lists
};

/// As score_topk of ops/topk.h, but each query is compared only with the items of the lists that it
/// visits. At least k items come back wherever as many may be found. `problem` has no bias.
/// Throws std::bad_alloc.
void score_topk_lists(const TopkProblem& problem, const ListedItems& listed, const ListProbe& probe,
                      int threads, const KernelTable& table, float* out_scores,
                      std::int64_t* out_ids);

}  // namespace seqrec
