// SPDX-License-Identifier: Apache-2.0
#include "base/crc64.h"

#include <array>
#include <cstring>

namespace seqrec {
namespace {

constexpr std::uint64_t kPolynomial = 0xc96c5795d7870f42ull;  // bits reversed

using Tables = std::array<std::array<std::uint64_t, 256>, 8>;

/// tables[k][b]: what byte b does to the checksum k bytes later.
Tables make_tables() {
  Tables tables{};
  for (std::uint64_t byte = 0; byte < 256; ++byte) {
    std::uint64_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? kPolynomial : 0);
    tables[0][byte] = value;
  }
  for (std::size_t later = 1; later < 8; ++later) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint64_t value = tables[later - 1][byte];
      tables[later][byte] = (value >> 8) ^ tables[0][value & 255];
    }
  }
  return tables;
}

}  // namespace

std::uint64_t crc64(const void* data, std::int64_t bytes, std::uint64_t before) {
  static const Tables tables = make_tables();
  const auto* at = static_cast<const unsigned char*>(data);
  std::uint64_t crc = ~before;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  for (; bytes >= 8; bytes -= 8, at += 8) {
    std::uint64_t word;
    std::memcpy(&word, at, 8);
    word ^= crc;
    crc = 0;
    for (std::size_t byte = 0; byte < 8; ++byte) {
      crc ^= tables[7 - byte][(word >> (8 * byte)) & 255];
    }
  }
#endif
  for (; bytes > 0; --bytes, ++at) crc = (crc >> 8) ^ tables[0][(crc ^ *at) & 255];
  return ~crc;
}

}  // namespace seqrec
