// SPDX-License-Identifier: Apache-2.0
// Plans of decode attention on the devices that the project builds for: blocks fit, and their
// chunks cover every cache.
#include <cstdio>
#include <initializer_list>

#include "cards.h"
#include "cuda/decode_attention_plan.h"

using namespace seqrec::cuda;

namespace {

int plans = 0, shared_out = 0, failed = 0;

void check(const Card& card, std::int64_t rows, std::int64_t heads, std::int64_t width,
           std::int64_t tokens, bool paged, int element) {
  const auto wrong = [&](const char* what) {
    ++failed;
    std::printf("%s: %s: %d rows, %d heads, %d x %d bytes, %d tokens\n", card.name, what,
                static_cast<int>(rows), static_cast<int>(heads), static_cast<int>(width), element,
                static_cast<int>(tokens));
  };
  const DecodePlan plan =
      plan_decode_attention(rows, heads, width, tokens, paged, element, card.multiprocessors);
  if (!plan.fits) return wrong("no plan");
  ++plans;
  if (plan.pieces * 16 * kDecodeLanes < width * element) wrong("pieces do not cover a head");
  if (plan.pieces > (element == 4 ? kDecodeMostPieces : kDecodeMostPieces / 2)) {
    wrong("more pieces than there are kernels for");
  }
  // a block needs what its threads hold at the end: sums, totals, maxima of four warps
  const std::size_t shared = decode_shared_bytes(plan.pieces, element);
  const int blocks = resident_blocks(card, kDecodeThreads, most_registers(kDecodeThreads, 1),
                                     kDecodeThreads, shared);
  if (blocks < 2) wrong("a multiprocessor holds fewer than two blocks");
  if (plan.parts == 0) {
    if (plan.slots != rows || plan.chunk < tokens) wrong("a cache is cut, and nobody joins it");
    return;
  }
  ++shared_out;
  if (plan.chunk % kDecodeLeastChunk != 0) wrong("a chunk leaves lanes without work");
  const std::int64_t most =
      paged ? plan.slots / rows * plan.chunk : (plan.slots - rows + 1) * plan.chunk;
  if (most < tokens) wrong("chunks do not cover a cache");
  if (plan.parts != plan.slots * heads) wrong("parts are not one a block");
}

}  // namespace

int main() {
  for (const Card& card : kCards) {
    for (const int element : {2, 4}) {
      for (std::int64_t width = 1; width <= kDecodeMostWidth; ++width) {
        for (const std::int64_t rows : {1, 3, 64, 4096}) {
          for (const std::int64_t heads : {1, 2, 12}) {
            for (const std::int64_t tokens : {0, 1, 63, 64, 65, 200, 100000}) {
              check(card, rows, heads, width, tokens, true, element);
              check(card, rows, heads, width, tokens, false, element);
            }
          }
        }
      }
    }
  }
  std::printf("%d plans, %d in chunks, %d failed\n", plans, shared_out, failed);
  return failed == 0 && shared_out > 0 ? 0 : 1;
}
