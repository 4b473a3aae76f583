// SPDX-License-Identifier: Apache-2.0
// The devices that the project builds for, and the blocks that one of their multiprocessors holds
// by NVIDIA's own occupancy arithmetic.
#pragma once

#include <cuda_occupancy.h>

#include <cstddef>

struct Card {
  const char* name;
  int major, minor, multiprocessors, threads, shared_kib, optin_kib;

  std::size_t optin() const { return static_cast<std::size_t>(optin_kib) << 10; }
  std::size_t shared() const { return static_cast<std::size_t>(shared_kib) << 10; }
};

constexpr Card kCards[] = {
    {"A100", 8, 0, 108, 2048, 164, 163},   {"sm_86", 8, 6, 82, 1536, 100, 99},
    {"H100", 9, 0, 132, 2048, 228, 227},   {"B200", 10, 0, 148, 2048, 228, 227},
    {"sm_120", 12, 0, 170, 1536, 100, 99},
};

/// Registers of a thread at most, where `blocks` of `threads` are to fit by __launch_bounds__;
/// the compiler takes them eight at a time.
constexpr int most_registers(int threads, int blocks) {
  const int share = 65536 / (threads * blocks) / 8 * 8;
  return share < 255 ? share : 255;
}

/// Of a kernel with launch bounds of `most_threads`, of `threads` and `shared` bytes a block; -1
/// where it cannot be launched. `shared` counts as what the kernel was allowed.
inline int resident_blocks(const Card& card, int most_threads, int registers, int threads,
                           std::size_t shared) {
  cudaOccDeviceProp device{};
  device.computeMajor = card.major;
  device.computeMinor = card.minor;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = card.threads;
  device.regsPerBlock = device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 48 << 10;
  device.sharedMemPerMultiprocessor = card.shared();
  device.numSms = card.multiprocessors;
  device.sharedMemPerBlockOptin = card.optin();
  device.reservedSharedMemPerBlock = 1 << 10;
  cudaOccFuncAttributes kernel{};
  kernel.maxThreadsPerBlock = most_threads;
  kernel.numRegs = registers;
  kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
  kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  kernel.maxDynamicSharedSizeBytes = card.optin();
  const cudaOccDeviceState state{};
  cudaOccResult found{};
  if (cudaOccMaxActiveBlocksPerMultiprocessor(&found, &device, &kernel, &state, threads, shared) !=
      CUDA_OCC_SUCCESS) {
    return -1;
  }
  return found.activeBlocksPerMultiprocessor;
}
