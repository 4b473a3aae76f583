// SPDX-License-Identifier: Apache-2.0
// One pool of threads for the whole library.
//
// * No thread exists before the first parallel region, and none after a fork until the next one.
// * Workers spin for a short while after a region, then park, so that regions in quick succession
//   start in under a microsecond and an idle library costs nothing.
// * The calling thread always works on its own region and needs nobody else to finish it. Regions
//   inside regions and regions from many threads at once therefore never wait for a worker that
//   has not already taken up one of their tasks, and cannot deadlock.
#pragma once

#include <cstdint>
#include <type_traits>

namespace seqrec {

/// Threads used when a call does not say; the processors this process may run on, until set.
int get_num_threads();

/// Sets the above; `threads` is at least 1.
void set_num_threads(int threads);

/// The most threads that may be asked for.
inline constexpr int kMaxThreads = 1024;

/// Threads for a job of `nanoseconds` on one: 1 where splitting would cost more than it saves.
int threads_worth(double nanoseconds, int limit);

/// Workers that exist in this process now (0 before the first parallel region).
int pool_workers();

namespace detail {
using TaskFunction = void (*)(void* context, std::int64_t task);
void run_tasks(std::int64_t tasks, int threads, TaskFunction function, void* context);
}  // namespace detail

/// Calls `body(task)` for task = 0 … tasks - 1, on up to `threads` threads, and waits.
///
/// The order of tasks is not defined, but they are begun in ascending order. The first exception
/// thrown by a task is thrown again here, after the tasks that had begun have ended; tasks not yet
/// begun are then dropped.
template <typename Body>
void parallel(std::int64_t tasks, int threads, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  detail::run_tasks(
      tasks, threads,
      [](void* context, std::int64_t task) { (*static_cast<Plain*>(context))(task); },
      const_cast<std::remove_const_t<Plain>*>(&body));
}

}  // namespace seqrec
