// SPDX-License-Identifier: Apache-2.0
// Keys of users: an integer or a text. 1 and "1" are different users.
#pragma once

#include <cstdint>
#include <cstring>
#include <new>

namespace seqrec {

/// A key that is seen, not owned.
struct UserKey {
  static UserKey of(std::int64_t number) { return {number, nullptr, 0}; }
  static UserKey of(const char* text, std::uint32_t size) { return {0, text, size}; }

  bool is_number() const { return text == nullptr; }

  std::int64_t number;
  const char* text;  // UTF-8, not terminated; null: the key is the number
  std::uint32_t size;
};

/// A key that is kept: texts of up to 16 bytes lie inside, longer ones in memory of their own.
class StoredKey {
 public:
  static constexpr std::uint32_t kInside = 16;

  StoredKey() = default;

  /// Throws std::bad_alloc, nothing changed.
  void set(const UserKey& key) {
    if (key.is_number()) {
      size_ = kNumber;
      std::memcpy(inside_, &key.number, sizeof(key.number));
    } else if (key.size <= kInside) {
      size_ = key.size;
      std::memcpy(inside_, key.text, key.size);
    } else {
      auto* memory = new char[key.size];
      std::memcpy(memory, key.text, key.size);
      std::memcpy(inside_, &memory, sizeof(memory));
      size_ = key.size;
    }
  }

  /// Has to be called before the memory of the key is used for something else.
  void clear() {
    if (!fits()) delete[] far();
    size_ = kNumber;
  }

  UserKey view() const {
    if (size_ != kNumber) return UserKey::of(fits() ? inside_ : far(), size_);
    std::int64_t number;
    std::memcpy(&number, inside_, sizeof(number));
    return UserKey::of(number);
  }

  bool equals(const UserKey& key) const {
    const UserKey mine = view();
    if (mine.is_number() || key.is_number()) {
      return mine.is_number() && key.is_number() && mine.number == key.number;
    }
    return mine.size == key.size && std::memcmp(mine.text, key.text, key.size) == 0;
  }

  /// Bytes outside of the object, with what an allocator adds.
  static std::int64_t far_bytes(const UserKey& key) {
    return key.is_number() || key.size <= kInside ? 0 : (std::int64_t{key.size} + 31) / 16 * 16;
  }

 private:
  static constexpr std::uint32_t kNumber = 0xffffffff;

  bool fits() const { return size_ == kNumber || size_ <= kInside; }
  char* far() const {
    char* memory;
    std::memcpy(&memory, inside_, sizeof(memory));
    return memory;
  }

  alignas(8) char inside_[kInside];
  std::uint32_t size_ = kNumber;
};

/// 64 well mixed bits; `seed` keeps the order of the table secret from who chooses the keys.
inline std::uint64_t hash_key(const UserKey& key, std::uint64_t seed) {
  const auto mix = [](std::uint64_t x) {
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93ull;
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93ull;
    return x ^ (x >> 32);
  };
  if (key.is_number()) return mix(static_cast<std::uint64_t>(key.number) + seed);
  std::uint64_t hash = mix(seed ^ (0x9e3779b97f4a7c15ull + key.size));
  std::uint32_t at = 0;
  for (; at + 8 <= key.size; at += 8) {
    std::uint64_t word;
    std::memcpy(&word, key.text + at, 8);
    hash = mix(hash ^ word);
  }
  std::uint64_t rest = 0;
  std::memcpy(&rest, key.text + at, key.size - at);
  return mix(hash ^ rest);
}

}  // namespace seqrec
