// SPDX-License-Identifier: Apache-2.0
// Decode attention again, each time with one thing left out.
#include <cmath>

#include "cuda/decode_attention.h"
#include "decode_attention_problem.h"
// behind them
#include "faults.h"

namespace seqrec {
namespace cuda {

[[maybe_unused]] static void faulty_attend(const DecodeAttention& problem, Number type,
                                           cudaStream_t stream);
[[maybe_unused]] static void faulty_merge(const DecodeAttention& problem, Number type,
                                          cudaStream_t stream);

}  // namespace cuda
}  // namespace seqrec

#define launch_decode_attention faulty_attend
#define launch_decode_attention_merge faulty_merge

namespace {
constexpr int kFirstBarrier = __COUNTER__ + 1;
}
#include "cuda/decode_attention.cu"
namespace {
constexpr int kBarriers = __COUNTER__ - kFirstBarrier;
}
static_assert(kBarriers == 1, "a test for each, below");

namespace {

using namespace decode_test;

// one type alone is compiled to code
void attend_halves(const DecodeAttention& p, Number, cudaStream_t stream) {
  start<Half, 1>(p, stream);
}
void merge_halves(const DecodeAttention& p, Number, cudaStream_t stream) { merge<Half>(p, stream); }

/// A cache that two blocks share, or one block has.
void without(int barrier, int length = 66, const Decode& how = {}) {
  left_out = barrier;
  Decode faulty = how;
  faulty.attend = &attend_halves, faulty.merge = &merge_halves;
  decode<Half>(Number::kHalf, {length}, 1, 8, 0, 7, faulty);
}

}  // namespace

TEST(decode_attention_nothing_left_out) {
  without(kNothing);
  without(kNothing, 20);
}

// before the sums of the warps are put together
TEST(fault_decode_attention_barrier_0) { without(0, 20); }
TEST(fault_decode_attention_shared_overrun) {
  shared_lacking = 16;
  without(kNothing);
}
TEST(fault_decode_attention_out_overrun) {
  Decode how;
  how.out_lacking = 1;
  without(kNothing, 20, how);
}
TEST(fault_decode_attention_merged_overrun) {
  Decode how;
  how.out_lacking = 1;
  without(kNothing, 66, how);
}
TEST(fault_decode_attention_parts_overrun) {
  Decode how;
  how.parts_lacking = 1;
  without(kNothing, 66, how);
}
TEST(fault_decode_attention_keys_read_overrun) {
  Decode how;
  how.keys_lacking = 1;
  without(kNothing, 20, how);
}
