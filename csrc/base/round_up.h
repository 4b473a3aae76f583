// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace seqrec {

/// The least multiple of `to` that is not below `n`; n >= 0, to > 0.
constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

}  // namespace seqrec
