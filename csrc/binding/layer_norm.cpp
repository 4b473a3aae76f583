// SPDX-License-Identifier: Apache-2.0
// Matrices arrive as addresses; seqrec_fast.ops.layer_norm has checked their types and sizes.
#include "ops/layer_norm.h"

#include "base/thread_pool.h"
#include "binding/binding.h"
#include "ops/dropout.h"

namespace seqrec {
namespace {

void bound_layer_norm(Address x, Address residual, Address weight, Address bias, Address sum,
                      Address out, Address mean, Address rstd, std::int64_t rows, std::int64_t dim,
                      float eps, std::uint64_t seed, double p) {
  const ReleasedLock release;
  layer_norm({at<const float>(x), at<const float>(residual), at<const float>(weight),
              at<const float>(bias), at<float>(sum), at<float>(out), at<float>(mean),
              at<float>(rstd), dim, eps, make_dropout(seed, p)},
             rows, get_num_threads(), kernels());
}

void bound_layer_norm_backward(Address d_out, Address d_sum, Address sum, Address mean,
                               Address rstd, Address weight, Address d_residual, Address dx,
                               Address d_weight, Address d_bias, std::int64_t rows,
                               std::int64_t dim, std::uint64_t seed, double p) {
  const ReleasedLock release;
  layer_norm_backward({at<const float>(d_out), at<const float>(d_sum), at<const float>(sum),
                       at<const float>(mean), at<const float>(rstd), at<const float>(weight),
                       at<float>(d_residual), at<float>(dx), dim, make_dropout(seed, p)},
                      rows, at<float>(d_weight), at<float>(d_bias), get_num_threads(), kernels());
}

}  // namespace

void bind_layer_norm(py::module_& m) {
  m.def("layer_norm", &bound_layer_norm);
  m.def("layer_norm_backward", &bound_layer_norm_backward);
}

}  // namespace seqrec
