// SPDX-License-Identifier: Apache-2.0
// The recurrent kernels again, each time with one thing left out: a barrier of the block by its
// number in the source, or one between blocks.
#include "cuda/recurrent_block.cuh"
#include "cuda/recurrent_schedule.cuh"
#include "recurrent_layer.h"

namespace seqrec {
namespace cuda {
namespace {

constexpr int kNothing = -1, kTeamBarrier = 100, kGridBarrier = 101;
int left_out = kNothing;

void block_barrier(int number, int line) {
  if (number != left_out) shim::sync_threads(__FILE__, line);
}

void faulty_team_barrier(unsigned* counter, unsigned arrivals) {
  if (left_out == kTeamBarrier) {
    __syncthreads();
  } else {
    team_barrier(counter, arrivals);
  }
}

template <typename Place>
unsigned* faulty_team_counter(void* workspace, const RecurrentPlan& plan, const Place& place) {
  if (left_out != kGridBarrier) return team_counter(workspace, plan, place);
  unsigned* counter = reinterpret_cast<unsigned*>(
      static_cast<unsigned char*>(workspace) + std::int64_t{place.team} * kRecurrentCounterBytes);
  if (place.member == 0 && threadIdx.x == 0) {
#ifdef SEQREC_SHIM_THREADS
    // not before another block has counted: otherwise chance would decide what is found
    while (__atomic_load_n(counter, __ATOMIC_RELAXED) == 0xFFFFFFFFu) shim::yield();
#endif
    *counter = 0;
  }
  return counter;
}

void sound_forward(const RecurrentForward& layer, cudaStream_t stream) {
  launch_recurrent_forward(layer, stream);
}

}  // namespace

// of these one cell and type are used: the others are never compiled to code
[[maybe_unused]] static void faulty_forward(const RecurrentForward& layer, cudaStream_t stream);
[[maybe_unused]] static void faulty_backward(const RecurrentBackward& layer, cudaStream_t stream);

}  // namespace cuda
}  // namespace seqrec

#undef __syncthreads
#define __syncthreads() block_barrier(__COUNTER__ - kFirstBarrier, __LINE__)
#define team_barrier faulty_team_barrier
#define team_counter faulty_team_counter
#define launch_recurrent_forward faulty_forward
#define launch_recurrent_backward faulty_backward

#define kFirstBarrier kFirstForward
namespace {
constexpr int kFirstForward = __COUNTER__ + 1;
}
#include "cuda/recurrent_forward.cu"
#undef kFirstBarrier
#define kFirstBarrier kFirstBackward
namespace {
constexpr int kForwardBarriers = __COUNTER__ - kFirstForward;
constexpr int kFirstBackward = __COUNTER__ + 1;
}  // namespace
#include "cuda/recurrent_backward.cu"
namespace {
constexpr int kBackwardBarriers = __COUNTER__ - kFirstBackward;
}
static_assert(kForwardBarriers == 4 && kBackwardBarriers == 3, "a test for each, below");

namespace {

using namespace recurrent_test;

void forward(const RecurrentForward& layer, cudaStream_t stream) {
  ForwardKernel<RecurrentCell::kGru, RecurrentMath::kBfloat16>::start(layer, stream);
}
void backward(const RecurrentBackward& layer, cudaStream_t stream) {
  BackwardKernel<RecurrentCell::kGru, RecurrentMath::kBfloat16>::start(layer, stream);
}

Case example(RecurrentForm form, int multiprocessors) {
  return {RecurrentCell::kGru, RecurrentMath::kBfloat16, 33, {3, 2}, form, multiprocessors};
}

void without_forward(int what, const Case& given) {
  left_out = what;
  Layer<BFloat16> made(given);
  made.run(&forward);
  made.check(false);
}

void without_backward(int what, const Case& given) {
  left_out = what;
  Layer<BFloat16> made(given);
  made.run(&sound_forward, &backward);
  made.check(true);
}

}  // namespace

TEST(recurrent_nothing_left_out) {
  without_forward(kNothing, example(RecurrentForm::kSplit, 3));
  without_backward(kNothing, example(RecurrentForm::kWhole, 1));
}

// In the order of the source: behind the schedule; forward, behind the states of the first step;
// between the product and the next states where no other block is met; at the end of a step.
TEST(fault_recurrent_forward_barrier_0) { without_forward(0, example(RecurrentForm::kWhole, 1)); }
TEST(fault_recurrent_forward_barrier_1) { without_forward(1, example(RecurrentForm::kWhole, 1)); }
TEST(fault_recurrent_forward_barrier_2) { without_forward(2, example(RecurrentForm::kSplit, 1)); }
TEST(fault_recurrent_forward_barrier_3) { without_forward(3, example(RecurrentForm::kWhole, 1)); }
TEST(fault_recurrent_forward_team_barrier) {
  without_forward(kTeamBarrier, example(RecurrentForm::kSplit, 3));
}
TEST(fault_recurrent_backward_barrier_0) { without_backward(0, example(RecurrentForm::kWhole, 1)); }
TEST(fault_recurrent_backward_barrier_1) { without_backward(1, example(RecurrentForm::kSplit, 1)); }
TEST(fault_recurrent_backward_barrier_2) { without_backward(2, example(RecurrentForm::kWhole, 1)); }
TEST(fault_recurrent_backward_team_barrier) {
  without_backward(kTeamBarrier, example(RecurrentForm::kSplit, 3));
}
TEST(fault_recurrent_grid_barrier) {
  without_forward(kGridBarrier, example(RecurrentForm::kSplit, 3));
}
TEST(fault_recurrent_backward_grid_barrier) {
  without_backward(kGridBarrier, example(RecurrentForm::kSplit, 3));
}
TEST(fault_recurrent_backward_output_overrun) {
  Case given = example(RecurrentForm::kWhole, 1);
  given.gradient_lacking = 1;
  without_backward(kNothing, given);
}
TEST(fault_recurrent_backward_shared_overrun) {
  Case given = example(RecurrentForm::kWhole, 1);
  given.memory_lacking_back = 16;
  without_backward(kNothing, given);
}
TEST(fault_recurrent_output_overrun) {
  Case given = example(RecurrentForm::kWhole, 1);
  given.output_lacking = 1;
  without_forward(kNothing, given);
}
TEST(fault_recurrent_shared_overrun) {
  Case given = example(RecurrentForm::kWhole, 1);
  given.memory_lacking = 16;
  without_forward(kNothing, given);
}
