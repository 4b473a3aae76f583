// SPDX-License-Identifier: Apache-2.0
// Which rows a search for the best items goes through, when a filter leaves a part of them.
//
// Where a filter leaves few items, those are listed and scored one by one, in float32, wherever
// they lie; where it leaves many, everything is scanned and what is hidden dropped as it is found.
// Either way the scores are the same, bit for bit, since there is one order of summation.
#pragma once

#include <cstdint>
#include <vector>

#include "base/scratch.h"
#include "isa/kernel_table.h"
#include "kernels/topk_types.h"
#include "ops/item_set.h"
#include "ops/topk_int8.h"

namespace seqrec {

/// The rows that a scan goes through: all items, or those of a list.
inline std::int64_t scanned_rows(const TopkProblem& p) {
  return p.listed ? p.num_listed : p.num_items;
}

/// Whether `open` items of `p` are better listed than scanned with all others.
bool worth_listing(const TopkProblem& p, std::int64_t open, bool bytes);

/// Turns `blocked` or `open` of a problem into what its scan should read, and holds that memory:
/// `listed`, or `open`, or neither where nothing is hidden. `bytes` says whether the scan is that
/// of the table of bytes. Throws std::bad_alloc.
class OpenRows {
 public:
  OpenRows(TopkProblem& p, bool bytes);

 private:
  std::int64_t places(TopkProblem& p, bool bytes);

  Scratch<std::uint64_t> bits_;
  Scratch<std::int32_t> ids_;
};

/// A problem as its scan should read it, with the memory for that: rows of `seen` in ascending
/// order, filters as OpenRows makes them. Throws std::bad_alloc.
class ReadyTopk {
 public:
  ReadyTopk(const TopkProblem& given, bool bytes, int threads);

  const TopkProblem& problem() const { return problem_; }

 private:
  TopkProblem problem_;
  std::vector<std::int32_t> seen_;
  OpenRows open_;
};

/// What score_topk of ops/topk.h computes, where each query has a list of its own of the only items
/// that it may find: a row of `allowed` a query, in any order, an id perhaps twice. All other
/// filters of the problem hold too. `bytes` is a table of the same items, or null. Throws
/// std::bad_alloc.
void score_topk_allowed(const TopkProblem& problem, const Int8Items* bytes,
                        const JaggedView<std::int32_t>& allowed, int threads,
                        const KernelTable& table, float* out_scores, std::int64_t* out_ids);

}  // namespace seqrec
