// SPDX-License-Identifier: Apache-2.0
// Rows of a table by their numbers, with a second table added (positions) and dropout; and the sum
// of gradients into the rows that were taken.
//
// A thread adds into its own range of rows and looks at every number for that: reading a number is
// nothing beside adding a row, no two threads write the same place, and every row gets its
// gradients in the order of the tokens, so that the sum does not depend on the threads.
#pragma once

#include "kernels/dropout.h"
#include "kernels/embedding_types.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W>
struct Embedding {
  using F = Floats<W>;

  template <bool kOther, bool kDropout>
  static SEQREC_INLINE void gather_rows(const EmbeddingGather& p, std::int64_t first_token,
                                        std::int64_t end_token) {
    const std::int64_t dim = p.dim;
    for (std::int64_t t = first_token; t < end_token; ++t) {
      const float* row = p.table + p.ids[t] * dim;
      const float* other = kOther ? p.other + p.other_ids[t] * dim : nullptr;
      float* out = p.out + t * dim;
      const DropoutRow<W> drop(p.dropout, t);
      std::int64_t j = 0;
      for (; j + W <= dim; j += W) {
        F x = load<W>(row + j);
        if constexpr (kOther) x += load<W>(other + j);
        if constexpr (kDropout) x *= drop.factors(j);
        store<W>(out + j, x);
      }
      if (j < dim) {
        F x = load_part<W>(row + j, dim - j);
        if constexpr (kOther) x += load_part<W>(other + j, dim - j);
        if constexpr (kDropout) x *= drop.factors(j);
        store_part<W>(out + j, x, dim - j);
      }
    }
  }

  static SEQREC_NOINLINE void gather(const EmbeddingGather& p, std::int64_t first_token,
                                     std::int64_t end_token) {
    const bool drops = p.dropout.threshold > 0;
    if (p.other == nullptr) {
      return drops ? gather_rows<false, true>(p, first_token, end_token)
                   : gather_rows<false, false>(p, first_token, end_token);
    }
    return drops ? gather_rows<true, true>(p, first_token, end_token)
                 : gather_rows<true, false>(p, first_token, end_token);
  }

  template <bool kDropout>
  static SEQREC_INLINE void scatter_rows(const EmbeddingScatter& p, std::int64_t first_id,
                                         std::int64_t end_id) {
    const std::int64_t dim = p.dim;
    for (std::int64_t t = 0; t < p.tokens; ++t) {
      const std::int64_t id = p.ids[t];
      if (id < first_id || id >= end_id) continue;
      const float* gradient = p.gradient + t * dim;
      float* sum = p.d_table + id * dim;
      const DropoutRow<W> drop(p.dropout, t);
      std::int64_t j = 0;
      for (; j + W <= dim; j += W) {
        F g = load<W>(gradient + j);
        if constexpr (kDropout) g *= drop.factors(j);
        store<W>(sum + j, load<W>(sum + j) + g);
      }
      if (j < dim) {
        F g = load_part<W>(gradient + j, dim - j);
        if constexpr (kDropout) g *= drop.factors(j);
        store_part<W>(sum + j, load_part<W>(sum + j, dim - j) + g, dim - j);
      }
    }
  }

  static SEQREC_NOINLINE void scatter(const EmbeddingScatter& p, std::int64_t first_id,
                                      std::int64_t end_id) {
    return p.dropout.threshold > 0 ? scatter_rows<true>(p, first_id, end_id)
                                   : scatter_rows<false>(p, first_id, end_id);
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
