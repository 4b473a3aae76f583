// SPDX-License-Identifier: Apache-2.0
// Plans of recurrent layers on the devices that the project builds for: every grid is co-resident
// by NVIDIA's own occupancy arithmetic, and no plan asks for more than there is.
#include <cuda_occupancy.h>

#include <cstdio>
#include <initializer_list>

#include "cuda/recurrent_plan.h"

using seqrec::RecurrentCell;
using namespace seqrec::cuda;

namespace {

struct Card {
  const char* name;
  int major, minor, multiprocessors, threads, shared_kib, optin_kib;
};

constexpr Card kCards[] = {
    {"A100", 8, 0, 108, 2048, 164, 163},   {"sm_86", 8, 6, 82, 1536, 100, 99},
    {"H100", 9, 0, 132, 2048, 228, 227},   {"B200", 10, 0, 148, 2048, 228, 227},
    {"sm_120", 12, 0, 170, 1536, 100, 99},
};

int resident(const Card& card, const RecurrentPlan& plan) {
  cudaOccDeviceProp device{};
  device.computeMajor = card.major;
  device.computeMinor = card.minor;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = card.threads;
  device.regsPerBlock = device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 48 << 10;
  device.sharedMemPerMultiprocessor = static_cast<size_t>(card.shared_kib) << 10;
  device.numSms = card.multiprocessors;
  device.sharedMemPerBlockOptin = static_cast<size_t>(card.optin_kib) << 10;
  device.reservedSharedMemPerBlock = 1 << 10;
  cudaOccFuncAttributes kernel{};
  // the most that __launch_bounds__ lets the compiler take
  kernel.maxThreadsPerBlock = 32 * recurrent_most_warps(plan.cell);
  const int registers = recurrent_most_registers(plan.cell);
  kernel.numRegs = registers < 255 ? registers : 255;
  kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
  kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  kernel.maxDynamicSharedSizeBytes = static_cast<size_t>(plan.shared);
  cudaOccDeviceState state{};
  cudaOccResult found{};
  if (cudaOccMaxActiveBlocksPerMultiprocessor(&found, &device, &kernel, &state, plan.threads,
                                              static_cast<size_t>(plan.shared)) !=
      CUDA_OCC_SUCCESS) {
    return -1;
  }
  return found.activeBlocksPerMultiprocessor;
}

}  // namespace

int main() {
  int plans = 0, cooperative = 0, failed = 0;
  for (const Card& card : kCards) {
    const RecurrentDevice device{card.multiprocessors, card.optin_kib << 10, card.shared_kib << 10};
    for (int cell = 0; cell < 3; ++cell) {
      for (int math = 0; math < 4; ++math) {
        for (int backward = 0; backward < 2; ++backward) {
          for (const std::int64_t rows : {1, 9, 300, 5000}) {
            for (std::int64_t hidden = 1; hidden <= 4096; hidden += hidden < 300 ? 1 : 61) {
              RecurrentPlan plan{};
              if (!plan_recurrent(
                      {static_cast<RecurrentCell>(cell), static_cast<RecurrentMath>(math), hidden,
                       rows, backward != 0, false, -1},
                      device, &plan)) {
                // all sizes up to 1024 are held everywhere
                if (hidden <= 1024) ++failed, std::printf("%s: no plan\n", card.name);
                continue;
              }
              ++plans;
              const int blocks = resident(card, plan);
              const bool fits = plan.shared <= device.shared_per_block && blocks >= 1 &&
                                std::int64_t{plan.members} * plan.units >= hidden;
              // those that wait for one another must run together, the others had better
              const bool together = plan.teams * plan.members <= blocks * card.multiprocessors;
              cooperative += plan.barriers;
              if (fits && together) continue;
              ++failed;
              std::printf(
                  "%s: cell %d math %d hidden %d backward %d: %d x %d blocks, %d resident\n",
                  card.name, cell, math, static_cast<int>(hidden), backward, plan.teams,
                  plan.members, blocks);
            }
          }
        }
      }
    }
  }
  std::printf("%d plans, %d cooperative, %d failed\n", plans, cooperative, failed);
  return failed == 0 && cooperative > 0 ? 0 : 1;
}
