// SPDX-License-Identifier: Apache-2.0
#include "cuda/shim/engine.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cuda/shim/counting.h"
#include "cuda/shim/meeting.h"

namespace seqrec {
namespace cuda {
namespace shim {

namespace {

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

void misaligned(std::size_t bytes) {
  fail(text_of(self()) + " loads or stores " + std::to_string(bytes) +
       " bytes at an address that is no multiple of it");
}

dim3 block_dim() { return self().grid->block; }
dim3 grid_dim() { return self().grid->size; }
uint3 block_index() { return self().block->index; }
unsigned char* shared_memory() { return self().block->shared; }

int sync_threads_count(int predicate, const char* file, int line) {
  Block& block = *self().block;
  const Site site{"__syncthreads", file, line};
  std::uint64_t set = 0;
  meet(
      block.barrier, static_cast<unsigned>(block.threads.size()), site,
      [&] {
        refuse_ended(ended(block.done), site);
        check_same(block.barrier, site);
        set = block.barrier.generation & 1;
        block.counts[set] += predicate != 0 ? 1 : 0;
      },
      [&] { block.counts[set ^ 1] = 0; });
  return block.counts[set];
}

void sync_threads(const char* file, int line) { sync_threads_count(0, file, line); }

void sync_grid(const char* file, int line) {
  Grid& grid = *self().grid;
  const Site site{"grid_barrier", file, line};
  if (!grid.cooperative) fail("a grid barrier in a kernel that was not launched cooperatively");
  meet(
      grid.barrier, grid.threads, site,
      [&] {
        refuse_ended(ended(grid.done), site);
        check_same(grid.barrier, site);
      },
      [] {});
}

void progress() {
#ifndef SEQREC_SHIM_THREADS
  scheduler.idle_yields = 0;
#endif
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
    const std::lock_guard<std::mutex> lock(warp.mutex);
#endif
    std::unique_ptr<Exchange>& entry = warp.exchanges[mask];
    if (entry == nullptr) entry = std::make_unique<Exchange>();
    found = entry.get();
  }
  unsigned char* slots = nullptr;
  meet(
      found->gate, static_cast<unsigned>(__builtin_popcount(mask)), site,
      [&] {
        refuse_ended(static_cast<unsigned>(__builtin_popcount(ended(warp.done) & mask)), site);
        check_same(found->gate, site);
        slots = found->slots[found->gate.generation & 1];
        if (bytes != 0) std::memcpy(slots + thread.lane * kSlot, given, bytes);
      },
      [&] {
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

void allow_shared(const void* function, std::size_t bytes) {
  const std::lock_guard<std::mutex> lock(one_launch);
  allowed[function] = bytes;
}

std::size_t allowed_shared(const void* function) {
  const std::lock_guard<std::mutex> lock(one_launch);
  const auto found = allowed.find(function);
  return found == allowed.end() ? std::size_t{48} << 10 : found->second;
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
