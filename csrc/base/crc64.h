// SPDX-License-Identifier: Apache-2.0
// A checksum that finds damage (not intent) in files: CRC-64 with the polynomial of ECMA-182.
#pragma once

#include <cstdint>

namespace seqrec {

/// The checksum of `before` followed by `bytes`; begins with 0.
std::uint64_t crc64(const void* data, std::int64_t bytes, std::uint64_t before = 0);

}  // namespace seqrec
