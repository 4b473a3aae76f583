// SPDX-License-Identifier: Apache-2.0
// The embedding kernels again, each time with one thing left out.
#include "cuda/dropout.cuh"
#include "cuda/embedding.h"
#include "embedding_batch.h"
// behind them
#include "faults.h"

namespace seqrec {
namespace cuda {

[[maybe_unused]] static void faulty_gather(const EmbeddingGather& p, Number number,
                                           cudaStream_t stream);
[[maybe_unused]] static void faulty_scatter(const EmbeddingScatter& p, Number number,
                                            cudaStream_t stream);
[[maybe_unused]] static void faulty_positions(const EmbeddingScatter& p, Number number,
                                              cudaStream_t stream);

}  // namespace cuda
}  // namespace seqrec

#define launch_embedding_gather faulty_gather
#define launch_embedding_scatter faulty_scatter
#define launch_embedding_positions faulty_positions

namespace {
constexpr int kFirstBarrier = __COUNTER__ + 1;
}
#include "cuda/embedding.cu"
namespace {
constexpr int kBarriers = __COUNTER__ - kFirstBarrier;
}
static_assert(kBarriers == 2, "a test for each, below");

namespace {

using namespace embedding_test;

// one type alone is compiled to code
void gather_floats(const EmbeddingGather& p, Number, cudaStream_t stream) {
  gather<float, 1>(p, stream);
}
void scatter_floats(const EmbeddingScatter& p, Number, cudaStream_t stream) {
  scatter<float>(p, stream);
}

void without(int barrier, const Embedding& how = {}) {
  left_out = barrier;
  Embedding faulty = how;
  faulty.gather = &gather_floats, faulty.scatter = &scatter_floats;
  check_embedding<float>(Number::kFloat32, 7, true, faulty);
}

}  // namespace

TEST(embedding_nothing_left_out) { without(kNothing); }

// behind the places of the tokens, and behind the ids of a run
TEST(fault_embedding_barrier_0) { without(0); }
TEST(fault_embedding_barrier_1) { without(1); }
TEST(fault_embedding_shared_overrun) {
  shared_lacking = 16;
  without(kNothing);
}
TEST(fault_embedding_out_overrun) {
  Embedding how;
  how.out_lacking = 1;
  without(kNothing, how);
}
TEST(fault_embedding_table_overrun) {
  Embedding how;
  how.d_table_lacking = 1;
  without(kNothing, how);
}
TEST(fault_embedding_sums_overrun) {
  Embedding how;
  how.scratch_lacking = 8;  // nobody writes the seven of the last sum
  without(kNothing, how);
}
TEST(fault_embedding_positions_overrun) {
  Embedding how;
  how.d_places_lacking = 1;
  without(kNothing, how);
}
