// SPDX-License-Identifier: Apache-2.0
// Working memory that a thread keeps between calls, so that a request allocates nothing.
//
// Memory from the system costs more than it seems: blocks of over 128 KiB come anew at every call,
// and each of their pages costs a fault at its first touch. Each thread therefore has a stack of
// its own, from which buffers are taken and to which they return when they go out of scope. A
// thread keeps at most kScratchKept bytes while it holds no buffer, and gives all back at its end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>
#include <type_traits>

#include "base/aligned.h"

namespace seqrec {

/// Bytes that an idle thread keeps at most.
inline constexpr std::size_t kScratchKept = std::size_t{64} << 20;

namespace detail {
/// Memory on a cache-line boundary from the stack of this thread; throws std::bad_alloc.
void* take_scratch(std::size_t bytes);
/// Returns what take_scratch gave; in any order, but on the thread that took it.
void return_scratch(void* memory, std::size_t bytes) noexcept;
}  // namespace detail

/// Uninitialised memory of the calling thread; has to end on the thread where it began.
template <typename T = float>
class Scratch {
  static_assert(std::is_trivially_copyable_v<T>, "the elements are neither built nor destroyed");

 public:
  explicit Scratch(std::int64_t size) : size_(size) {
    if (size > std::numeric_limits<std::int64_t>::max() / 2 / std::int64_t{sizeof(T)}) {
      throw std::bad_alloc();
    }
    data_ = static_cast<T*>(detail::take_scratch(bytes()));
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { detail::return_scratch(data_, bytes()); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::int64_t size() const { return size_; }
  T& operator[](std::int64_t i) { return data_[i]; }
  const T& operator[](std::int64_t i) const { return data_[i]; }

 private:
  std::size_t bytes() const {
    return (static_cast<std::size_t>(size_) * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
  }

  T* data_;
  std::int64_t size_;
};

}  // namespace seqrec
