// SPDX-License-Identifier: Apache-2.0
// Matrices arrive as addresses; seqrec_fast.ops.dropout has checked their types and sizes.
#include "ops/dropout.h"

#include "base/thread_pool.h"
#include "binding/binding.h"

namespace seqrec {
namespace {

void bound_dropout(Address x, Address out, std::int64_t rows, std::int64_t columns,
                   std::uint64_t seed, double p) {
  const ReleasedLock release;
  dropout({at<const float>(x), at<float>(out), columns, make_dropout(seed, p)}, rows,
          get_num_threads(), kernels());
}

}  // namespace

void bind_dropout(py::module_& m) { m.def("dropout", &bound_dropout); }

}  // namespace seqrec
