// SPDX-License-Identifier: Apache-2.0
#include "ops/hstu_attention.h"

#include "binding/binding.h"

namespace seqrec {
namespace {

// For callers that hold tensors: addresses and sizes that they have checked. The shape is tokens,
// rows, heads, width, distances, buckets; the tables are the addresses of offsets, bias, time_bias,
// times and time_bounds.
using Sizes =
    std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
using Tables = std::tuple<Address, Address, Address, Address, Address>;

HstuAttentionInput input_of(const View& q, const View& k, const View& v, const Sizes& sizes,
                            const Tables& tables, bool causal, float scale, float normaliser) {
  HstuAttentionInput in{};
  in.q = heads_at<const float>(q);
  in.k = heads_at<const float>(k);
  in.v = heads_at<const float>(v);
  std::tie(in.tokens, in.rows, in.heads, in.width, in.distances, in.buckets) = sizes;
  in.offsets = at<const std::int64_t>(std::get<0>(tables));
  in.bias = at<const float>(std::get<1>(tables));
  in.time_bias = at<const float>(std::get<2>(tables));
  in.times = at<const std::int64_t>(std::get<3>(tables));
  in.time_bounds = at<const std::int64_t>(std::get<4>(tables));
  in.causal = causal;
  in.scale = scale;
  in.normaliser = normaliser;
  return in;
}

void bound_forward(const View& q, const View& k, const View& v, const Sizes& sizes,
                   const Tables& tables, bool causal, float scale, float normaliser, Address out,
                   int threads) {
  const KernelTable& table = kernels();
  const HstuAttentionInput in = input_of(q, k, v, sizes, tables, causal, scale, normaliser);
  const ReleasedLock release;
  hstu_attention(in, at<float>(out), thread_count(threads), table);
}

void bound_backward(const View& d_out, const View& q, const View& k, const View& v,
                    const Sizes& sizes, const Tables& tables, bool causal, float scale,
                    float normaliser,
                    const std::tuple<Address, Address, Address, Address, Address>& outputs,
                    int threads) {
  const KernelTable& table = kernels();
  const HstuAttentionInput in = input_of(q, k, v, sizes, tables, causal, scale, normaliser);
  const HstuAttentionOutput out{at<float>(std::get<0>(outputs)), at<float>(std::get<1>(outputs)),
                                at<float>(std::get<2>(outputs)), at<float>(std::get<3>(outputs)),
                                at<float>(std::get<4>(outputs))};
  const ReleasedLock release;
  hstu_attention_backward(in, heads_at<const float>(d_out), out, thread_count(threads), table);
}

}  // namespace

void bind_hstu_attention(py::module_& m) {
  m.def("hstu_attention", &bound_forward, py::arg("q"), py::arg("k"), py::arg("v"),
        py::arg("sizes"), py::arg("tables"), py::arg("causal"), py::arg("scale"),
        py::arg("normaliser"), py::arg("out"), py::arg("threads") = 0);
  m.def("hstu_attention_backward", &bound_backward, py::arg("d_out"), py::arg("q"), py::arg("k"),
        py::arg("v"), py::arg("sizes"), py::arg("tables"), py::arg("causal"), py::arg("scale"),
        py::arg("normaliser"), py::arg("outputs"), py::arg("threads") = 0);
}

}  // namespace seqrec
