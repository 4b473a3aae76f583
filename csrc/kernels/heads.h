// SPDX-License-Identifier: Apache-2.0
// Queries, keys and values of several heads, seen where they lie.
#pragma once

#include <cstddef>
#include <cstdint>

namespace seqrec {

/// A tensor [tokens, heads, width] whose last dimension is contiguous.
template <typename T>
struct HeadsView {
  T* data;
  std::ptrdiff_t token;  // floats from one token to the next
  std::ptrdiff_t head;   // floats from one head to the next

  T* at(std::int64_t t, std::int64_t h) const { return data + t * token + h * head; }
};

}  // namespace seqrec
