// SPDX-License-Identifier: Apache-2.0
// Decode attention of every type, on caches end to end and in pages.
#include "decode_attention_problem.h"

using namespace decode_test;

#ifndef SEQREC_SHIM_THREADS  // which would take minutes

TEST(decode_attention_end_to_end) {
  decode<float>(Number::kFloat32, {0, 1, 70, 20, 3, 17, 5, 9, 40}, 1, 12, 0, 1);
  decode<Half>(Number::kHalf, {150, 0, 3}, 2, 8, 0, 2);
  decode<BFloat16>(Number::kBFloat16, {200}, 1, 70, 0, 3);
}

TEST(decode_attention_pages) {
  decode<float>(Number::kFloat32, {130, 1, 0}, 1, 33, 7, 4);
  decode<BFloat16>(Number::kBFloat16, {20, 33, 1, 16, 0, 5, 6, 7, 8}, 1, 16, 16, 5);
}

/// The host does not look at offsets: whatever they say, only what exists is touched.
TEST(decode_attention_offsets_that_lie) {
  Decode how;
  for (const std::int64_t far : {std::int64_t{1} << 20, std::int64_t{1} << 40}) {
    how.lies = {-far, 60, far, 5};
    decode<float>(Number::kFloat32, {70, 30, 20}, 1, 8, 0, 8, how);
    how.lies = {40, -far, 100, -1};
    decode<float>(Number::kFloat32, {70, 30, 20}, 1, 8, 0, 8, how);
  }
}

#endif

TEST(decode_attention_small) {
  decode<float>(Number::kFloat32, {70, 3}, 1, 5, 0, 6);
  decode<Half>(Number::kHalf, {66}, 1, 8, 4, 7);
}
