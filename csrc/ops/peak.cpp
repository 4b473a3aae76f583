// SPDX-License-Identifier: Apache-2.0
#include "ops/peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "base/aligned.h"
#include "base/thread_pool.h"

namespace seqrec {
namespace {

constexpr int kFmaRuns = 8;
constexpr double kFmaSeconds = 4e-3;
constexpr int kReadRuns = 3;
constexpr std::int64_t kPiece = 64 * 1024;  // floats a task reads: 256 KiB

// What the loops return goes here, so that no compiler can drop them.
std::atomic<float> sink{0.0f};

template <typename Body>
double seconds(const Body& body) {
  const auto began = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

double best_flops(int threads, const PeakKernels& kernels) {
  const auto run = [&](std::int64_t rounds) {
    return seconds([&] {
      parallel(threads, threads, [&](std::int64_t) {
        sink.store(kernels.multiply_add(rounds), std::memory_order_relaxed);
      });
    });
  };
  std::int64_t rounds = 1 << 12;
  while (run(rounds) < kFmaSeconds) rounds *= 2;
  double best = 1e9;
  for (int i = 0; i < kFmaRuns; ++i) best = std::min(best, run(rounds));
  return static_cast<double>(rounds * kernels.operations_per_round) * threads / best;
}

double best_bandwidth(int threads, std::int64_t bytes, const PeakKernels& kernels) {
  const std::int64_t count = std::max<std::int64_t>(bytes / 4, 1);
  AlignedBuffer<float> data(static_cast<std::size_t>(count));
  std::fill_n(data.data(), count, 1.0f);
  const std::int64_t pieces = (count + kPiece - 1) / kPiece;
  double best = 1e9;
  for (int i = 0; i < kReadRuns; ++i) {
    best =
        std::min(best, seconds([&] {
                   parallel(pieces, threads, [&](std::int64_t piece) {
                     const std::int64_t from = piece * kPiece;
                     const std::int64_t size = std::min(kPiece, count - from);
                     sink.store(kernels.read(data.data() + from, size), std::memory_order_relaxed);
                   });
                 }));
  }
  return 4.0 * static_cast<double>(count) / best;
}

}  // namespace

Peak measure_peak(int threads, std::int64_t bytes, const KernelTable& table) {
  return {best_flops(threads, *table.peak), best_bandwidth(threads, bytes, *table.peak)};
}

}  // namespace seqrec
