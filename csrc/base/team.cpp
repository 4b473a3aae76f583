// SPDX-License-Identifier: Apache-2.0
#include "base/team.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/relax.h"
#include "base/thread_pool.h"

namespace seqrec {
namespace {

constexpr int kClosed = -1;
// A parked worker takes some 12 microseconds to come.
constexpr std::chrono::microseconds kJoinTime{30};

/// Spins until `done()`. After a while others may have the processor, which may be what the wait is
/// for.
template <typename Done>
void wait_until(Done done) {
  constexpr int kEager = 64, kPatient = 4000;
  for (int tries = 0; !done(); ++tries) {
    if (tries < kEager) continue;
    if (tries < kPatient) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace

void Team::meet(int member, std::int64_t steps) {
  progress_[member].steps.store(steps, std::memory_order_release);
  for (int other = 0; other < size(); ++other) {
    const std::atomic<std::int64_t>& theirs = progress_[other].steps;
    wait_until([&] { return theirs.load(std::memory_order_acquire) >= steps; });
  }
}

void Team::run_members(int threads, MemberFunction function, void* context) {
  threads = std::min(threads, kMost);
  parallel(threads, threads, [&](std::int64_t task) {
    if (task == 0) {  // the first to begin: it has surely come
      const auto deadline = std::chrono::steady_clock::now() + kJoinTime;
      while (joined_.load(std::memory_order_relaxed) < threads - 1 &&
             std::chrono::steady_clock::now() < deadline) {
        relax();
      }
      const int others = joined_.exchange(kClosed, std::memory_order_relaxed);
      size_.store(others + 1, std::memory_order_release);
      return function(context, 0);
    }
    int before = joined_.load(std::memory_order_relaxed);
    do {
      if (before == kClosed) return;
    } while (!joined_.compare_exchange_weak(before, before + 1, std::memory_order_relaxed));
    // The first one is at work and closes the door in a moment.
    wait_until([&] { return size_.load(std::memory_order_acquire) != 0; });
    function(context, before + 1);
  });
}

}  // namespace seqrec
