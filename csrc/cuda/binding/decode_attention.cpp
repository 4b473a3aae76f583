// SPDX-License-Identifier: Apache-2.0
#include "cuda/decode_attention.h"

#include <stdexcept>

#include "cuda/binding/binding.h"

namespace seqrec {
namespace cuda {
namespace {

/// Address, and numbers from one page, token (or row) and head to the next.
using View = std::tuple<Address, std::int64_t, std::int64_t, std::int64_t>;

DecodeView view_of(const View& view) {
  return {at<const void>(std::get<0>(view)), std::get<1>(view), std::get<2>(view),
          std::get<3>(view)};
}

DecodePlan plan_here(std::int64_t rows, std::int64_t heads, std::int64_t width, std::int64_t tokens,
                     bool paged, int number) {
  const int element = static_cast<Number>(number) == Number::kFloat32 ? 4 : 2;
  return plan_decode_attention(rows, heads, width, tokens, paged, element,
                               device_attribute(cudaDevAttrMultiProcessorCount));
}

/// Floats that the parts of the result take; -1 where the kernels cannot run.
std::int64_t parts_size(std::int64_t rows, std::int64_t heads, std::int64_t width,
                        std::int64_t tokens, bool paged, int number) {
  const DecodePlan plan = plan_here(rows, heads, width, tokens, paged, number);
  return plan.fits ? plan.parts * (width + 2) : -1;
}

/// Whether every row of a head begins and ends at a multiple of 16 bytes.
bool is_aligned(const View& view, std::int64_t element) {
  return std::get<0>(view) % 16 == 0 && std::get<1>(view) * element % 16 == 0 &&
         std::get<2>(view) * element % 16 == 0 && std::get<3>(view) * element % 16 == 0;
}

void decode(const View& q, const View& keys, const View& values, Address offsets, Address lengths,
            const std::tuple<Address, std::int64_t, bool>& page_table, std::int64_t row_pages,
            std::int64_t page_tokens, std::int64_t pages, std::int64_t rows, std::int64_t heads,
            std::int64_t width, std::int64_t tokens, double scale, int number, Address out,
            Address parts, std::int64_t size, Address stream) {
  const bool paged = offsets == 0;
  const std::int64_t places = paged ? row_pages * page_tokens : tokens;
  const DecodePlan plan = plan_here(rows, heads, width, places, paged, number);
  if (!plan.fits || size < plan.parts * (width + 2)) {
    throw std::invalid_argument("decode_attention: the parts do not fit the problem");
  }
  const std::int64_t element = static_cast<Number>(number) == Number::kFloat32 ? 4 : 2;
  DecodeAttention p{};
  p.q = view_of(q);
  p.keys = view_of(keys);
  p.values = view_of(values);
  p.offsets = at<const std::int64_t>(offsets);
  p.lengths = at<const std::int64_t>(lengths);
  p.page_table = at<const void>(std::get<0>(page_table));
  p.table_row = std::get<1>(page_table);
  p.wide = std::get<2>(page_table);
  p.row_pages = row_pages;
  p.page_tokens = page_tokens;
  p.pages = pages;
  p.rows = rows;
  p.heads = heads;
  p.width = width;
  p.tokens = tokens;
  p.scale = static_cast<float>(scale);
  p.out = at<void>(out);
  p.parts = at<float>(parts);
  p.vectors = width * element % 16 == 0 && is_aligned(q, element) && is_aligned(keys, element) &&
              is_aligned(values, element);
  p.chunk = plan.chunk;
  p.slots = plan.slots;
  p.pieces = plan.pieces;
  launch_decode_attention(p, static_cast<Number>(number), stream_at(stream));
  if (plan.parts != 0) {
    launch_decode_attention_merge(p, static_cast<Number>(number), stream_at(stream));
  }
}

}  // namespace

void bind_decode_attention(py::module_& m) {
  m.def("decode_attention_parts_size", &parts_size);
  m.def("decode_attention", &decode);
}

}  // namespace cuda
}  // namespace seqrec
