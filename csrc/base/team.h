// SPDX-License-Identifier: Apache-2.0
// Threads that take one piece of work together, step by step, and meet after every step.
//
// Tasks of thread_pool.h must never wait for one another: the pool may run them one after another
// on the calling thread. Members of a team do wait. So a team is made of the threads that have
// really come: whoever begins first waits a moment for the others and then closes the door. Those
// who come later find it closed and leave. In the worst case the team is one thread, which does all
// the work.
#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>

namespace seqrec {

class Team {
 public:
  /// The most members that a team can have.
  static constexpr int kMost = 16;

  /// How many there are; known to all members before their work begins.
  int size() const { return size_.load(std::memory_order_relaxed); }

  /// Returns when every member has called it with `steps` or more; what they wrote before is then
  /// to be seen. `steps` begins with 1 and grows by 1.
  void meet(int member, std::int64_t steps);

  /// Calls `body(member)` on up to `threads` threads, for the members 0 … size() - 1, and waits.
  /// The body must not throw: others would wait for that member for ever.
  template <typename Body>
  void run(int threads, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_members(
        threads, [](void* context, int member) { (*static_cast<Plain*>(context))(member); },
        const_cast<std::remove_const_t<Plain>*>(&body));
  }

 private:
  using MemberFunction = void (*)(void* context, int member);
  void run_members(int threads, MemberFunction function, void* context);

  struct alignas(64) Progress {
    std::atomic<std::int64_t> steps{0};
  };

  std::atomic<int> joined_{0};  // members beside the first one, or kClosed
  std::atomic<int> size_{0};    // 0: not yet known
  Progress progress_[kMost];
};

}  // namespace seqrec
