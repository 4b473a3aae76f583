// SPDX-License-Identifier: Apache-2.0
// What device.cuh offers, and the faults that running kernels on the CPU must find.
#include <cmath>
#include <memory>
#include <vector>

#include "../check.h"
#include "cuda/device.cuh"

namespace {

using namespace seqrec::cuda;

/// Memory of exactly this size, so that the address sanitizer sees its end.
template <typename T>
std::unique_ptr<T[]> device_memory(std::size_t count, T value = T()) {
  std::unique_ptr<T[]> memory(new T[count]);
  for (std::size_t i = 0; i < count; ++i) memory[i] = value;
  return memory;
}

// ------------------------------------------------------------------------------------ neighbours

enum class Fault { kNone, kMissing, kOverrun, kDivergent, kLeaving };

/// out[i] is the value of the next thread of the block, by shared memory.
template <Fault kFault>
__global__ void neighbour(const int* x, int* out) {
  SEQREC_SHARED(memory);
  int* values = reinterpret_cast<int*>(memory);
  const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  const int at = static_cast<int>(blockIdx.x) * n + i;
  values[kFault == Fault::kOverrun ? i + 1 : i] = load_readonly(x + at);
  if constexpr (kFault == Fault::kLeaving) {
    if (i == n - 1) return;
  }
  if constexpr (kFault == Fault::kDivergent) {
    if (i < 7) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  } else if constexpr (kFault != Fault::kMissing) {
    __syncthreads();
  }
  store_global(out + at, values[(i + 1) % n]);
}

template <Fault kFault>
int wrong_neighbours() {
  constexpr int kBlocks = 3, kThreads = 64;
  const auto x = device_memory<int>(kBlocks * kThreads),
             out = device_memory<int>(kBlocks * kThreads);
  for (int i = 0; i < kBlocks * kThreads; ++i) x[static_cast<std::size_t>(i)] = 5 * i;
  launch(neighbour<kFault>, kBlocks, kThreads, kThreads * sizeof(int), nullptr, x.get(), out.get());
  int wrong = 0;
  for (int i = 0; i < kBlocks * kThreads; ++i) {
    const int next = i / kThreads * kThreads + (i + 1) % kThreads;
    wrong += out[static_cast<std::size_t>(i)] == 5 * next ? 0 : 1;
  }
  return wrong;
}

TEST(device_barrier) { CHECK(wrong_neighbours<Fault::kNone>() == 0); }
TEST(fault_barrier_missing) { CHECK(wrong_neighbours<Fault::kMissing>() == 0); }
TEST(fault_barrier_divergent) { CHECK(wrong_neighbours<Fault::kDivergent>() == 0); }
TEST(fault_barrier_left) { CHECK(wrong_neighbours<Fault::kLeaving>() == 0); }
TEST(fault_shared_overrun) { wrong_neighbours<Fault::kOverrun>(); }

__global__ void copy_all(const int* x, int* out, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) store_global(out + i, load_readonly(x + i));
}

void copy_with(int n, int in_x, int in_out) {
  const auto x = device_memory<int>(static_cast<std::size_t>(in_x), 3);
  const auto out = device_memory<int>(static_cast<std::size_t>(in_out));
  launch(copy_all, (n + 31) / 32, 32, 0, nullptr, x.get(), out.get(), n);
  CHECK(out[0] == 3);
}

TEST(device_copy) { copy_with(50, 50, 50); }
TEST(fault_global_read_overrun) { copy_with(50, 49, 50); }
TEST(fault_global_write_overrun) { copy_with(50, 50, 49); }

__global__ void copy_pairs(const int* x, int* out) {
  const int i = 2 * static_cast<int>(threadIdx.x);
  const uint2 pair = load_readonly(reinterpret_cast<const uint2*>(x + i));
  store_global(reinterpret_cast<uint2*>(out + i), pair);
}
TEST(fault_misaligned) {
  const auto x = device_memory<int>(66, 3), out = device_memory<int>(64);
  launch(copy_pairs, 1, 32, 0, nullptr, x.get() + 1, out.get());
}

// ------------------------------------------------------------------------------------------ grids

/// Sums of blocks, then their sum by block 0.
template <bool kSynchronised>
__global__ void total(const float* x, float* parts, float* out, int n) {
  SEQREC_SHARED(memory);
  float sum = 0.0f;
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < static_cast<unsigned>(n);
       i += gridDim.x * blockDim.x) {
    sum += load_readonly(x + i);
  }
  sum = block_sum(sum, reinterpret_cast<float*>(memory));
  if (threadIdx.x == 0) store_global(parts + blockIdx.x, sum);
  if constexpr (kSynchronised) grid_barrier();
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    float all = 0.0f;
    for (unsigned b = 0; b < gridDim.x; ++b) all += load_shared_by_blocks(parts + b);
    store_global(out, all);
  }
}

