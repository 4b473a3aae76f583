// SPDX-License-Identifier: Apache-2.0
#include "ops/cross_entropy.h"

#include <stdexcept>
#include <string>

#include "binding/binding.h"

namespace seqrec {
namespace {

/// Items are read by these numbers, so that none may be wrong.
void check_items(const char* name, const std::int64_t* ids, std::int64_t count,
                 std::int64_t items) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= items) {
      throw std::invalid_argument(std::string(name) + ": must be items 0 to " +
                                  std::to_string(items - 1) + ", found " + std::to_string(ids[i]));
    }
  }
}

/// For callers that hold tensors: addresses and sizes that they have checked; 0 is none.
float bound_cross_entropy(Address hidden, Address weight, Address bias, Address targets,
                          Address token_weights, std::int64_t tokens, std::int64_t items,
                          std::int64_t dim, Address samples, std::int64_t num_samples,
                          Address log_q_samples, Address log_q_targets, Address d_hidden,
                          Address d_weight, Address d_bias, int threads) {
  const KernelTable& table = kernels();
  const ReleasedLock release;
  const CrossEntropyProblem problem{at<const float>(hidden),
                                    at<const float>(weight),
                                    at<const float>(bias),
                                    at<const std::int64_t>(targets),
                                    at<const float>(token_weights),
                                    tokens,
                                    items,
                                    dim,
                                    at<const std::int64_t>(samples),
                                    num_samples,
                                    at<const float>(log_q_samples),
                                    at<const float>(log_q_targets)};
  check_items("targets", problem.targets, tokens, items);
  check_items("negatives", problem.samples, num_samples, items);
  const CrossEntropyGradients gradients{at<float>(d_hidden), at<float>(d_weight),
                                        at<float>(d_bias)};
  return cross_entropy(problem, gradients, thread_count(threads), table);
}

}  // namespace

void bind_cross_entropy(py::module_& m) {
  m.def("cross_entropy", &bound_cross_entropy, py::arg("hidden"), py::arg("weight"),
        py::arg("bias"), py::arg("targets"), py::arg("token_weights"), py::arg("tokens"),
        py::arg("items"), py::arg("dim"), py::arg("samples"), py::arg("num_samples"),
        py::arg("log_q_samples"), py::arg("log_q_targets"), py::arg("d_hidden"),
        py::arg("d_weight"), py::arg("d_bias"), py::arg("threads") = 0);
}

}  // namespace seqrec
