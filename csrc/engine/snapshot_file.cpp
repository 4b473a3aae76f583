// SPDX-License-Identifier: Apache-2.0
#include "engine/snapshot_file.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <limits>
#include <system_error>

#include "base/crc64.h"

namespace seqrec {
namespace {

constexpr char kMagic[8] = {'S', 'E', 'Q', 'R', 'E', 'C', 'S', 'S'};
constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kEnd = 0xffffffff;
constexpr std::size_t kPiece = std::size_t{1} << 20;  // read at once, so that no size is trusted

struct BlockHeader {
  std::uint32_t bytes, users;
  std::uint64_t checksum;
};

std::uint64_t checksum_of(const SnapshotHeader& header) {
  return crc64(&header, offsetof(SnapshotHeader, checksum));
}

std::uint64_t checksum_of(const BlockHeader& header, const std::vector<char>& block,
                          std::uint64_t before) {
  const std::uint64_t sizes = crc64(&header, offsetof(BlockHeader, checksum), before);
  return crc64(block.data(), static_cast<std::int64_t>(block.size()), sizes);
}

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument(why); }

}  // namespace

SnapshotWriter::SnapshotWriter(int file, SnapshotHeader header) : file_(file) {
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  header.bytes = sizeof(header);
  header.checksum = checksum_ = checksum_of(header);
  block_.reserve(2 * kBlock);
  write(&header, sizeof(header));
}

void SnapshotWriter::flush() {
  if (in_block_ > 0) write_block(in_block_);
  users_ += in_block_;
  in_block_ = 0;
}

void SnapshotWriter::finish() {
  flush();
  put(users_);
  write_block(kEnd);
}

void SnapshotWriter::write_block(std::uint32_t users) {
  if (block_.size() > std::numeric_limits<std::uint32_t>::max()) throw std::bad_alloc();
  BlockHeader header{static_cast<std::uint32_t>(block_.size()), users, 0};
  header.checksum = checksum_ = checksum_of(header, block_, checksum_);
  write(&header, sizeof(header));
  write(block_.data(), block_.size());
  block_.clear();
}

void SnapshotWriter::write(const void* data, std::size_t bytes) {
  const auto* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done = ::write(file_, from, bytes);
    if (done < 0) {
      if (errno == EINTR) continue;
      throw std::system_error(errno, std::generic_category());
    }
    from += done;
    bytes -= static_cast<std::size_t>(done);
  }
}

SnapshotReader::SnapshotReader(int file) : file_(file) {
  const std::size_t found = read(&header_, sizeof(header_));
  if (found < sizeof(kMagic) || std::memcmp(header_.magic, kMagic, sizeof(kMagic)) != 0) {
    refuse("not a snapshot of sessions");
  }
  if (found >= offsetof(SnapshotHeader, bytes) && header_.version > kVersion) {
    refuse("written in format " + std::to_string(header_.version) + ", this library reads up to " +
           std::to_string(kVersion) + "; upgrade seqrec-fast");
  }
  if (found < sizeof(header_)) refuse("cut off within its header; it was truncated");
  if (header_.checksum != checksum_of(header_) || header_.bytes != sizeof(header_) ||
      header_.version < 1) {
    refuse("the checksum of its header does not match; it was damaged");
  }
  checksum_ = header_.checksum;
}

bool SnapshotReader::next_block() {
  BlockHeader header;
  if (read(&header, sizeof(header)) < sizeof(header)) {
    refuse("cut off after " + std::to_string(users_) + " users; it was truncated");
  }
  block_.clear();
  at_ = 0;
  while (block_.size() < header.bytes) {
    const std::size_t before = block_.size();
    const std::size_t more = std::min(kPiece, header.bytes - before);
    block_.resize(before + more);
    if (read(block_.data() + before, more) < more) {
      refuse("cut off after " + std::to_string(users_) + " users; it was truncated");
    }
  }
  if (header.checksum != checksum_of(header, block_, checksum_)) damaged();
  checksum_ = header.checksum;
  ++blocks_;
  if (header.users != kEnd) {
    if (header.users == 0) damaged();
    left_ = header.users;
    return true;
  }
  char more;
  if (get<std::int64_t>() != users_ || rest() != 0) damaged();
  if (read(&more, 1) != 0) refuse("there is more behind its end; it was damaged");
  return false;
}

void SnapshotReader::damaged() const {
  refuse("the checksum of block " + std::to_string(blocks_) + " does not match; it was damaged");
}

std::size_t SnapshotReader::read(void* data, std::size_t bytes) {
  auto* to = static_cast<char*>(data);
  std::size_t found = 0;
  while (found < bytes) {
    const ssize_t more = ::read(file_, to + found, bytes - found);
    if (more < 0) {
      if (errno == EINTR) continue;
      throw std::system_error(errno, std::generic_category());
    }
    if (more == 0) break;
    found += static_cast<std::size_t>(more);
  }
  return found;
}

}  // namespace seqrec
