// SPDX-License-Identifier: Apache-2.0
// Plans of recurrent layers on the devices that the project builds for: every grid is co-resident
// by NVIDIA's own occupancy arithmetic, and no plan asks for more than there is.
#include <cstdio>
#include <initializer_list>

#include "cards.h"
#include "cuda/recurrent_plan.h"

using seqrec::RecurrentCell;
using namespace seqrec::cuda;

namespace {

int resident(const Card& card, const RecurrentPlan& plan) {
  // the most that __launch_bounds__ lets the compiler take
  const int warps = recurrent_most_warps(plan.cell);
  return resident_blocks(card, 32 * warps, most_registers(32 * warps, 1), plan.threads,
                         static_cast<std::size_t>(plan.shared));
}

}  // namespace

int main() {
  int plans = 0, cooperative = 0, failed = 0;
  for (const Card& card : kCards) {
    const RecurrentDevice device{card.multiprocessors, card.optin_kib << 10, card.shared_kib << 10};
    for (int cell = 0; cell < 3; ++cell) {
      for (int math = 0; math < 4; ++math) {
        for (int way = 0; way < 3; ++way) {  // forward, back, a single step
          const int backward = way == 1;
          for (const std::int64_t rows : {1, 9, 300, 5000}) {
            for (std::int64_t hidden = 1; hidden <= 4096; hidden += hidden < 300 ? 1 : 61) {
              RecurrentPlan plan{};
              if (!plan_recurrent(
                      {static_cast<RecurrentCell>(cell), static_cast<RecurrentMath>(math), hidden,
                       rows, backward != 0, way == 2, -1},
                      device, &plan)) {
                // all sizes up to 1024 are held everywhere
                if (hidden <= 1024) ++failed, std::printf("%s: no plan\n", card.name);
                continue;
              }
              ++plans;
              // blocks of a team exchange states, but in a single step there is no next one
              const bool waits = way != 2 && plan.form != RecurrentForm::kWhole && plan.members > 1;
              if (plan.barriers != waits) ++failed, std::printf("%s: barriers\n", card.name);
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
