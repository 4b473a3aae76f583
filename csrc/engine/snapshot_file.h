// SPDX-License-Identifier: Apache-2.0
// A snapshot of sessions as bytes: a header, blocks of users, an end; each with a checksum that
// goes on from the one before, so that no part can be changed, lost or moved unnoticed.
//
//     header   magic "SEQRECSS", version, identity of the model, sizes, time of day, checksum
//     block    bytes (u32), users (u32), checksum (u64), then the users one after the other
//     end      a block with users = 0xffffffff that states the number of users
//
// Numbers are little-endian, as on all machines that this library is built for.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace seqrec {

struct SnapshotHeader {
  char magic[8];
  std::uint32_t version;
  std::uint32_t bytes;  // of this header
  std::uint8_t identity[32];
  std::int64_t wall;  // nanoseconds, time of day
  std::int64_t window, state_size;
  std::uint64_t checksum;  // of all before it
};
static_assert(sizeof(SnapshotHeader) == 80, "no padding, since it goes to the disk");

class SnapshotWriter {
 public:
  /// Writes the header. Throws std::system_error, as all others do.
  SnapshotWriter(int file, SnapshotHeader header);

  template <typename T>
  void put(const T* values, std::int64_t count) {
    const auto* bytes = reinterpret_cast<const char*>(values);
    block_.insert(block_.end(), bytes, bytes + count * static_cast<std::int64_t>(sizeof(T)));
  }
  template <typename T>
  void put(T value) {
    put(&value, 1);
  }
  /// One user has been put.
  void end_user() { ++in_block_; }
  /// Whether the block should be written.
  bool full() const { return block_.size() >= kBlock; }
  void flush();
  void finish();

 private:
  static constexpr std::size_t kBlock = std::size_t{64} << 10;

  void write_block(std::uint32_t users);
  void write(const void* data, std::size_t bytes);

  int file_;
  std::uint64_t checksum_;
  std::uint32_t in_block_ = 0;
  std::int64_t users_ = 0;
  std::vector<char> block_;
};

/// Throws std::invalid_argument, with what is wrong, where the file is no whole snapshot.
class SnapshotReader {
 public:
  explicit SnapshotReader(int file);

  const SnapshotHeader& header() const { return header_; }
  /// Reads the next block; false at the end of a whole file.
  bool next_block();
  /// Users of the block that are not yet read.
  std::uint32_t left() const { return left_; }
  void end_user() {
    if (--left_ == 0 && at_ != block_.size()) damaged();
    ++users_;
  }

  template <typename T>
  const T* get(std::int64_t count, std::vector<T>& into) {
    into.resize(static_cast<std::size_t>(count));
    take(into.data(), count * static_cast<std::int64_t>(sizeof(T)));
    return into.data();
  }
  template <typename T>
  T get() {
    T value;
    take(&value, sizeof(T));
    return value;
  }
  /// Bytes of the block that are not yet read.
  std::int64_t rest() const { return static_cast<std::int64_t>(block_.size() - at_); }

  [[noreturn]] void damaged() const;

 private:
  void take(void* to, std::int64_t bytes) {
    if (bytes > rest()) damaged();
    if (bytes > 0) std::memcpy(to, block_.data() + at_, static_cast<std::size_t>(bytes));
    at_ += static_cast<std::size_t>(bytes);
  }
  /// Bytes that could be read, at most `bytes`.
  std::size_t read(void* data, std::size_t bytes);

  int file_;
  SnapshotHeader header_;
  std::uint64_t checksum_ = 0;
  std::uint32_t left_ = 0;
  std::int64_t users_ = 0, blocks_ = 0;
  std::size_t at_ = 0;
  std::vector<char> block_;
};

}  // namespace seqrec