template <bool kSynchronised>
float total_of(int n, unsigned blocks, bool cooperative) {
  const auto x = device_memory<float>(static_cast<std::size_t>(n), 0.5f);
  const auto parts = device_memory<float>(blocks), out = device_memory<float>(1);
  constexpr std::size_t kShared = 32 * sizeof(float);
  if (cooperative) {
    launch_cooperative(total<kSynchronised>, blocks, 64, kShared, nullptr, x.get(), parts.get(),
                       out.get(), n);
  } else {
    launch(total<kSynchronised>, blocks, 64, kShared, nullptr, x.get(), parts.get(), out.get(), n);
  }
  return out[0];
}

TEST(device_grid) { CHECK(total_of<true>(1000, 4, true) == 500.0f); }
TEST(fault_grid_barrier_missing) { CHECK(total_of<false>(1000, 4, true) == 500.0f); }
TEST(fault_grid_not_cooperative) { total_of<true>(1000, 4, false); }
TEST(fault_grid_too_large) { total_of<true>(1000, 4 * 32 + 1, true); }

/// Beyond 48 KiB a kernel has to be allowed its shared memory; a launch of less by another thread
/// must not come between.
TEST(device_shared_memory_is_never_taken_back) {
  const auto x = device_memory<int>(64), out = device_memory<int>(64);
  const auto kernel = &neighbour<Fault::kNone>;
  for (const std::size_t bytes : {std::size_t{100} << 10, std::size_t{60} << 10}) {
    launch(neighbour<Fault::kNone>, 1, 64, bytes, nullptr, x.get(), out.get());
    CHECK(shim::allowed_shared(reinterpret_cast<const void*>(kernel)) >= std::size_t{100} << 10);
  }
}

TEST(device_a_refused_launch_leaves_no_error_behind) {
  const auto x = device_memory<int>(64), out = device_memory<int>(64);
  int refused = 0;
  const auto tried = [&](auto start) {
    try {
      start();
    } catch (const CudaError& error) {
      refused += std::string(error.what()).find("the CUDA kernel ") == 0 ? 1 : 0;
    }
    CHECK(cudaGetLastError() == cudaSuccess);
  };
  const std::size_t most = static_cast<std::size_t>(shim::device.shared_per_block);
  tried([&] { launch(neighbour<Fault::kNone>, 1, 64, most + 1, nullptr, x.get(), out.get()); });
  tried([&] { launch(neighbour<Fault::kNone>, 0, 64, 256, nullptr, x.get(), out.get()); });
  tried([&] {
    launch_cooperative(neighbour<Fault::kNone>, 129, 64, 256, nullptr, x.get(), out.get());
  });
  CHECK(refused == 3);
}

/// A block hands a number on to the next by a flag.
template <bool kReleased>
__global__ void chain(float* values, unsigned* flags) {
  const unsigned b = blockIdx.x;
  if (threadIdx.x == 0) {
    if (b > 0) {
      if constexpr (kReleased) {
        while (load_acquire(flags + b - 1) == 0) __nanosleep(20);
      }
      store_global(values + b, load_shared_by_blocks(values + b - 1) + 1.0f);
    }
    store_release(flags + b, 1);
  }
}

template <bool kReleased>
void run_chain() {
  const auto values = device_memory<float>(4);
  const auto flags = device_memory<unsigned>(4);
  launch_cooperative(chain<kReleased>, 4, 32, 0, nullptr, values.get(), flags.get());
  CHECK(values[3] == 3.0f);
}

TEST(device_flags) { run_chain<true>(); }
TEST(fault_flag_not_awaited) { run_chain<false>(); }

__global__ void wait_for_ever(const unsigned* flag) {
  while (load_acquire(flag) == 0) __nanosleep(20);
}
TEST(fault_flag_never_set) {
  const auto flag = device_memory<unsigned>(1);
  launch(wait_for_ever, 1, 32, 0, nullptr, flag.get());
}

// ------------------------------------------------------------------------------------------ warps

__global__ void warps(int* out) {
  const int lane = lane_index();
  int sum = warp_sum(lane);
  sum += __shfl_sync(kAllLanes, lane, 3) + __shfl_up_sync(kAllLanes, lane, 2, 8) +
         __shfl_down_sync(kAllLanes, lane, 2, 8);
  if (__ballot_sync(kAllLanes, lane % 2) != 0xAAAAAAAAu) sum = -1;
  if (lane < 16) sum += __shfl_xor_sync(0xFFFFu, 100 * lane, 1);
  if (__match_any_sync(kAllLanes, lane / 4) != 0xFu << (lane / 4 * 4)) sum = -1;
  out[lane] = sum;
}

