// SPDX-License-Identifier: Apache-2.0
// What a search through lists of items needs beside the scan of bytes: which lists to visit.
//
// Centres of lists are a table of bytes as well. Their scores only order the lists, so estimates
// without bounds are enough.
#pragma once

#include "kernels/topk_int8.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W>
struct TopkLists : TopkInt8<W> {
  using typename TopkInt8<W>::F;
  using TopkInt8<W>::kVectors;
  using TopkInt8<W>::kKnowsVnni;

  /// Estimates of the scores of all places of a table.
  template <bool kVnni, std::int64_t kQuads>
  static SEQREC_NOINLINE void estimate_all(const Int8Items& t, const Int8Query& query,
                                           float* scores) {
    const std::int64_t quads = kQuads > 0 ? kQuads : t.quads;
    const typename TopkInt8<W>::template Factors<kQuads> factors(query);
    const std::uint8_t* block = t.blocks;
    for (std::int64_t b = 0; b < t.num_blocks; ++b, block += t.block_bytes) {
      F score[kVectors];
      TopkInt8<W>::template upper_bounds<kVnni, false, kQuads>(block, quads, factors, 0.0f, score);
      for (int v = 0; v < kVectors; ++v) store<W>(scores + b * kInt8Rows + v * W, score[v]);
    }
  }

  template <bool kVnni>
  static void estimate_of(const Int8Items& t, const Int8Query& query, float* scores) {
    if (t.quads == 16) return estimate_all<kVnni, 16>(t, query, scores);
    estimate_all<kVnni, 0>(t, query, scores);
  }

  static void estimate(const Int8Items& t, const Int8Query& query, bool vnni, float* scores) {
    if (vnni && kKnowsVnni) return estimate_of<kKnowsVnni>(t, query, scores);
    estimate_of<false>(t, query, scores);
  }

  /// Raises the threshold to what the candidates allow by now, and drops what cannot reach it.
  static void tighten(const TopkProblem& p, TopkState& s, std::int64_t q) {
    TopkInt8<W>::drop_hopeless(p, s, q);
  }

  /// The k-th best of `count >= k` scores, behind which -inf fills up a multiple of kTopkPad.
  static float kth(const float* scores, std::int64_t count, std::int64_t k) {
    return kth_score<W>(scores, count, k).value;
  }

  /// The places of all scores that are at least `least`, ascending; returns their number.
  static std::int64_t reaching(const float* scores, std::int64_t count, float least,
                               std::int32_t* places) {
    std::int64_t found = 0;
    const F need = broadcast<W>(least);
    std::int64_t i = 0;
    for (; i + W <= count; i += W) {
      std::uint32_t bits = lane_bits<W>(load<W>(scores + i) >= need);
      for (; bits; bits &= bits - 1) {
        places[found++] = static_cast<std::int32_t>(i) + __builtin_ctz(bits);
      }
    }
    for (; i < count; ++i) {
      if (scores[i] >= least) places[found++] = static_cast<std::int32_t>(i);
    }
    return found;
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
