// SPDX-License-Identifier: Apache-2.0
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/thread_pool.h"
#include "check.h"

using seqrec::parallel;

// Runs first in its process: registered before any other test of this file.
TEST(pool_starts_no_thread_for_small_work) {
  if (seqrec::pool_workers() != 0) return;  // another test was asked for before
  std::int64_t sum = 0;
  parallel(10, 1, [&](std::int64_t task) { sum += task; });
  parallel(1, 8, [&](std::int64_t) { sum += 1; });
  parallel(0, 8, [&](std::int64_t) { sum += 100; });
  CHECK(sum == 46);
  CHECK(seqrec::pool_workers() == 0);
}

TEST(pool_does_each_task_once) {
  for (int threads : {1, 2, 3, 8}) {
    for (std::int64_t tasks : {1, 2, 7, 100, 5000}) {
      std::vector<std::atomic<int>> done(static_cast<std::size_t>(tasks));
      parallel(tasks, threads, [&](std::int64_t t) { ++done[static_cast<std::size_t>(t)]; });
      for (auto& count : done) CHECK(count == 1, "%d threads", threads);
    }
  }
  CHECK(seqrec::pool_workers() >= 1);
  CHECK(seqrec::pool_workers() <= 7);
}

TEST(pool_really_uses_other_threads) {
  // Each task waits for the other: only two threads can end this.
  std::atomic<int> arrived{0};
  parallel(2, 2, [&](std::int64_t) {
    ++arrived;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (arrived < 2 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  });
  CHECK(arrived == 2);
}

TEST(pool_uses_no_more_threads_than_asked) {
  parallel(8, 8, [](std::int64_t) {});  // the pool has 7 workers now
  std::atomic<int> inside{0}, most{0};
  parallel(200, 3, [&](std::int64_t) {
    const int now = ++inside;
    int old = most;
    while (old < now && !most.compare_exchange_weak(old, now)) {
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    --inside;
  });
  CHECK(most <= 3, "%d at once", most.load());
}

TEST(pool_nested_regions_end) {
  std::atomic<std::int64_t> sum{0};
  parallel(16, 4, [&](std::int64_t a) {
    parallel(16, 4, [&](std::int64_t b) {
      parallel(3, 2, [&](std::int64_t c) { sum += a * 48 + b * 3 + c; });
    });
  });
  CHECK(sum == 767 * 768 / 2);
}

TEST(pool_concurrent_callers_end) {
  std::vector<std::thread> callers;
  std::atomic<std::int64_t> sum{0};
  for (int c = 0; c < 8; ++c) {
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        parallel(5, 3, [&](std::int64_t t) { sum += t; });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(sum == 8 * 200 * 10);
}

TEST(pool_wakes_after_parking) {
  std::atomic<int> done{0};
  for (int round = 0; round < 20; ++round) {
    parallel(4, 4, [&](std::int64_t) { ++done; });
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  CHECK(done == 80);
}

#if defined(__linux__)
TEST(pool_wakes_workers_away_from_the_caller) {
  cpu_set_t allowed;
  CHECK(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
  const int processors = CPU_COUNT(&allowed);
  const std::thread::id caller = std::this_thread::get_id();
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // workers park
    std::atomic<int> begun{0}, left_out{-1};
    parallel(2, 2, [&](std::int64_t) {
      ++begun;
      const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(2);
      // each task waits for the other, so that a worker must take one of them
      while (begun < 2 && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
      if (std::this_thread::get_id() == caller) return;
      cpu_set_t mine;
      if (sched_getaffinity(0, sizeof mine, &mine) == 0) left_out = processors - CPU_COUNT(&mine);
    });
    if (begun == 2 && left_out >= 0) CHECK(left_out == (processors > 1 ? 1 : 0));
  }
}
#endif

TEST(pool_passes_exceptions_on) {
  for (int round = 0; round < 50; ++round) {
    bool caught = false;
    try {
      parallel(100, 4, [&](std::int64_t t) {
        if (t == 37) throw std::runtime_error("task 37");
      });
    } catch (const std::runtime_error& error) {
      caught = std::string(error.what()) == "task 37";
    }
    CHECK(caught);
  }
  std::atomic<int> done{0};
  parallel(10, 4, [&](std::int64_t) { ++done; });
  CHECK(done == 10);
}

TEST(pool_leaves_small_work_alone) {
  CHECK(seqrec::threads_worth(1e3, 8) == 1);
  CHECK(seqrec::threads_worth(49e3, 8) == 1);
  CHECK(seqrec::threads_worth(60e3, 8) == 2);
  CHECK(seqrec::threads_worth(1e9, 8) == 8);
  CHECK(seqrec::threads_worth(1e9, 1) == 1);
}

TEST(fork_child_has_a_working_pool) {
  std::atomic<int> before{0};
  parallel(8, 4, [&](std::int64_t) { ++before; });
  for (int round = 0; round < 20; ++round) {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      if (seqrec::pool_workers() != 0) _exit(2);
      std::atomic<int> done{0};
      parallel(100, 4, [&](std::int64_t) { ++done; });
      _exit(done == 100 && seqrec::pool_workers() == 3 ? 0 : 3);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %d", status);
    parallel(8, 4, [&](std::int64_t) { ++before; });
  }
  CHECK(before == 8 * 21);
}

TEST(fork_while_others_are_busy) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> busy;
  for (int i = 0; i < 2; ++i) {
    busy.emplace_back([&] {
      while (!stop) parallel(4, 3, [](std::int64_t) {});
    });
  }
  for (int round = 0; round < 30; ++round) {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      std::atomic<int> done{0};
      parallel(50, 3, [&](std::int64_t) { ++done; });
      _exit(done == 50 ? 0 : 3);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %d", status);
  }
  stop = true;
  for (std::thread& thread : busy) thread.join();
}
