// SPDX-License-Identifier: Apache-2.0
// Lets a file of kernels be compiled again with something left out: a barrier of the block, by its
// number in the source, or bytes of shared memory. Include it behind all headers of the file, say
// where the count begins, then include the file:
//
//   namespace { constexpr int kFirstBarrier = __COUNTER__ + 1; }
//   #include "cuda/topk.cu"
#pragma once

#include <chrono>
#include <thread>

#include "cuda/device.cuh"

namespace seqrec {
namespace cuda {
namespace {

constexpr int kNothing = -1;
int left_out = kNothing;
std::size_t shared_lacking = 0;                  // bytes
[[maybe_unused]] bool first_warp_early = false;  // else its first thread is late

void block_barrier(int number, int line) {
  if (number != left_out) shim::sync_threads(__FILE__, line);
#ifdef SEQREC_SHIM_THREADS
  // All have left a barrier before anybody comes to the next, and some are late: else chance would
  // decide who overtakes whom, and the lock of the barrier order what they do.
  if (left_out != kNothing) {
    const bool late = first_warp_early ? threadIdx.x >= 32 : threadIdx.x == 0;
    std::this_thread::sleep_for(std::chrono::milliseconds(late ? 80 : 20));
  }
#endif
}

template <typename... Parameters, typename... Arguments>
void faulty_launch(const char* call, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                   std::size_t bytes, cudaStream_t stream, Arguments&&... arguments) {
  detail::launch_kernel(call, kernel, grid, block,
                        bytes < shared_lacking ? 0 : bytes - shared_lacking, stream,
                        std::forward<Arguments>(arguments)...);
}

}  // namespace
}  // namespace cuda
}  // namespace seqrec

#undef __syncthreads
#define __syncthreads() block_barrier(__COUNTER__ - kFirstBarrier, __LINE__)
#undef launch
#define launch(...) faulty_launch(#__VA_ARGS__, __VA_ARGS__)
