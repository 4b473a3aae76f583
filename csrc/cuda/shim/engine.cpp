// SPDX-License-Identifier: Apache-2.0
#include "cuda/shim/engine.h"

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

namespace {

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

}  // namespace

struct Warp {
  unsigned done{};  // lanes that have ended
  std::map<unsigned, std::unique_ptr<Exchange>> exchanges;
#ifdef SEQREC_SHIM_THREADS
  std::mutex mutex;  // of the map and `done`
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
#ifdef SEQREC_SHIM_THREADS
  std::mutex mutex;  // of `done`, the blocks' too
#endif
};

namespace {

std::mutex one_launch;  // at a time
Grid* running = nullptr;
std::vector<Launched> launches;
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

constexpr std::uint64_t kMostIdleYields = 20'000'000;

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

template <typename Last>
void meet(Gate& gate, unsigned expected, const Site& site, Last last) {
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

struct Lock {
  template <typename T>
  explicit Lock(T&) {}
};

#else

using Lock = std::unique_lock<std::mutex>;

[[noreturn]] void stuck(const Gate& gate) {
  fail("threads wait without end at " + text_of(gate.site) + ": " + std::to_string(gate.arrived) +
       " have come");
}

template <typename Last>
void meet(Gate& gate, unsigned expected, const Site& site, Last last) {
  std::unique_lock<std::mutex> lock(gate.mutex);
  if (gate.arrived == 0) gate.site = site;
  if (++gate.arrived == expected) {
    last();
    gate.arrived = 0;
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

/// Refuses an end while others wait for this thread.
void finish(Thread& thread) {
  thread.done = true;
  Block& block = *thread.block;
  Grid& grid = *thread.grid;
  const auto refuse = [&](const Gate& gate) {
    fail(text_of(thread) + " ended while others wait for it at " + text_of(gate.site));
  };
  {
    Warp& warp = *thread.warp;
    const Lock lock(*[&] {
#ifdef SEQREC_SHIM_THREADS
      return &warp.mutex;
#else
      return &warp;
#endif
    }());
    warp.done |= 1u << thread.lane;
    for (auto& [mask, exchange] : warp.exchanges) {
      if ((mask >> thread.lane & 1u) != 0 && exchange->gate.arrived > 0) refuse(exchange->gate);
    }
  }
#ifdef SEQREC_SHIM_THREADS
  const Lock lock(grid.mutex);
  const bool at_block = [&] {
    const Lock inner(block.barrier.mutex);
    return block.barrier.arrived > 0;
  }();
  const bool at_grid = [&] {
    const Lock inner(grid.barrier.mutex);
    return grid.barrier.arrived > 0;
  }();
#else
  const bool at_block = block.barrier.arrived > 0, at_grid = grid.barrier.arrived > 0;
  scheduler.idle_yields = 0;
#endif
  ++block.done;
  ++grid.done;
  if (at_block) refuse(block.barrier);
  if (at_grid) refuse(grid.barrier);
}

void refuse_ended(unsigned done, const Site& site) {
  if (done == 0) return;
  fail(text_of(self()) + " waits at " + text_of(site) + ", but " + std::to_string(done) +
       " of those that it waits for have ended");
}

// ---------------------------------------------------------------------------------- the launches

std::uint64_t draw(std::uint64_t& state) {
  std::uint64_t z = state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

template <typename T>
void shuffle_order(std::vector<T>& items, std::uint64_t& state) {
  for (std::size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[draw(state) % i]);
}

/// Shared memory, poisoned, with a guard behind it (the address sanitizer has its own).
unsigned char* make_shared_memory(std::size_t bytes) {
  void* memory = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  const std::size_t whole = bytes;
#else
  const std::size_t whole = bytes + kCanary;
#endif
  if (posix_memalign(&memory, 128, std::max<std::size_t>(whole, 1)) != 0) throw std::bad_alloc();
  std::memset(memory, kPoison, bytes);
#if !defined(__SANITIZE_ADDRESS__)
  std::memset(static_cast<unsigned char*>(memory) + bytes, kGuard, kCanary);
#endif
  return static_cast<unsigned char*>(memory);
}

/// What was written behind the shared memory; frees it.
std::string end_shared_memory(const Grid& grid, Block& block) {
  std::string error;
#if !defined(__SANITIZE_ADDRESS__)
  for (std::size_t i = 0; i < kCanary; ++i) {
    if (block.shared[grid.shared_bytes + i] == kGuard) continue;
    error = "block (" + std::to_string(block.index.x) + ", " + std::to_string(block.index.y) +
            ", " + std::to_string(block.index.z) + ") wrote byte " +
            std::to_string(grid.shared_bytes + i) + " of " + std::to_string(grid.shared_bytes) +
            " bytes of shared memory";
    break;
  }
#else
  (void)grid;
#endif
  std::free(block.shared);
  return error;
}

std::unique_ptr<Block> make_block(Grid& grid, unsigned number) {
  auto block = std::make_unique<Block>();
  block->index = {number % grid.size.x, number / grid.size.x % grid.size.y,
                  number / grid.size.x / grid.size.y};
  block->shared = make_shared_memory(grid.shared_bytes);
  const unsigned threads = grid.block.x * grid.block.y * grid.block.z;
  block->threads.resize(threads);
  for (unsigned i = 0; i < threads; ++i) {
    if (i % kWarp == 0) block->warps.push_back(std::make_unique<Warp>());
    Thread& thread = block->threads[i];
    thread.index = {i % grid.block.x, i / grid.block.x % grid.block.y,
                    i / grid.block.x / grid.block.y};
    thread.number = i;
    thread.lane = i % kWarp;
    thread.block = block.get();
    thread.warp = block->warps.back().get();
    thread.grid = &grid;
  }
  return block;
}

#ifndef SEQREC_SHIM_THREADS

std::string where_all_wait(const std::vector<Thread*>& threads) {
  std::map<std::string, unsigned> places;
  unsigned ended = 0;
  for (const Thread* thread : threads) {
    if (thread->done) {
      ++ended;
    } else {
      ++places[thread->waits.what != nullptr ? text_of(thread->waits) : "nothing"];
    }
  }
  std::string found = "no thread can go on:";
  for (const auto& [place, count] : places) {
    found += " " + std::to_string(count) + " wait at " + place + ",";
  }
  return found + " " + std::to_string(ended) + " have ended";
}

/// Runs the blocks at once, to their end; what went wrong is returned.
std::string run_blocks(std::vector<std::unique_ptr<Block>>& blocks, std::uint64_t& order) {
  std::vector<Thread*> threads;
  for (auto& block : blocks) {
    for (Thread& thread : block->threads) threads.push_back(&thread);
  }
  std::vector<Thread*> started = threads;
  shuffle_order(started, order);
  for (Thread* thread : started) {
    thread->stack = scheduler.stacks.take();
    thread->context = new_context(thread->stack, &fiber_entry);
  }
  scheduler.error.clear();
  scheduler.idle_yields = 0;
  scheduler.main_bottom = nullptr;
  scheduler.ready.assign(started.begin() + 1, started.end());
  go(&scheduler.main_context, &scheduler.main_fake, started.front());
  std::string error = scheduler.error;
  const bool all = std::all_of(threads.begin(), threads.end(), [](Thread* t) { return t->done; });
  if (error.empty() && !all) error = where_all_wait(threads);
  for (Thread* thread : threads) {
    if (error.empty() && !thread->open.empty()) {
      error = text_of(*thread) + " ended with copies that it never committed";
    }
    scheduler.stacks.give(thread->stack);
  }
  scheduler.ready.clear();
  return error;
}

#else

std::string run_blocks(std::vector<std::unique_ptr<Block>>& blocks, std::uint64_t&) {
  std::vector<std::thread> threads;
  for (auto& block : blocks) {
    for (Thread& thread : block->threads) {
      threads.emplace_back([&thread] {
        current_thread = &thread;
        (*thread.grid->body)();
        finish(thread);
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
  return {};
}

#endif

/// How many blocks of a plain launch are alive at once.
unsigned blocks_at_once(const Grid& grid, unsigned blocks) {
#ifdef SEQREC_SHIM_THREADS
  constexpr unsigned kMostThreads = 2048;
  const unsigned threads = grid.block.x * grid.block.y * grid.block.z;
  if (!grid.cooperative) return std::max(1u, std::min(blocks, kMostThreads / threads));
#else
  if (!grid.cooperative) return 1;
#endif
  return blocks;
}

}  // namespace

void fail(const std::string& message) {
#ifdef SEQREC_SHIM_THREADS
  std::fprintf(stderr, "kernel %s: %s\n", running != nullptr ? running->name : "?",
               message.c_str());
  std::fflush(stderr);
  std::_Exit(70);
#else
  if (current_thread == nullptr) throw std::runtime_error(message);
  scheduler.error = message;
  leave_to_next(self(), true);
  __builtin_unreachable();
#endif
}

dim3 block_dim() { return self().grid->block; }
dim3 grid_dim() { return self().grid->size; }
uint3 block_index() { return self().block->index; }
unsigned char* shared_memory() { return self().block->shared; }

int sync_threads_count(int predicate, const char* file, int line) {
  Thread& thread = self();
  Block& block = *thread.block;
  const Site site{"__syncthreads", file, line};
  std::uint64_t set;
  {
#ifdef SEQREC_SHIM_THREADS
    {
      const Lock lock(thread.grid->mutex);
      refuse_ended(block.done, site);
    }
    const Lock lock(block.barrier.mutex);
#else
    refuse_ended(block.done, site);
#endif
    check_same(block.barrier, site);
    set = block.barrier.generation & 1;
    block.counts[set] += predicate != 0 ? 1 : 0;
  }
  meet(block.barrier, static_cast<unsigned>(block.threads.size()), site,
       [&] { block.counts[set ^ 1] = 0; });
  return block.counts[set];
}

void sync_threads(const char* file, int line) { sync_threads_count(0, file, line); }

void sync_grid(const char* file, int line) {
  Thread& thread = self();
  Grid& grid = *thread.grid;
  const Site site{"grid_barrier", file, line};
  if (!grid.cooperative) fail("a grid barrier in a kernel that was not launched cooperatively");
  {
#ifdef SEQREC_SHIM_THREADS
    {
      const Lock lock(grid.mutex);
      refuse_ended(grid.done, site);
    }
    const Lock lock(grid.barrier.mutex);
#else
    refuse_ended(grid.done, site);
#endif
    check_same(grid.barrier, site);
  }
  meet(grid.barrier, grid.threads, site, [] {});
}

void yield() {
#ifdef SEQREC_SHIM_THREADS
  std::this_thread::yield();
#else
  if (++scheduler.idle_yields > kMostIdleYields) {
    fail(text_of(self()) + " waits for memory that nobody changes");
  }
  scheduler.ready.push_back(&self());
  leave_to_next(self(), false);
#endif
}

const unsigned char* exchange(unsigned mask, const void* given, unsigned bytes, const char* what,
                              const char* file, int line, void (*last)(unsigned char* slots)) {
  Thread& thread = self();
  Warp& warp = *thread.warp;
  const Site site{what, file, line};
  if ((mask >> thread.lane & 1u) == 0) {
    fail(text_of(thread) + " is not in the mask of its " + text_of(site));
  }
  Exchange* found;
  {
#ifdef SEQREC_SHIM_THREADS
    const Lock lock(warp.mutex);
#endif
    refuse_ended(static_cast<unsigned>(__builtin_popcount(warp.done & mask)), site);
    std::unique_ptr<Exchange>& entry = warp.exchanges[mask];
    if (entry == nullptr) entry = std::make_unique<Exchange>();
    found = entry.get();
  }
  unsigned char* slots;
  {
#ifdef SEQREC_SHIM_THREADS
    const Lock lock(found->gate.mutex);
#endif
    check_same(found->gate, site);
    slots = found->slots[found->gate.generation & 1];
    if (bytes != 0) std::memcpy(slots + thread.lane * kSlot, given, bytes);
  }
  meet(found->gate, static_cast<unsigned>(__builtin_popcount(mask)), site, [&] {
    if (last != nullptr) last(slots);
  });
  return slots;
}

// -------------------------------------------------------------------------- asynchronous copies

void copy_async(void* to, const void* from, unsigned bytes, unsigned valid) {
  if (reinterpret_cast<std::uintptr_t>(to) % bytes != 0 ||
      (valid != 0 && reinterpret_cast<std::uintptr_t>(from) % bytes != 0)) {
    fail(text_of(self()) + ": an asynchronous copy of " + std::to_string(bytes) +
         " bytes at an address that is no multiple of it");
  }
  if (valid != 0) count_load(from, valid);
  self().open.push_back({to, from, bytes, valid});
}

void copy_async_commit() {
  self().committed.push_back(std::move(self().open));
  self().open.clear();
}

/// The copies land here and no sooner, so that a read without a wait finds the poison.
void copy_async_wait(unsigned newest) {
  auto& groups = self().committed;
  while (groups.size() > newest) {
    for (const PendingCopy& copy : groups.front()) {
      if (copy.valid != 0) std::memcpy(copy.to, copy.from, copy.valid);
      auto* to = static_cast<unsigned char*>(copy.to);
      std::memset(to + copy.valid, 0, copy.bytes - copy.valid);
    }
    groups.erase(groups.begin());
  }
}

// --------------------------------------------------------------------------------------- counting

namespace {

struct Watched {
  std::uintptr_t begin;
  std::size_t bytes;
  Counter counter;
};
std::vector<Watched> watched_memory;  // the first is everything

void add(std::uint64_t& sum, std::uint64_t value) {
  __atomic_fetch_add(&sum, value, __ATOMIC_RELAXED);
}

template <typename F>
void for_each_counter(const void* p, F f) {
  const auto at = reinterpret_cast<std::uintptr_t>(p);
  for (Watched& w : watched_memory) {
    if (at - w.begin < w.bytes) f(w.counter);
  }
}

}  // namespace

void count_load_slow(const void* from, std::size_t bytes) {
  for_each_counter(from, [&](Counter& c) {
    add(c.loads, 1);
    add(c.loaded_bytes, bytes);
  });
}

void count_store_slow(const void* to, std::size_t bytes) {
  for_each_counter(to, [&](Counter& c) {
    add(c.stores, 1);
    add(c.stored_bytes, bytes);
  });
}

void start_counting(const std::vector<std::pair<std::uintptr_t, std::size_t>>& watched) {
  const std::lock_guard<std::mutex> lock(one_launch);
  watched_memory.assign(1, {0, ~static_cast<std::size_t>(0), {}});
  for (const auto& [begin, bytes] : watched) watched_memory.push_back({begin, bytes, {}});
  counting = true;
}

std::vector<Counter> stop_counting() {
  const std::lock_guard<std::mutex> lock(one_launch);
  counting = false;
  std::vector<Counter> found;
  for (const Watched& w : watched_memory) found.push_back(w.counter);
  return found;
}

std::vector<Launched> take_launches() {
  const std::lock_guard<std::mutex> lock(one_launch);
  return std::move(launches);
}

// ------------------------------------------------------------------------------------- the device

int blocks_per_multiprocessor(unsigned threads, std::size_t shared_bytes) {
  constexpr int kReserved = 1024;  // of shared memory, by the system, a block
  if (threads == 0 || static_cast<int>(threads) > device.threads_per_block ||
      static_cast<int>(shared_bytes) > device.shared_per_block) {
    return 0;
  }
  const int by_threads = device.threads_per_multiprocessor / static_cast<int>(threads);
  const int by_memory =
      device.shared_per_multiprocessor / (static_cast<int>(shared_bytes) + kReserved);
  return std::min({by_threads, by_memory, device.blocks_per_multiprocessor});
}

void set_order(std::uint64_t seed) { order_seed = seed; }

void run(const char* name, dim3 size, dim3 block, std::size_t shared_bytes, bool cooperative,
         const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(one_launch);
  Grid grid;
  grid.name = name;
  grid.size = size;
  grid.block = block;
  grid.shared_bytes = shared_bytes;
  grid.cooperative = cooperative;
  grid.body = &body;
  launches.push_back({name, size, block, shared_bytes, cooperative});
  const unsigned blocks = size.x * size.y * size.z;
  grid.threads = blocks * block.x * block.y * block.z;
  running = &grid;
  std::uint64_t order = order_seed;
  std::vector<unsigned> numbers(blocks);
  for (unsigned i = 0; i < blocks; ++i) numbers[i] = i;
  shuffle_order(numbers, order);
  const unsigned at_once = blocks_at_once(grid, blocks);
  std::string error;
  for (unsigned first = 0; first < blocks && error.empty(); first += at_once) {
    std::vector<std::unique_ptr<Block>> alive;
    for (unsigned i = first; i < std::min(blocks, first + at_once); ++i) {
      alive.push_back(make_block(grid, numbers[i]));
    }
    error = run_blocks(alive, order);
    for (auto& one : alive) {
      const std::string overrun = end_shared_memory(grid, *one);
      if (error.empty()) error = overrun;
    }
  }
  running = nullptr;
  current_thread = nullptr;
  if (error.empty()) return;
#ifdef SEQREC_SHIM_THREADS
  std::fprintf(stderr, "kernel %s: %s\n", name, error.c_str());
  std::_Exit(70);
#else
  throw std::runtime_error("kernel " + std::string(name) + ": " + error);
#endif
}

}  // namespace shim
}  // namespace cuda
}  // namespace seqrec
