// SPDX-License-Identifier: Apache-2.0
// Uninitialised memory on a boundary of cache lines, freed when it goes out of scope.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

namespace seqrec {

inline constexpr std::size_t kCacheLine = 64;

/// Lines are fetched in pairs: what two threads write at the same time lies in different ones.
inline constexpr std::size_t kLinePair = 2 * kCacheLine;

template <typename T>
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
    void* memory = nullptr;
    if (posix_memalign(&memory, kLinePair, size * sizeof(T)) != 0) throw std::bad_alloc();
    data_ = static_cast<T*>(memory);
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
  ~AlignedBuffer() { std::free(data_); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace seqrec
