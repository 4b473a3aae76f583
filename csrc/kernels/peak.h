// SPDX-License-Identifier: Apache-2.0
// Two loops that do nothing but keep one part of the processor busy.
//
// The multiply-add loop holds as many accumulators as the registers allow: each is a chain of its
// own, so that the latency of one (4 or 5 cycles on two ports) is hidden behind the others. The
// reading loop adds up a buffer; where that lies in memory, adding is far cheaper than reading.
#pragma once

#include "base/simd.h"
#include "kernels/peak_types.h"

namespace seqrec {
namespace SEQREC_ISA {

template <int W>
struct Peak {
  using F = Floats<W>;

  // Of 16 registers (32 with AVX-512 and NEON) two hold the factors.
#if defined(__AVX512F__) || defined(__aarch64__)
  static constexpr int kChains = 24;
#else
  static constexpr int kChains = 12;
#endif
  static constexpr std::int64_t kOperations = 2 * kChains * W;

  static SEQREC_NOINLINE float multiply_add(std::int64_t rounds) {
    // x = x / 2 + 1/2 tends to 1: never a denormal, never an overflow
    volatile float half = 0.5f;
    const F factor = broadcast<W>(half), term = broadcast<W>(half);
    F chain[kChains];
    for (int i = 0; i < kChains; ++i) chain[i] = broadcast<W>(static_cast<float>(i));
    for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
      for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * factor + term;
    }
    F sum = chain[0];
    for (int i = 1; i < kChains; ++i) sum += chain[i];
    return horizontal_sum<W>(sum);
  }

  static SEQREC_NOINLINE float read(const float* data, std::int64_t count) {
    constexpr int kStreams = 8;
    F sum[kStreams] = {};
    std::int64_t i = 0;
    for (; i + kStreams * W <= count; i += kStreams * W) {
#pragma GCC unroll 8
      for (int s = 0; s < kStreams; ++s) sum[s] += load<W>(data + i + s * W);
    }
    float rest = 0.0f;
    for (; i < count; ++i) rest += data[i];
    for (int s = 1; s < kStreams; ++s) sum[0] += sum[s];
    return rest + horizontal_sum<W>(sum[0]);
  }
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
