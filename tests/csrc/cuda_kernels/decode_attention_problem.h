// SPDX-License-Identifier: Apache-2.0
// Decode attention against a plain loop; each buffer is as long as it must be, so that the address
// sanitizer sees a step beyond.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "../check.h"
#include "cuda/decode_attention.h"

namespace decode_test {

using namespace seqrec::cuda;

/// What runs, and faults: what is too short, offsets that are not the true ones.
struct Decode {
  void (*attend)(const DecodeAttention&, Number, cudaStream_t) = &launch_decode_attention;
  void (*merge)(const DecodeAttention&, Number, cudaStream_t) = &launch_decode_attention_merge;
  std::size_t out_lacking = 0, parts_lacking = 0, keys_lacking = 0;
  std::vector<std::int64_t> lies;  // nothing is compared
};

template <typename T>
std::vector<T> numbers(std::size_t count, std::mt19937& random) {
  std::normal_distribution<float> draw;
  std::vector<T> found;
  for (std::size_t i = 0; i < count; ++i) found.push_back(from_float<T>(draw(random)));
  return found;
}

/// Caches end to end where `page_tokens` is 0, else in pages.
template <typename T>
void decode(Number number, const std::vector<std::int64_t>& lengths, std::int64_t heads,
            std::int64_t width, std::int64_t page_tokens, unsigned seed, const Decode& how = {}) {
  std::mt19937 random(seed);
  const std::int64_t rows = static_cast<std::int64_t>(lengths.size());
  std::vector<std::int64_t> offsets{0};
  std::vector<std::int32_t> table;
  std::int64_t row_pages = 0, pages = 0;
  for (const std::int64_t length : lengths) {
    offsets.push_back(offsets.back() + length);
    if (page_tokens != 0) row_pages = std::max(row_pages, (length + page_tokens - 1) / page_tokens);
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < row_pages; ++i) {
      table.push_back(i * page_tokens < lengths[row] ? static_cast<std::int32_t>(pages++) : -1);
    }
  }
  const std::int64_t tokens = page_tokens == 0 ? offsets.back() : pages * page_tokens;
  const auto q = numbers<T>(rows * heads * width, random),
             keys = numbers<T>(tokens * heads * width, random),
             values = numbers<T>(tokens * heads * width, random);
  const std::vector<T> table_of_keys(keys.begin(), keys.end() - how.keys_lacking);
  const DecodePlan plan =
      plan_decode_attention(rows, heads, width, page_tokens == 0 ? tokens : row_pages * page_tokens,
                            page_tokens != 0, sizeof(T), 4);
  CHECK(plan.fits);
  std::vector<T> out(rows * heads * width - how.out_lacking);
  std::vector<float> parts(plan.parts * (width + 2) - how.parts_lacking);
  const std::int64_t token = heads * width;
  DecodeAttention p{};
  p.q = {q.data(), 0, token, width};
  p.keys = {table_of_keys.data(), page_tokens * token, token, width};
  p.values = {values.data(), page_tokens * token, token, width};
  p.offsets = page_tokens != 0 ? nullptr : how.lies.empty() ? offsets.data() : how.lies.data();
  p.lengths = lengths.data();
  p.page_table = table.data();
  p.table_row = p.row_pages = row_pages;
  p.page_tokens = page_tokens;
  p.pages = pages;
  p.rows = rows;
  p.heads = heads;
  p.width = width;
  p.tokens = page_tokens == 0 ? tokens : 0;
  p.scale = 0.25f;
  p.out = out.data();
  p.parts = parts.data();
  p.vectors = width * sizeof(T) % 16 == 0;
  p.chunk = plan.chunk;
  p.slots = plan.slots;
  p.pieces = plan.pieces;
  how.attend(p, number, nullptr);
  if (plan.parts != 0) how.merge(p, number, nullptr);
  if (!how.lies.empty()) return;

  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      std::vector<double> sums(width);
      double total = 0.0;
      for (std::int64_t i = 0; i < lengths[row]; ++i) {
        const std::int64_t at =
            page_tokens == 0
                ? offsets[row] + i
                : table[row * row_pages + i / page_tokens] * page_tokens + i % page_tokens;
        double score = 0.0;
        for (std::int64_t c = 0; c < width; ++c) {
          score += static_cast<double>(to_float(q[(row * heads + head) * width + c])) *
                   to_float(keys[(at * heads + head) * width + c]);
        }
        const double weight = std::exp(0.25 * score);
        total += weight;
        for (std::int64_t c = 0; c < width; ++c) {
          sums[c] += weight * to_float(values[(at * heads + head) * width + c]);
        }
      }
      for (std::int64_t c = 0; c < width; ++c) {
        const double exact = total > 0.0 ? sums[c] / total : 0.0;
        const double found = to_float(out[(row * heads + head) * width + c]);
        CHECK(std::abs(found - exact) <= (sizeof(T) == 4 ? 1e-5 : 2e-2));
      }
    }
  }
}

}  // namespace decode_test
