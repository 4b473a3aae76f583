// SPDX-License-Identifier: Apache-2.0
// A part of engine.cpp: how threads run, wait for each other and end, as fibers and as threads.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "cuda/shim/engine.h"

#ifndef SEQREC_SHIM_THREADS
#include "cuda/shim/fibers.h"
#endif

namespace seqrec {
namespace cuda {
namespace shim {

#ifdef SEQREC_SHIM_THREADS
thread_local Thread* current_thread = nullptr;
#else
Thread* current_thread = nullptr;
#endif
Device device;
bool counting = false;

/// A place where a known number of threads meet, again and again.
struct Gate {
  unsigned arrived{};
  std::uint64_t generation{};
  Site site{};  // of the first that arrived
#ifdef SEQREC_SHIM_THREADS
  std::mutex mutex;
  std::condition_variable all_here;
#else
  std::vector<Thread*> waiting;
#endif
};

/// What the lanes of one mask give each other; two sets, so that the next meeting may begin while
/// the slowest lane still reads.
struct Exchange {
  Gate gate;
  alignas(16) unsigned char slots[2][kWarp * kSlot];
};

struct Warp {
  unsigned done{};  // lanes that have ended
  std::map<unsigned, std::unique_ptr<Exchange>> exchanges;
#ifdef SEQREC_SHIM_THREADS
  std::mutex mutex;  // of the map
#endif
};

struct Block {
  uint3 index{};
  Gate barrier;
  int counts[2]{};
  unsigned done{};
  unsigned char* shared{};
  std::vector<Thread> threads;
  std::vector<std::unique_ptr<Warp>> warps;
};

struct Grid {
  const char* name{};
  dim3 size, block;
  std::size_t shared_bytes{};
  bool cooperative{};
  const std::function<void()>* body{};
  unsigned threads{}, done{};
  Gate barrier;
};

namespace {

std::mutex one_launch;  // at a time
Grid* running = nullptr;
std::vector<Launched> launches;
std::map<const void*, std::size_t> allowed;  // shared memory of kernels
std::uint64_t order_seed = 1;
constexpr std::size_t kCanary = 64;
constexpr unsigned char kPoison = 0xFF;  // of float32, float16 and bfloat16 a NaN; of int -1
constexpr unsigned char kGuard = 0xA5;

std::string text_of(const Site& site) {
  const char* base = std::strrchr(site.file, '/');
  return std::string(site.what) + " (" + (base != nullptr ? base + 1 : site.file) + ":" +
         std::to_string(site.line) + ")";
}

std::string text_of(const Thread& thread) {
  const uint3& b = thread.block->index;
  return "thread " + std::to_string(thread.number) + " of block (" + std::to_string(b.x) + ", " +
         std::to_string(b.y) + ", " + std::to_string(b.z) + ")";
}

// ---------------------------------------------------------------------------- fibers, or threads

#ifndef SEQREC_SHIM_THREADS

struct Scheduler {
  void* main_context{};
  std::deque<Thread*> ready;
  std::string error;
  std::uint64_t idle_yields{};
  Stacks stacks;
  const void* main_bottom{};
  std::size_t main_bytes{};
  void* main_fake{};
} scheduler;

constexpr std::uint64_t kMostIdleYields = 2'000'000;

/// Leaves the running context, whose place is `from`, for a fiber, or for the launch where null.
void go(void** from, void** fake, Thread* to) {
  (void)fake;
  current_thread = to;
  void* context = to != nullptr ? to->context : scheduler.main_context;
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = to != nullptr ? to->stack : scheduler.main_bottom;
  const std::size_t bytes = to != nullptr ? kStackBytes : scheduler.main_bytes;
  __sanitizer_start_switch_fiber(fake, bottom, bytes);
#endif
  switch_context(from, context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake != nullptr ? *fake : nullptr, nullptr, nullptr);
#endif
}

void leave_to_next(Thread& thread, bool forever) {
  Thread* next = nullptr;
  if (scheduler.error.empty() && !scheduler.ready.empty()) {
    next = scheduler.ready.front();
    scheduler.ready.pop_front();
  }
  if (next == &thread) return;
  go(&thread.context, forever ? nullptr : &thread.fake_stack, next);
}

void finish(Thread& thread);

void fiber_entry() {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  std::size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (scheduler.main_bottom == nullptr) {  // the first fiber comes from the launch
    scheduler.main_bottom = bottom;
    scheduler.main_bytes = bytes;
  }
#endif
  (*running->body)();
  Thread& thread = self();
  finish(thread);
  leave_to_next(thread, true);
  __builtin_unreachable();
}

/// Arrives, and goes on when `expected` have; `enter` runs first, `last` on the last that comes.
template <typename Enter, typename Last>
void meet(Gate& gate, unsigned expected, const Site& site, Enter enter, Last last) {
  enter();
  if (gate.arrived == 0) gate.site = site;
  if (++gate.arrived == expected) {
    last();
    gate.arrived = 0;
    ++gate.generation;
    scheduler.idle_yields = 0;
    for (Thread* thread : gate.waiting) {
      thread->waits = Site{};
      scheduler.ready.push_back(thread);
    }
    gate.waiting.clear();
    return;
  }
  Thread& thread = self();
  thread.waits = site;
  gate.waiting.push_back(&thread);
  leave_to_next(thread, false);
}

bool waited_for(const Gate& gate) { return gate.arrived > 0; }

#else

// Without the lock but in the case of a fault: see `ended`.
bool waited_for(Gate& gate) {
  if (__atomic_load_n(&gate.arrived, __ATOMIC_RELAXED) == 0) return false;
  const std::lock_guard<std::mutex> lock(gate.mutex);
  return gate.arrived > 0;
}

[[noreturn]] void stuck(const Gate& gate) {
  fail("threads wait without end at " + text_of(gate.site) + ": " + std::to_string(gate.arrived) +
       " have come");
}

template <typename Enter, typename Last>
void meet(Gate& gate, unsigned expected, const Site& site, Enter enter, Last last) {
  std::unique_lock<std::mutex> lock(gate.mutex);
  enter();
  if (gate.arrived == 0) gate.site = site;
  if (__atomic_add_fetch(&gate.arrived, 1, __ATOMIC_RELAXED) == expected) {
    last();
    __atomic_store_n(&gate.arrived, 0, __ATOMIC_RELAXED);
    ++gate.generation;
    gate.all_here.notify_all();
    return;
  }
  const std::uint64_t before = gate.generation;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (gate.generation == before) {
    if (gate.all_here.wait_until(lock, end) == std::cv_status::timeout &&
        gate.generation == before) {
      stuck(gate);
    }
  }
}

#endif

// ------------------------------------------------------------------------------- the end, reports

void check_same(const Gate& gate, const Site& site) {
  if (gate.arrived == 0) return;
  if (std::strcmp(gate.site.what, site.what) == 0 && gate.site.line == site.line) return;
  fail(text_of(self()) + " is at " + text_of(site) + " while others wait at " + text_of(gate.site));
}

// Who has ended is counted without a lock: one that all threads take would order what they did
// before, and hide from the thread sanitizer that nothing else does.
unsigned ended(const unsigned& count) { return __atomic_load_n(&count, __ATOMIC_RELAXED); }

/// Refuses an end while others wait for this thread.
void finish(Thread& thread) {
  thread.done = true;
  Block& block = *thread.block;
  Grid& grid = *thread.grid;
  Warp& warp = *thread.warp;
  __atomic_fetch_or(&warp.done, 1u << thread.lane, __ATOMIC_RELAXED);
  __atomic_fetch_add(&block.done, 1, __ATOMIC_RELAXED);
  __atomic_fetch_add(&grid.done, 1, __ATOMIC_RELAXED);
#ifndef SEQREC_SHIM_THREADS
  scheduler.idle_yields = 0;
#endif
  const auto refuse = [&](Gate& gate) {
    if (!waited_for(gate)) return;
    fail(text_of(thread) + " ended while others wait for it at " + text_of(gate.site));
  };
  refuse(block.barrier);
  refuse(grid.barrier);
#ifdef SEQREC_SHIM_THREADS
  const std::lock_guard<std::mutex> lock(warp.mutex);
#endif
  for (auto& [mask, exchange] : warp.exchanges) {
    if ((mask >> thread.lane & 1u) != 0) refuse(exchange->gate);
  }
}

void refuse_ended(unsigned done, const Site& site) {
  if (done == 0) return;
  fail(text_of(self()) + " waits at " + text_of(site) + ", but " + std::to_string(done) +
       " of those that it waits for have ended");
}

}  // namespace

}  // namespace shim
}  // namespace cuda
}  // namespace seqrec