TEST(device_warps) {
  const auto out = device_memory<int>(32);
  launch(warps, 1, 32, 0, nullptr, out.get());
  for (int lane = 0; lane < 32; ++lane) {
    const int up = lane % 8 >= 2 ? lane - 2 : lane, down = lane % 8 < 6 ? lane + 2 : lane;
    const int other = lane < 16 ? 100 * (lane ^ 1) : 0;
    CHECK(out[static_cast<std::size_t>(lane)] == 496 + 3 + up + down + other, "lane %d", lane);
  }
}

__global__ void half_a_warp(int* out) {
  if (lane_index() < 16) out[lane_index()] = __shfl_xor_sync(kAllLanes, lane_index(), 1);
}
TEST(fault_lanes_missing) {
  const auto out = device_memory<int>(32);
  launch(half_a_warp, 1, 32, 0, nullptr, out.get());
}

// --------------------------------------------------------------------- copies and matrix products

/// 16 x 16 times 16 x 8, of matrices that asynchronous copies bring.
template <typename T, bool kWaits>
__global__ void product(const T* a, const T* b, float* out) {
  SEQREC_SHARED(memory);
  T* own_a = reinterpret_cast<T*>(memory);
  T* own_b = own_a + 256;
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  copy_async<16>(own_a + lane * 8, a + lane * 8);
  copy_async<16>(own_b + lane * 8, b + lane % 16 * 8, lane < 16);  // zeros behind the matrix
  copy_async_commit();
  if constexpr (kWaits) copy_async_wait<0>();
  __syncwarp();
  std::uint32_t left[4], right[2];
  load_matrices(left, own_a + lane % 16 * 16 + lane / 16 * 8);
  load_matrices<true>(right, own_b + lane % 16 * 8);
  float sums[4] = {};
  mma_m16n8k16<T>(sums, left, right);
  out[g * 8 + 2 * t] = sums[0];
  out[g * 8 + 2 * t + 1] = sums[1];
  out[(g + 8) * 8 + 2 * t] = sums[2];
  out[(g + 8) * 8 + 2 * t + 1] = sums[3];
}

template <typename T, bool kWaits>
void check_product() {
  struct alignas(16) Matrices {
    T a[256], b[128];
  };
  const auto m = std::make_unique<Matrices>();
  const auto out = device_memory<float>(128);
  for (int i = 0; i < 256; ++i) m->a[i] = from_float<T>(static_cast<float>(i * 37 % 11) - 5.0f);
  for (int i = 0; i < 128; ++i) m->b[i] = from_float<T>(static_cast<float>(i * 53 % 13) - 6.0f);
  constexpr std::size_t kShared = (256 + 256) * sizeof(T);
  launch(product<T, kWaits>, 1, 32, kShared, nullptr, m->a, m->b, out.get());
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float exact = 0.0f;
      for (int k = 0; k < 16; ++k) exact += to_float(m->a[i * 16 + k]) * to_float(m->b[k * 8 + j]);
      CHECK(out[static_cast<std::size_t>(i * 8 + j)] == exact, "%d, %d", i, j);
    }
  }
}

TEST(device_product_half) { check_product<Half, true>(); }
TEST(device_product_bfloat16) { check_product<BFloat16, true>(); }
TEST(fault_copy_not_awaited) { check_product<Half, false>(); }

TEST(device_numbers) {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const Half half{static_cast<std::uint16_t>(bits)};
    const float x = to_float(half);
    if (x != x) continue;
    CHECK(from_float<Half>(x).bits == bits, "half %x", bits);
    if (std::isinf(x) || (bits & 0x7FFFu) == 0x7BFFu) continue;
    const float next = to_float(Half{static_cast<std::uint16_t>(bits + 1)});
    // a tie goes to the even one, what lies beside it to the nearer one
    const std::uint16_t even = static_cast<std::uint16_t>(bits + bits % 2);
    CHECK(from_float<Half>(0.5f * x + 0.5f * next).bits == even, "half %x", bits);
    CHECK(from_float<Half>(0.51f * x + 0.49f * next).bits == bits, "half %x", bits);
  }
  CHECK(std::isinf(to_float(from_float<Half>(65520.0f))) &&
        to_float(from_float<Half>(65519.0f)) == 65504.0f);
  CHECK(to_float(from_float<Half>(2.0e-8f)) == 0.0f);
  CHECK(std::isnan(to_float(from_float<Half>(NAN))) &&
        std::isnan(to_float(from_float<BFloat16>(NAN))));
  CHECK(to_float(from_float<BFloat16>(1.0f + 1.0f / 256)) == 1.0f);
  CHECK(to_float(from_float<BFloat16>(1.0f + 3.0f / 256)) == 1.0f + 4.0f / 256);
}

}  // namespace
