// SPDX-License-Identifier: Apache-2.0
#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "base/relax.h"

namespace seqrec {
namespace {

// Long enough to catch the next region of the same operation, short enough not to rob others.
constexpr std::chrono::microseconds kSpinTime{30};

/// Waits for `done()` by spinning; false when the time is over.
template <typename Done>
bool spin_until(Done done) {
  const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return done();
}

/// One parallel region; lives on the stack of the thread that asked for it.
struct Region {
  detail::TaskFunction function;
  void* context;
  std::int64_t tasks;
  std::atomic<std::int64_t> next{0};
  std::atomic<int> helpers{0};  // workers inside the region; they enter under the pool's mutex
  int room;                     // workers that may still enter; guarded by the pool's mutex
  std::mutex error_mutex;
  std::exception_ptr error;
  Region* following = nullptr;  // in the pool's list; guarded by its mutex

  void work() {
    for (;;) {
      const std::int64_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks) return;
      try {
        function(context, task);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(tasks, std::memory_order_relaxed);
      }
    }
  }
};

class ThreadPool {
 public:
  void run(Region& region, int helpers) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      grow(helpers);
      region.room = std::min(helpers, workers_.load(std::memory_order_relaxed));
      region.following = open_;
      open_ = &region;
      epoch_.fetch_add(1, std::memory_order_release);
      const int wake = std::min(region.room, parked_);
      // Awake workers too: one that has been put behind the caller would never come.
      if (wake > 0 || region.following == nullptr) steer_away_from_caller();
      for (int i = 0; i < wake; ++i) wake_.notify_one();
    }
    region.work();
    close(region);
    // Helpers that are inside hold tasks that have begun; none can enter any more.
    const auto empty = [&] { return region.helpers.load(std::memory_order_acquire) == 0; };
    if (!spin_until(empty)) {
      std::unique_lock<std::mutex> lock(mutex_);
      left_.wait(lock, empty);
    }
  }

  int workers() const { return workers_.load(std::memory_order_relaxed); }

 private:
  void close(Region& region) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Region** at = &open_; *at != nullptr; at = &(*at)->following) {
      if (*at == &region) {
        *at = region.following;
        return;
      }
    }
  }

  /// Starts workers up to `wanted`; fewer when the system refuses. Holds the mutex.
  void grow(int wanted) {
    while (workers_.load(std::memory_order_relaxed) < wanted) {
      try {
        std::thread worker([this] { serve(); });
        handles_.push_back(worker.native_handle());
        worker.detach();
        avoided_ = -1;
      } catch (const std::system_error&) {
        return;  // the caller does the work alone
      }
      workers_.fetch_add(1, std::memory_order_relaxed);
    }
  }

  /// Keeps the workers off the processor that the caller is on. Holds the mutex.
  ///
  /// Linux may put a thread that has slept for some milliseconds onto the very processor of the one
  /// that wakes it, beside idle ones, where it waits until the work is done: on two processors a
  /// job of 2.5 ms then took 2.9 ms instead of 1.6. The masks change only when the caller has
  /// moved.
  void steer_away_from_caller() {
#if defined(__linux__)
    const int here = sched_getcpu();
    if (here < 0 || here == avoided_) return;
    cpu_set_t others;
    if (sched_getaffinity(0, sizeof others, &others) != 0) return;
    // A caller that is held on one processor says nothing of where others may run.
    if (CPU_COUNT(&others) < 2 || here >= CPU_SETSIZE) return;
    CPU_CLR(here, &others);
    // Where it is refused the workers run wherever they are put, as without it.
    for (const pthread_t worker : handles_) pthread_setaffinity_np(worker, sizeof others, &others);
    avoided_ = here;
#endif
  }

  /// Takes up a region that has work and room. Holds the mutex.
  Region* enter() {
    for (Region* region = open_; region != nullptr; region = region->following) {
      if (region->room > 0 && region->next.load(std::memory_order_relaxed) < region->tasks) {
        --region->room;
        region->helpers.fetch_add(1, std::memory_order_relaxed);
        return region;
      }
    }
    return nullptr;
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      if (Region* region = enter()) {
        lock.unlock();
        region->work();
        lock.lock();
        // Under the mutex, so that the caller cannot miss the last departure before it waits; the
        // region is not touched after this.
        if (region->helpers.fetch_sub(1, std::memory_order_release) == 1) left_.notify_all();
        continue;
      }
      const std::uint64_t seen = epoch_.load(std::memory_order_relaxed);
      lock.unlock();
      const bool news = spin_until([&] { return epoch_.load(std::memory_order_acquire) != seen; });
      lock.lock();
      if (news) continue;
      ++parked_;
      wake_.wait(lock, [&] { return epoch_.load(std::memory_order_relaxed) != seen; });
      --parked_;
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;  // a region was opened
  std::condition_variable left_;  // the last helper left a region
  std::vector<pthread_t> handles_;
  int avoided_ = -1;  // the processor that the workers' masks leave out
  Region* open_ = nullptr;
  int parked_ = 0;
  std::atomic<std::uint64_t> epoch_{0};
  std::atomic<int> workers_{0};
};

// Never destroyed: workers may still be parked in it when the process ends. After a fork the child
// has none of the workers and may have found the mutex locked, so it starts with a new pool.
std::atomic<ThreadPool*> g_pool{nullptr};
std::atomic<int> g_num_threads{0};
pthread_once_t g_fork_handler = PTHREAD_ONCE_INIT;

void forget_pool() { g_pool.store(nullptr, std::memory_order_relaxed); }

ThreadPool& pool() {
  ThreadPool* existing = g_pool.load(std::memory_order_acquire);
  if (existing != nullptr) return *existing;
  pthread_once(&g_fork_handler, [] { pthread_atfork(nullptr, nullptr, &forget_pool); });
  auto* fresh = new ThreadPool;
  if (g_pool.compare_exchange_strong(existing, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;  // another thread was quicker; this one has no workers yet
  return *existing;
}

int available_processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace

int get_num_threads() {
  int threads = g_num_threads.load(std::memory_order_relaxed);
  if (threads == 0) {
    int unset = 0;
    threads = std::min(available_processors(), kMaxThreads);
    if (!g_num_threads.compare_exchange_strong(unset, threads)) threads = unset;
  }
  return threads;
}

void set_num_threads(int threads) { g_num_threads.store(threads, std::memory_order_relaxed); }

int threads_worth(double nanoseconds, int limit) {
  // Waking a parked worker costs about 12 microseconds; below 50 of work it is not worth it.
  constexpr double kShare = 25e3;
  return static_cast<int>(std::clamp(nanoseconds / kShare, 1.0, static_cast<double>(limit)));
}

int pool_workers() {
  const ThreadPool* existing = g_pool.load(std::memory_order_acquire);
  return existing == nullptr ? 0 : existing->workers();
}

namespace detail {

void run_tasks(std::int64_t tasks, int threads, TaskFunction function, void* context) {
  if (tasks <= 0) return;
  const int helpers = static_cast<int>(std::min<std::int64_t>(threads, tasks)) - 1;
  if (helpers <= 0) {
    for (std::int64_t task = 0; task < tasks; ++task) function(context, task);
    return;
  }
  Region region;
  region.function = function;
  region.context = context;
  region.tasks = tasks;
  pool().run(region, helpers);
  if (region.error) std::rethrow_exception(region.error);
}

}  // namespace detail
}  // namespace seqrec
