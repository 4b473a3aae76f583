// SPDX-License-Identifier: Apache-2.0
// Sorting that gains nothing from wide registers, compiled once without instruction-set flags.
#pragma once

#include <cstdint>

namespace seqrec {

/// Writes candidates by descending score, at equal scores by ascending id.
///
/// Scores are not NaN. `scores` and `ids` are read only; n > 0.
void order_candidates(const float* scores, const std::int32_t* ids, std::int64_t n,
                      float* out_scores, std::int64_t* out_ids);

}  // namespace seqrec
