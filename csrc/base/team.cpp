// SPDX-License-Identifier: Apache-2.0
#include "base/team.h"

#include <algorithm>
#include <thread>

#include "base/relax.h"
#include "base/thread_pool.h"

namespace seqrec {
namespace {

constexpr int kClosed = -1;
constexpr int kOver = -1;
// Parked workers come one after another, within some ten microseconds each. A team is made once:
// of all, or after this time of those that have come.
constexpr std::chrono::microseconds kPatience{40};
// Workers that are awake come at once, in time for the first step.
constexpr std::chrono::microseconds kMoment{2};

/// Spins until `done()`. After a while others may have the processor, which may be what the wait is
/// for.
template <typename Done>
void wait_until(Done done) {
  constexpr int kEager = 64, kSpins = 4000;
  for (int tries = 0; !done(); ++tries) {
    if (tries < kEager) continue;
    if (tries < kSpins) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace

void Team::meet(int member, std::int64_t steps) {
  const int members = size();
  if (members == 1) return take_in(steps);
  progress_[member].steps.store(steps, std::memory_order_release);
  for (int other = 0; other < members; ++other) {
    const std::atomic<std::int64_t>& theirs = progress_[other].steps;
    wait_until([&] { return theirs.load(std::memory_order_acquire) >= steps; });
  }
}

/// What the first member does before a step while it is alone.
void Team::take_in(std::int64_t steps) {
  int came = waiting_.load(std::memory_order_relaxed);
  if (came == 0) return;
  if (came < most_ - 1 && std::chrono::steady_clock::now() < late_) return;
  came = waiting_.exchange(kClosed, std::memory_order_relaxed);
  first_step_ = steps;
  size_.store(came + 1, std::memory_order_release);
}

void Team::run_members(int threads, MemberFunction function, void* context) {
  most_ = std::min(threads, kMost);
  late_ = std::chrono::steady_clock::now() + kPatience;
  parallel(most_, most_, [&](std::int64_t task) {
    if (task == 0) {  // tasks begin in ascending order: this one has surely begun
      const auto moment = std::chrono::steady_clock::now() + kMoment;
      while (waiting_.load(std::memory_order_relaxed) < most_ - 1 &&
             std::chrono::steady_clock::now() < moment) {
        relax();
      }
      take_in(0);
      function(context, 0, 0);
      if (size() == 1) {
        waiting_.store(kClosed, std::memory_order_relaxed);
        size_.store(kOver, std::memory_order_release);
      }
      return;
    }
    int before = waiting_.load(std::memory_order_relaxed);
    do {
      if (before == kClosed) return;
    } while (!waiting_.compare_exchange_weak(before, before + 1, std::memory_order_relaxed));
    int members = 1;
    wait_until([&] { return (members = size_.load(std::memory_order_acquire)) != 1; });
    if (members != kOver) function(context, before + 1, first_step_);
  });
}

}  // namespace seqrec
