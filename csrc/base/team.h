// SPDX-License-Identifier: Apache-2.0
// Threads that take one piece of work together, step by step, and meet after every step.
//
// Tasks of thread_pool.h must never wait for one another: the pool may run them one after another
// on the calling thread. Members of a team do wait. So one thread begins alone, with all the work,
// and at the end of a step takes in those that have really come. Nobody waits for a thread that
// sleeps, and in the worst case the one does all the work.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <type_traits>

#include "base/aligned.h"

namespace seqrec {

class Team {
 public:
  /// The most members that a team can have.
  static constexpr int kMost = 16;

  /// How many share the work of the next step; the same for all of them.
  int size() const { return size_.load(std::memory_order_relaxed); }

  /// Returns when every member has taken so many steps; what they wrote is then to be seen. The
  /// size may have grown: once, from 1.
  void meet(int member, std::int64_t steps);

  /// Calls `body(member, first_step)` on up to `threads` threads and waits: at once for member 0,
  /// and for each that joins when `first_step` steps have been taken. The body calls `meet` after
  /// every step but the last, and must not throw: others would wait for that member for ever.
  template <typename Body>
  void run(int threads, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_members(
        threads,
        [](void* context, int member, std::int64_t first_step) {
          (*static_cast<Plain*>(context))(member, first_step);
        },
        const_cast<std::remove_const_t<Plain>*>(&body));
  }

 private:
  using MemberFunction = void (*)(void* context, int member, std::int64_t first_step);
  void run_members(int threads, MemberFunction function, void* context);
  void take_in(std::int64_t steps);

  struct alignas(kLinePair) Progress {
    std::atomic<std::int64_t> steps{0};
  };

  std::atomic<int> waiting_{0};  // those who have come and are not yet members; or kClosed
  std::atomic<int> size_{1};     // or kOver
  std::int64_t first_step_ = 0;  // of those taken in; written before the size
  int most_ = 1;
  std::chrono::steady_clock::time_point late_;
  Progress progress_[kMost];
};

}  // namespace seqrec
