// SPDX-License-Identifier: Apache-2.0
#include "cuda/embedding.h"

#include <stdexcept>

#include "cuda/binding/binding.h"

namespace seqrec {
namespace cuda {
namespace {

bool aligned(Address a, Address b, Address c) { return (a | b | c) % 16 == 0; }

void embed(Address table, Address ids, Address position_table, Address offsets, Address out,
           std::int64_t tokens, std::int64_t items, std::int64_t rows, std::int64_t positions,
           std::int64_t dim, Address seed, double p, int number, Address stream) {
  const auto type = static_cast<Number>(number);
  EmbeddingGather g{};
  g.batch = {at<const std::int64_t>(ids),
             at<const std::int64_t>(offsets),
             tokens,
             items,
             rows,
             positions,
             dim,
             make_dropout(at<const std::int64_t>(seed), p)};
  g.plan = plan_embedding(tokens, dim, rows, positions, static_cast<int>(element_bytes(type)),
                          aligned(table, position_table, out), false);
  g.table = at<const void>(table);
  g.position_table = offsets == 0 ? nullptr : at<const void>(position_table);
  g.out = at<void>(out);
  launch_embedding_gather(g, type, stream_at(stream));
}

/// Floats of scratch memory that the sums need.
std::int64_t scratch_size(std::int64_t tokens, std::int64_t dim, std::int64_t rows,
                          std::int64_t positions, bool ordered) {
  return plan_embedding(tokens, dim, rows, positions, 4, false, ordered).scratch;
}

void embed_backward(Address gradient, Address ids, Address sorted_ids, Address sorted_tokens,
                    Address offsets, Address d_table, Address d_positions, Address scratch,
                    std::int64_t size, std::int64_t tokens, std::int64_t items, std::int64_t rows,
                    std::int64_t positions, std::int64_t dim, Address seed, double p, int number,
                    Address stream) {
  const auto type = static_cast<Number>(number);
  const bool ordered = sorted_ids != 0;
  EmbeddingScatter s{};
  s.batch = {at<const std::int64_t>(ids),
             at<const std::int64_t>(offsets),
             tokens,
             items,
             rows,
             positions,
             dim,
             make_dropout(at<const std::int64_t>(seed), p)};
  s.plan = plan_embedding(tokens, dim, rows, positions, static_cast<int>(element_bytes(type)),
                          false, ordered);
  if (size < s.plan.scratch) {
    throw std::invalid_argument("embedding: the scratch memory does not fit the problem");
  }
  if (!ordered && type != Number::kFloat32 && tokens != 0) {
    throw std::invalid_argument("embedding: atomic additions are of float32 alone");
  }
  s.gradient = at<const void>(gradient);
  s.sorted_ids = at<const std::int64_t>(sorted_ids);
  s.sorted_tokens = at<const std::int64_t>(sorted_tokens);
  s.d_table = at<void>(d_table);
  s.d_positions = at<void>(d_positions);
  s.scratch = at<float>(scratch);
  launch_embedding_scatter(s, type, stream_at(stream));
  if (offsets != 0) launch_embedding_positions(s, type, stream_at(stream));
}

}  // namespace

void bind_embedding(py::module_& m) {
  m.def("embed", &embed);
  m.def("embed_scratch_size", &scratch_size);
  m.def("embed_backward", &embed_backward);
}

}  // namespace cuda
}  // namespace seqrec
