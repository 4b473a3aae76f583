// SPDX-License-Identifier: Apache-2.0
// For callers that hold arrays or tensors: addresses, sizes and strides that they have checked.
#include "ops/attention.h"

#include <tuple>

#include "binding/binding.h"

namespace seqrec {
namespace {

AttentionProblem problem_of(const View& q, const View& k, const View& v, Address offsets,
                            std::int64_t tokens, std::int64_t rows, std::int64_t count,
                            std::int64_t width, double scale, bool causal) {
  return {heads_at<const float>(q),
          heads_at<const float>(k),
          heads_at<const float>(v),
          at<const std::int64_t>(offsets),
          tokens,
          rows,
          count,
          width,
          scale,
          causal};
}

AttentionStatistics statistics_of(Address address, std::int64_t size) {
  float* first = at<float>(address);
  return {first, first + size};
}

void bound_attention(const View& q, const View& k, const View& v, Address offsets,
                     std::int64_t tokens, std::int64_t rows, std::int64_t count, std::int64_t width,
                     double scale, bool causal, const View& out, Address statistics, int threads) {
  const KernelTable& table = kernels();
  const AttentionProblem p =
      problem_of(q, k, v, offsets, tokens, rows, count, width, scale, causal);
  const HeadsView<float> to = heads_at<float>(out);
  const ReleasedLock release;
  attention(p, to, statistics_of(statistics, tokens * count), thread_count(threads), table);
}

void bound_backward(const View& q, const View& k, const View& v, Address offsets,
                    std::int64_t tokens, std::int64_t rows, std::int64_t count, std::int64_t width,
                    double scale, bool causal, const View& out, const View& d_out,
                    Address statistics, const View& d_q, const View& d_k, const View& d_v,
                    int threads) {
  const KernelTable& table = kernels();
  const AttentionProblem p =
      problem_of(q, k, v, offsets, tokens, rows, count, width, scale, causal);
  const AttentionGradients gradients{heads_at<const float>(out), heads_at<const float>(d_out),
                                     heads_at<float>(d_q), heads_at<float>(d_k),
                                     heads_at<float>(d_v)};
  const ReleasedLock release;
  attention_backward(p, statistics_of(statistics, tokens * count), gradients, thread_count(threads),
                     table);
}

void bound_decode(const View& q, const View& keys, const View& values, Address offsets,
                  Address lengths, std::int64_t cached, std::int64_t rows, std::int64_t count,
                  std::int64_t width, double scale, const View& out, int threads) {
  const KernelTable& table = kernels();
  const DecodeProblem p{heads_at<const float>(q),
                        heads_at<const float>(keys),
                        heads_at<const float>(values),
                        at<const std::int64_t>(offsets),
                        at<const std::int64_t>(lengths),
                        rows,
                        count,
                        width,
                        scale};
  const HeadsView<float> to = heads_at<float>(out);
  const ReleasedLock release;
  decode_attention(p, cached, to, thread_count(threads), table);
}

}  // namespace

void bind_attention(py::module_& m) {
  m.def("attention", &bound_attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("offsets"),
        py::arg("tokens"), py::arg("rows"), py::arg("heads"), py::arg("width"), py::arg("scale"),
        py::arg("causal"), py::arg("out"), py::arg("statistics"), py::arg("threads") = 0);
  m.def("attention_backward", &bound_backward, py::arg("q"), py::arg("k"), py::arg("v"),
        py::arg("offsets"), py::arg("tokens"), py::arg("rows"), py::arg("heads"), py::arg("width"),
        py::arg("scale"), py::arg("causal"), py::arg("out"), py::arg("d_out"),
        py::arg("statistics"), py::arg("d_q"), py::arg("d_k"), py::arg("d_v"),
        py::arg("threads") = 0);
  m.def("decode_attention", &bound_decode, py::arg("q"), py::arg("keys"), py::arg("values"),
        py::arg("offsets"), py::arg("lengths"), py::arg("cached"), py::arg("rows"),
        py::arg("heads"), py::arg("width"), py::arg("scale"), py::arg("out"),
        py::arg("threads") = 0);
}

}  // namespace seqrec
