// SPDX-License-Identifier: Apache-2.0
// Lets a C++ compiler compile the .cu files for the CPU:
//
//   g++ -std=c++17 -x c++ -DSEQREC_CUDA_SHIM -include csrc/cuda/shim/shim.h -Icsrc file.cu
//
// A kernel becomes a function that the engine calls once for each thread of the launch. There is no
// static __shared__: memory of the block is had by SEQREC_SHARED alone, because only its size and
// its end are known here.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cuda/shim/engine.h"
#include "cuda/shim/runtime.h"
#include "cuda/shim/types.h"

#define threadIdx (::seqrec::cuda::shim::self().index)
#define blockIdx (::seqrec::cuda::shim::block_index())
#define blockDim (::seqrec::cuda::shim::block_dim())
#define gridDim (::seqrec::cuda::shim::grid_dim())
#define warpSize 32

using std::max;
using std::min;

// ------------------------------------------------------------------------------------- barriers

#define __syncthreads() ::seqrec::cuda::shim::sync_threads(__FILE__, __LINE__)
#define __syncthreads_count(p) ::seqrec::cuda::shim::sync_threads_count(p, __FILE__, __LINE__)
#define __syncthreads_or(p) (__syncthreads_count(p) != 0)

namespace seqrec {
namespace cuda {
namespace shim {

struct SyncWarp {
  const char* file;
  int line;
  void operator()(unsigned mask = 0xFFFFFFFFu) const {
    exchange(mask, nullptr, 0, "__syncwarp", file, line);
  }
};

/// What lane `from` of the mask gave; `value` itself where `from` is out of the group.
template <typename T>
T shuffle(unsigned mask, T value, unsigned from, bool inside, const char* what, const char* file,
          int line) {
  static_assert(sizeof(T) <= kSlot, "a shuffle moves at most a slot");
  const unsigned char* slots = exchange(mask, &value, sizeof(T), what, file, line);
  if (!inside) return value;
  if ((mask >> from & 1u) == 0) fail(std::string(what) + ": reads a lane that the mask leaves out");
  T found;
  std::memcpy(&found, slots + from * kSlot, sizeof(T));
  return found;
}

/// The places a shuffle can read from, by its kind.
struct Shuffle {
  const char* file;
  int line;

  template <typename T>
  T at(unsigned mask, T value, int source, int width = 32) const {
    const unsigned lane = self().lane, w = static_cast<unsigned>(width), group = lane & ~(w - 1);
    return shuffle(mask, value, group + (static_cast<unsigned>(source) & (w - 1)), true,
                   "__shfl_sync", file, line);
  }
  template <typename T>
  T up(unsigned mask, T value, unsigned delta, int width = 32) const {
    const unsigned lane = self().lane, group = lane & ~(static_cast<unsigned>(width) - 1);
    return shuffle(mask, value, lane - delta, lane >= group + delta, "__shfl_up_sync", file, line);
  }
  template <typename T>
  T down(unsigned mask, T value, unsigned delta, int width = 32) const {
    const unsigned lane = self().lane, w = static_cast<unsigned>(width), group = lane & ~(w - 1);
    return shuffle(mask, value, lane + delta, lane + delta < group + w, "__shfl_down_sync", file,
                   line);
  }
  template <typename T>
  T other(unsigned mask, T value, int bits, int width = 32) const {
    const unsigned lane = self().lane, w = static_cast<unsigned>(width);
    const unsigned from = lane ^ static_cast<unsigned>(bits);
    return shuffle(mask, value, from, from < (lane & ~(w - 1)) + w, "__shfl_xor_sync", file, line);
  }
};

inline unsigned ballot(unsigned mask, int predicate, const char* file, int line) {
  const unsigned char given = predicate != 0;
  const unsigned char* slots = exchange(mask, &given, 1, "__ballot_sync", file, line);
  unsigned found = 0;
  for (unsigned i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1u) != 0 && slots[i * kSlot] != 0) found |= 1u << i;
  }
  return found;
}

template <typename T>
unsigned match_any(unsigned mask, T value, const char* file, int line) {
  const unsigned char* slots = exchange(mask, &value, sizeof(T), "__match_any_sync", file, line);
  unsigned found = 0;
  for (unsigned i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1u) != 0 && std::memcmp(slots + i * kSlot, &value, sizeof(T)) == 0) {
      found |= 1u << i;
    }
  }
  return found;
}

template <typename T, typename Join>
T reduce(unsigned mask, T value, Join join, const char* what, const char* file, int line) {
  const unsigned char* slots = exchange(mask, &value, sizeof(T), what, file, line);
  bool first = true;
  T sum{};
  for (unsigned i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1u) == 0) continue;
    T one;
    std::memcpy(&one, slots + i * kSlot, sizeof(T));
    sum = first ? one : join(sum, one);
    first = false;
  }
  return sum;
}

template <typename T>
T atomic_load(const T* p) {
  T value;
  __atomic_load(const_cast<T*>(p), &value, __ATOMIC_RELAXED);
  return value;
}

