// SPDX-License-Identifier: Apache-2.0
// Matrices arrive as addresses; seqrec_fast.ops.feed_forward has checked their types and sizes.
#include "ops/feed_forward.h"

#include "base/thread_pool.h"
#include "binding/binding.h"
#include "ops/dropout.h"

namespace seqrec {
namespace {

FeedForwardProblem problem_of(Address x, Address up_weight, Address up_bias, Address down_weight,
                              Address down_bias, std::int64_t rows, std::int64_t inputs,
                              std::int64_t inner, std::int64_t outputs, int activation,
                              std::uint64_t seed, double p) {
  return {at<const float>(x),
          at<const float>(up_weight),
          at<const float>(up_bias),
          at<const float>(down_weight),
          at<const float>(down_bias),
          rows,
          inputs,
          outputs,
          {static_cast<Activation>(activation), make_dropout(seed, p), inner}};
}

void bound_feed_forward(Address x, Address up_weight, Address up_bias, Address down_weight,
                        Address down_bias, Address z, Address y, std::int64_t rows,
                        std::int64_t inputs, std::int64_t inner, std::int64_t outputs,
                        int activation, std::uint64_t seed, double p) {
  const ReleasedLock release;
  const FeedForwardProblem problem = problem_of(x, up_weight, up_bias, down_weight, down_bias, rows,
                                                inputs, inner, outputs, activation, seed, p);
  feed_forward(problem, at<float>(z), at<float>(y), get_num_threads(), kernels());
}

void bound_feed_forward_backward(Address x, Address up_weight, Address down_weight, Address z,
                                 Address dy, Address dx, Address d_up_weight, Address d_up_bias,
                                 Address d_down_weight, Address d_down_bias, std::int64_t rows,
                                 std::int64_t inputs, std::int64_t inner, std::int64_t outputs,
                                 int activation, std::uint64_t seed, double p) {
  const ReleasedLock release;
  const FeedForwardProblem problem = problem_of(x, up_weight, 0, down_weight, 0, rows, inputs,
                                                inner, outputs, activation, seed, p);
  feed_forward_backward(problem, at<const float>(z), at<const float>(dy),
                        {at<float>(dx), at<float>(d_up_weight), at<float>(d_up_bias),
                         at<float>(d_down_weight), at<float>(d_down_bias)},
                        get_num_threads(), kernels());
}

}  // namespace

void bind_feed_forward(py::module_& m) {
  m.def("feed_forward", &bound_feed_forward);
  m.def("feed_forward_backward", &bound_feed_forward_backward);
}

}  // namespace seqrec
