// SPDX-License-Identifier: Apache-2.0
// The embedding kernels, by atomic additions and in the order of ids.
#include "embedding_batch.h"

using namespace embedding_test;

TEST(embedding_atomic) { check_embedding<float>(Number::kFloat32, 33, false); }
TEST(embedding_ordered) { check_embedding<float>(Number::kFloat32, 7, true); }
TEST(embedding_half) { check_embedding<Half>(Number::kHalf, 8, true); }

/// The host does not look at offsets: whatever they say, only what exists is touched.
TEST(embedding_offsets_that_lie) {
  Embedding how;
  for (const std::int64_t far : {std::int64_t{90}, std::int64_t{1} << 40}) {
    how.lies = {-far, 3, far, -5, 44, far};
    check_embedding<float>(Number::kFloat32, 5, true, how);
  }
}
