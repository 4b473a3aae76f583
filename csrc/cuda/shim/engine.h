// SPDX-License-Identifier: Apache-2.0
// The machine that runs CUDA kernels on the CPU: who is a thread, a warp, a block, and how they
// meet.
//
// Each GPU thread is a fiber (a stack of its own, switched by hand) or, with SEQREC_SHIM_THREADS, a
// thread of the operating system, so that the thread sanitizer sees what is ordered by a barrier
// and what is not. A launch runs to its end before it returns. The blocks of a plain launch run one
// after another as fibers, those of a cooperative one all at once; as threads all are alive at once
// in either case. The order in which fibers start is shuffled, so that work without a barrier that
// happens to be right in one order does not pass.
//
// What a GPU would answer with silence or a hang is an error here: threads of a block at different
// barriers or at none, lanes that a mask names and that do not come, a grid barrier without a
// cooperative launch, a grid that is not co-resident, a write beyond the shared memory, a load or
// store at an address that is no multiple of its size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/shim/types.h"

namespace seqrec {
namespace cuda {
namespace shim {

struct Block;
struct Grid;
struct Thread;
struct Warp;

constexpr unsigned kWarp = 32;

/// Where threads wait for each other: a call in the source.
struct Site {
  const char* what;
  const char* file;
  int line;
};

/// A copy that was begun and has not landed (cp.async).
struct PendingCopy {
  void* to;
  const void* from;
  unsigned bytes, valid;
};

/// One GPU thread.
struct Thread {
  uint3 index{};      // threadIdx
  unsigned number{};  // in its block
  unsigned lane{};
  Block* block{};
  Warp* warp{};
  Grid* grid{};
  bool done{};
  Site waits{};  // what is null while it runs
  std::vector<PendingCopy> open;
  std::vector<std::vector<PendingCopy>> committed;
  // fibers
  void* context{};
  unsigned char* stack{};
  void* fake_stack{};
};

#ifdef SEQREC_SHIM_THREADS
extern thread_local Thread* current_thread;
#else
extern Thread* current_thread;
#endif

inline Thread& self() { return *current_thread; }

dim3 block_dim();
dim3 grid_dim();
uint3 block_index();
unsigned char* shared_memory();

void sync_threads(const char* file, int line);
int sync_threads_count(int predicate, const char* file, int line);
void sync_grid(const char* file, int line);
/// Lets others run: what a loop that waits for memory to change must call.
void yield();
/// Memory that others may wait for was changed.
void progress();

/// All lanes of `mask` meet; each gives `bytes` bytes and sees what the lanes gave. The returned
/// memory holds kSlot bytes a lane and is good until the lane's next meeting but one.
constexpr unsigned kSlot = 32;
const unsigned char* exchange(unsigned mask, const void* given, unsigned bytes, const char* what,
                              const char* file, int line,
                              void (*last)(unsigned char* slots) = nullptr);

void copy_async(void* to, const void* from, unsigned bytes, unsigned valid);
void copy_async_commit();
void copy_async_wait(unsigned newest);

[[noreturn]] void fail(const std::string& message);

/// Memory that tests watch: what the wrapped loads and stores of device.cuh touch.
struct Counter {
  std::uint64_t loads{}, loaded_bytes{}, stores{}, stored_bytes{};
};
extern bool counting;
void count_load_slow(const void* from, std::size_t bytes);
void count_store_slow(const void* to, std::size_t bytes);
/// A GPU refuses to load or store at an address that is no multiple of the size; a CPU does not.
[[noreturn]] void misaligned(std::size_t bytes);
inline void check_aligned(const void* p, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(p) % bytes != 0) misaligned(bytes);
}
inline void count_load(const void* from, std::size_t bytes) {
  check_aligned(from, bytes);
  if (counting) count_load_slow(from, bytes);
}
inline void count_store(const void* to, std::size_t bytes) {
  check_aligned(to, bytes);
  if (counting) count_store_slow(to, bytes);
}

/// A launch that was made, for tests.
struct Launched {
  std::string name;
  dim3 grid, block;
  std::size_t shared_bytes;
  bool cooperative;
};

/// Starts counting from zero; `watched` are regions with a counter each (begin, bytes).
void start_counting(const std::vector<std::pair<std::uintptr_t, std::size_t>>& watched);
/// The sums of all, then of each watched region; counting stops.
std::vector<Counter> stop_counting();
/// The launches since the last call of this function.
std::vector<Launched> take_launches();

/// The device that is pretended.
struct Device {
  int multiprocessors = 4;
  int threads_per_multiprocessor = 2048;
  int blocks_per_multiprocessor = 32;
  int threads_per_block = 1024;
  int shared_per_multiprocessor = 167936;
  int shared_per_block = 166912;
  int major = 8, minor = 0;
};
extern Device device;
/// Blocks of this size that fit on a multiprocessor, registers left out.
int blocks_per_multiprocessor(unsigned threads, std::size_t shared_bytes);

/// What a kernel may have of shared memory: 48 KiB, or what was allowed last.
void allow_shared(const void* function, std::size_t bytes);
std::size_t allowed_shared(const void* function);

/// Of the order in which fibers start; the same seed gives the same order.
void set_order(std::uint64_t seed);

/// Runs the kernel; what went wrong is thrown (fibers) or printed before an abort (threads).
void run(const char* name, dim3 grid, dim3 block, std::size_t shared_bytes, bool cooperative,
         const std::function<void()>& body);

}  // namespace shim
}  // namespace cuda
}  // namespace seqrec
