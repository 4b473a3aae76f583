// SPDX-License-Identifier: Apache-2.0
// How decode attention is cut into blocks: arithmetic of the host alone.
//
// A block takes one row, one head and a run of cached tokens: all of them where there are rows and
// heads enough to keep the device busy, else a chunk, whose results a second launch puts together.
// How long a row's cache is only the device knows: the number of blocks is an upper bound by the
// shapes, and a block that has nothing to do leaves.
#pragma once

#include <cstdint>

namespace seqrec {
namespace cuda {

inline constexpr int kDecodeThreads = 128;
inline constexpr int kDecodeLanes = 8;        // that share a key: 8 times 16 bytes, a cache line
inline constexpr int kDecodeLeastChunk = 64;  // tokens: four for each eight lanes of a block
inline constexpr int kDecodeMostPieces = 8;   // of 128 bytes, in a row of float32
inline constexpr int kDecodeMostWidth = 256;  // numbers of a head
inline constexpr std::int64_t kDecodeWhole = std::int64_t{1} << 40;  // a chunk that is never full

/// Bytes of shared memory of a block: of each warp the sums, their total and the maximum.
constexpr int decode_shared_bytes(int pieces, int element) {
  return 4 * kDecodeThreads / 32 * (pieces * 16 / element * kDecodeLanes + 2);
}

struct DecodePlan {
  bool fits;           // whether the kernels can run
  int pieces;          // of 128 bytes, that a head has: 1, 2, 4 or 8
  std::int64_t chunk;  // tokens of a block
  std::int64_t slots;  // blocks of each head
  std::int64_t parts;  // results to be put together, of [width + 2]; 0 where there is one launch
};

/// Args:
///   tokens: of all caches end to end, or, where the caches are in pages, places of one row.
///   paged: which of the two.
///   element: bytes of a number: 4 or 2.
inline DecodePlan plan_decode_attention(std::int64_t rows, std::int64_t heads, std::int64_t width,
                                        std::int64_t tokens, bool paged, int element,
                                        int multiprocessors) {
  DecodePlan plan{};
  if (width < 1 || width > kDecodeMostWidth) return plan;
  plan.pieces = 1;
  while (plan.pieces * 16 * kDecodeLanes < width * element) plan.pieces *= 2;

  constexpr std::int64_t kBlocks = 4;  // of a multiprocessor, to hide the latency of memory
  const std::int64_t lines = rows * heads, all = paged ? rows * tokens : tokens;
  plan.chunk = kDecodeWhole;
  plan.slots = rows;
  if (lines < 2 * multiprocessors) {
    const std::int64_t wanted = all * heads / (kBlocks * multiprocessors);
    const std::int64_t chunk = (wanted + kDecodeLeastChunk) / kDecodeLeastChunk * kDecodeLeastChunk;
    if (chunk < tokens) {
      plan.chunk = chunk;
      // in a jagged cache row r has the slots from offsets[r] / chunk + r on
      plan.slots = paged ? rows * ((tokens + chunk - 1) / chunk) : tokens / chunk + rows;
      plan.parts = plan.slots * heads;
    }
  }
  plan.fits = plan.slots * heads < (std::int64_t{1} << 31);
  return plan;
}

}  // namespace cuda
}  // namespace seqrec
