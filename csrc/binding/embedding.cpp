// SPDX-License-Identifier: Apache-2.0
// Matrices arrive as addresses; seqrec_fast.ops.embedding has checked their types and sizes. What
// the numbers in them point at is checked by the operation.
#include "ops/embedding.h"

#include "base/thread_pool.h"
#include "binding/binding.h"
#include "ops/dropout.h"

namespace seqrec {
namespace {

void bound_embed(Address weight, Address ids, Address position_weight, Address offsets, Address out,
                 std::int64_t tokens, std::int64_t items, std::int64_t rows, std::int64_t positions,
                 std::int64_t dim, std::uint64_t seed, double p) {
  const ReleasedLock release;
  embed({at<const std::int64_t>(ids), tokens, items, at<const std::int64_t>(offsets), rows,
         positions, dim, make_dropout(seed, p)},
        at<const float>(weight), at<const float>(position_weight), at<float>(out),
        get_num_threads(), kernels());
}

void bound_embed_backward(Address gradient, Address ids, Address offsets, Address d_weight,
                          Address d_positions, std::int64_t tokens, std::int64_t items,
                          std::int64_t rows, std::int64_t positions, std::int64_t dim,
                          std::uint64_t seed, double p) {
  const ReleasedLock release;
  embed_backward({at<const std::int64_t>(ids), tokens, items, at<const std::int64_t>(offsets), rows,
                  positions, dim, make_dropout(seed, p)},
                 at<const float>(gradient), at<float>(d_weight), at<float>(d_positions),
                 get_num_threads(), kernels());
}

}  // namespace

void bind_embedding(py::module_& m) {
  m.def("embed", &bound_embed);
  m.def("embed_backward", &bound_embed_backward);
}

}  // namespace seqrec
