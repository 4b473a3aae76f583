// SPDX-License-Identifier: Apache-2.0
#include "base/order.h"

#include <algorithm>

#include "base/aligned.h"

namespace seqrec {

namespace {
struct Candidate {
  float score;
  std::int32_t id;
};
}  // namespace

void order_candidates(const float* scores, const std::int32_t* ids, std::int64_t n,
                      float* out_scores, std::int64_t* out_ids) {
  AlignedBuffer<Candidate> all(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) all.data()[i] = {scores[i], ids[i]};
  std::sort(all.data(), all.data() + n, [](const Candidate& a, const Candidate& b) {
    return a.score != b.score ? a.score > b.score : a.id < b.id;
  });
  for (std::int64_t i = 0; i < n; ++i) {
    out_scores[i] = all.data()[i].score;
    out_ids[i] = all.data()[i].id;
  }
}

}  // namespace seqrec