/// The old value, after `change(old)` took its place.
template <typename T, typename F>
T atomic_change(T* p, F change) {
  T old = atomic_load(p), next;
  do {
    next = change(old);
  } while (!__atomic_compare_exchange(p, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

}  // namespace shim
}  // namespace cuda
}  // namespace seqrec

#define SEQREC_SHIM_SHUFFLE (::seqrec::cuda::shim::Shuffle{__FILE__, __LINE__})
#define __syncwarp (::seqrec::cuda::shim::SyncWarp{__FILE__, __LINE__})
#define __shfl_sync(...) SEQREC_SHIM_SHUFFLE.at(__VA_ARGS__)
#define __shfl_up_sync(...) SEQREC_SHIM_SHUFFLE.up(__VA_ARGS__)
#define __shfl_down_sync(...) SEQREC_SHIM_SHUFFLE.down(__VA_ARGS__)
#define __shfl_xor_sync(...) SEQREC_SHIM_SHUFFLE.other(__VA_ARGS__)
#define __ballot_sync(mask, p) ::seqrec::cuda::shim::ballot(mask, p, __FILE__, __LINE__)
#define __any_sync(mask, p) (__ballot_sync(mask, p) != 0u)
#define __all_sync(mask, p) (__ballot_sync(mask, p) == static_cast<unsigned>(mask))
#define __match_any_sync(mask, v) ::seqrec::cuda::shim::match_any(mask, v, __FILE__, __LINE__)
#define SEQREC_SHIM_REDUCE(mask, v, what, expression) \
  ::seqrec::cuda::shim::reduce(                       \
      mask, v, [](auto a, auto b) -> decltype(a) { return expression; }, what, __FILE__, __LINE__)
#define __reduce_add_sync(mask, v) SEQREC_SHIM_REDUCE(mask, v, "__reduce_add_sync", a + b)
#define __reduce_max_sync(mask, v) SEQREC_SHIM_REDUCE(mask, v, "__reduce_max_sync", a > b ? a : b)
#define __reduce_min_sync(mask, v) SEQREC_SHIM_REDUCE(mask, v, "__reduce_min_sync", a < b ? a : b)
#define __reduce_or_sync(mask, v) SEQREC_SHIM_REDUCE(mask, v, "__reduce_or_sync", a | b)

inline void __nanosleep(unsigned) { ::seqrec::cuda::shim::yield(); }

// The order of memory is that of the barriers and of the acquiring and releasing atomics, which the
// thread sanitizer understands; fences it does not.
inline void __threadfence() {}
inline void __threadfence_block() {}

// -------------------------------------------------------------------------------------- atomics

template <typename T>
T atomicAdd(T* p, T value) {
  return ::seqrec::cuda::shim::atomic_change(p, [&](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicSub(T* p, T value) {
  return ::seqrec::cuda::shim::atomic_change(p, [&](T old) { return static_cast<T>(old - value); });
}
template <typename T>
T atomicMax(T* p, T value) {
  return ::seqrec::cuda::shim::atomic_change(p, [&](T old) { return std::max(old, value); });
}
template <typename T>
T atomicMin(T* p, T value) {
  return ::seqrec::cuda::shim::atomic_change(p, [&](T old) { return std::min(old, value); });
}
template <typename T>
T atomicOr(T* p, T value) {
  return ::seqrec::cuda::shim::atomic_change(p, [&](T old) { return old | value; });
}
template <typename T>
T atomicAnd(T* p, T value) {
  return ::seqrec::cuda::shim::atomic_change(p, [&](T old) { return old & value; });
}
template <typename T>
T atomicExch(T* p, T value) {
  return ::seqrec::cuda::shim::atomic_change(p, [&](T) { return value; });
}
template <typename T>
T atomicCAS(T* p, T expected, T value) {
  return ::seqrec::cuda::shim::atomic_change(p,
                                             [&](T old) { return old == expected ? value : old; });
}

// ------------------------------------------------------------------------------------ arithmetic

template <typename To, typename From>
To seqrec_shim_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

inline int __float_as_int(float x) { return seqrec_shim_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return seqrec_shim_bits<unsigned>(x); }
inline float __int_as_float(int x) { return seqrec_shim_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return seqrec_shim_bits<float>(x); }
inline long long __double_as_longlong(double x) { return seqrec_shim_bits<long long>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<std::uint64_t>(a) * b >> 32);
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

template <typename T>
T __ldg(const T* p) {
  ::seqrec::cuda::shim::count_load(p, sizeof(T));
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return __ldg(p);
}
template <typename T>
T __ldcg(const T* p) {
  return __ldg(p);
}
template <typename T>
void __stcs(T* p, T value) {
  ::seqrec::cuda::shim::count_store(p, sizeof(T));
  *p = value;
}
template <typename T>
void __stcg(T* p, T value) {
  __stcs(p, value);
}
