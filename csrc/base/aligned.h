// SPDX-License-Identifier: Apache-2.0
// Uninitialised memory on a boundary of cache lines, freed when it goes out of scope.
//
// AlignedBuffer is for what lives as long as a call, TableBuffer for what lives as long as a model.
// The heap would keep freed tables of megabytes as holes, and each thread has a heap of its own:
// where models come and go, a process would hold many times what it uses.
#pragma once

#include <cstddef>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

namespace seqrec {

inline constexpr std::size_t kCacheLine = 64;

/// Lines are fetched in pairs: what two threads write at the same time lies in different ones.
inline constexpr std::size_t kLinePair = 2 * kCacheLine;

/// Where buffers come from, on a boundary of kLinePair bytes; `take` throws std::bad_alloc.
struct Heap {
  static void* take(std::size_t bytes);
  static void give_back(void* memory, std::size_t bytes) noexcept;
};

/// Large buffers are mappings of their own, which go back to the system when they are given back;
/// small ones come from the heap.
struct OwnPages {
  static constexpr std::size_t kLeast = std::size_t{16} << 10;
  static void* take(std::size_t bytes);
  static void give_back(void* memory, std::size_t bytes) noexcept;
};

template <typename T, typename Memory = Heap>
class AlignedBuffer {
  static_assert(std::is_trivially_copyable_v<T>, "the elements are neither built nor destroyed");

 public:
  AlignedBuffer() = default;

  /// Room for `size` elements, contents undefined. Throws std::bad_alloc.
  explicit AlignedBuffer(std::size_t size) : size_(size) {
    if (size == 0) return;
    if (size > (std::numeric_limits<std::size_t>::max() - kLinePair) / sizeof(T)) {
      throw std::bad_alloc();
    }
    data_ = static_cast<T*>(Memory::take(size * sizeof(T)));
  }

  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer() {
    if (data_ != nullptr) Memory::give_back(data_, size_ * sizeof(T));
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

template <typename T>
using TableBuffer = AlignedBuffer<T, OwnPages>;

}  // namespace seqrec
