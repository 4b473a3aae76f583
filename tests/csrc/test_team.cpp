// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/team.h"
#include "base/thread_pool.h"
#include "check.h"

namespace {

/// A sum over all members' numbers of the step before, so that a step that began too early, or a
/// part that nobody took, shows in the result. Returns the members of the last step.
int run_steps(int threads, std::int64_t steps, int parts, std::chrono::microseconds work) {
  std::vector<std::int64_t> states(static_cast<std::size_t>(2 * parts), 1);
  const auto at = [&](std::int64_t step, int part) -> std::int64_t& {
    return states[static_cast<std::size_t>((step % 2) * parts + part)];
  };
  seqrec::Team team;
  std::atomic<int> members{0};
  team.run(threads, [&](int member, std::int64_t first_step) {
    for (std::int64_t step = first_step; step < steps; ++step) {
      for (int part = member; part < parts; part += team.size()) {
        std::int64_t sum = 0;
        for (int other = 0; other < parts; ++other) sum += at(step, other) * (other + part) % 1009;
        const auto until = std::chrono::steady_clock::now() + work;
        while (std::chrono::steady_clock::now() < until) {
        }
        at(step + 1, part) = sum;
      }
      members = team.size();
      if (step + 1 < steps) team.meet(member, step + 1);
    }
  });
  std::vector<std::int64_t> want(static_cast<std::size_t>(parts), 1);
  for (std::int64_t step = 0; step < steps; ++step) {
    std::vector<std::int64_t> next(want.size(), 0);
    for (std::size_t part = 0; part < want.size(); ++part) {
      for (std::size_t other = 0; other < want.size(); ++other) {
        next[part] += want[other] * static_cast<std::int64_t>(other + part) % 1009;
      }
    }
    want = next;
  }
  for (int part = 0; part < parts; ++part) {
    CHECK(at(steps, part) == want[static_cast<std::size_t>(part)], "%d threads", threads);
  }
  return members;
}

}  // namespace

TEST(team_takes_each_step_after_the_one_before) {
  for (int threads : {1, 2, 3, 5}) {
    for (std::int64_t steps : {1, 2, 3, 50}) {
      for (int repeat = 0; repeat < 20; ++repeat) {
        run_steps(threads, steps, 7, std::chrono::microseconds(0));
      }
    }
  }
}

TEST(team_takes_in_a_thread_that_comes_late) {
  // The workers sleep by now; they come while the first member is at work.
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  int members = 0;
  while (members < 2 && std::chrono::steady_clock::now() < deadline) {
    members = run_steps(2, 400, 4, std::chrono::microseconds(20));
  }
  CHECK(members == 2, "%d members", members);
}

TEST(team_is_one_thread_where_nobody_comes) {
  // Every worker is inside another region and stays there until the team is done.
  std::atomic<bool> done{false};
  std::atomic<int> inside{0};
  std::thread other([&] {
    seqrec::parallel(4, 4, [&](std::int64_t) {
      ++inside;
      while (!done) std::this_thread::yield();
    });
  });
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (inside < 4 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  const int workers = seqrec::pool_workers();
  const int members = run_steps(workers < 4 ? 2 : 3, 30, 4, std::chrono::microseconds(1));
  if (workers == 3) CHECK(members == 1, "%d members", members);
  done = true;
  other.join();
}

TEST(team_inside_regions_and_of_many_callers) {
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([] {
      for (int repeat = 0; repeat < 5; ++repeat) {
        seqrec::parallel(3, 3,
                         [](std::int64_t) { run_steps(3, 10, 5, std::chrono::microseconds(0)); });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}
