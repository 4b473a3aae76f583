// SPDX-License-Identifier: Apache-2.0
#include "ops/topk_int8.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "base/huge_pages.h"
#include "base/round_up.h"
#include "base/thread_pool.h"
#include "ops/topk.h"
#include "ops/topk_filter.h"

namespace seqrec {
namespace {

constexpr std::int64_t kGroupQueries = 64;  // queries scanned together
constexpr std::int64_t kOwnQueries = 4;     // a thread with this many scans the table for itself
constexpr std::int64_t kPieces = 8;         // pieces of the table for each thread
constexpr std::int64_t kScratchBytes = std::int64_t{256} << 20;

/// Rounded up, past what the computation of `x` in double may have rounded away.
float raised(double x) { return static_cast<float>(x * (1.0 + 0x1p-20)) + 0x1p-126f; }

/// The nearest whole number of a small one, to even at a half; a call of the library is slower.
double nearest(double x) { return (x + 0x1.8p52) - 0x1.8p52; }

}  // namespace

bool has_vnni() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

// ------------------------------------------------------------------------------ the table

Int8Table::Int8Table(const ItemRows& items, const float* bias, std::int64_t num_items,
                     std::int64_t dim, int threads)
    : num_items_(num_items), dim_(dim), has_bias_(bias != nullptr) {
  fill(items, bias, threads);
}

Int8Table::Int8Table(const float* items, const std::int32_t* names, std::int64_t places,
                     std::int64_t dim, int threads)
    : num_items_(places), dim_(dim), has_bias_(false), names_(names) {
  fill(items, nullptr, threads);
  names_ = nullptr;
}

Int8Table::Int8Table(const std::uint8_t* blocks, const Int8Bounds* bounds, std::int64_t num_items,
                     std::int64_t dim, bool has_bias)
    : num_items_(num_items), dim_(dim), has_bias_(has_bias), stored_bounds_(bounds) {
  measure();
  if (reinterpret_cast<std::uintptr_t>(blocks) % kCacheLine == 0) {
    stored_blocks_ = blocks;
    return;
  }
  take_blocks();
  std::copy_n(blocks, blocks_.size(), blocks_.data());
}

void Int8Table::measure() {
  quads_ = (dim_ + 3) / 4;
  block_bytes_ = (quads_ * 4 + (has_bias_ ? 8 : 4)) * kInt8Rows;
  num_blocks_ = (num_items_ + kInt8Rows - 1) / kInt8Rows;
}

void Int8Table::take_blocks() {
  blocks_ = TableBuffer<std::uint8_t>(static_cast<std::size_t>(num_blocks_ * block_bytes_));
  // a scan then does not stop at every 4 KiB for the address
  advise_huge_pages(blocks_.data(), static_cast<std::int64_t>(blocks_.size()));
}

void Int8Table::fill(const ItemRows& items, const float* bias, int threads) {
  measure();
  take_blocks();
  bounds_ = TableBuffer<Int8Bounds>(static_cast<std::size_t>(num_blocks_));
  constexpr std::int64_t kShare = 64;  // blocks
  const std::int64_t shares = (num_blocks_ + kShare - 1) / kShare;
  const int worth = threads_worth(3.0 * static_cast<double>(num_items_ * dim_), threads);
  parallel(shares, worth, [&](std::int64_t share) {
    const std::int64_t end = std::min((share + 1) * kShare, num_blocks_);
    for (std::int64_t b = share * kShare; b < end; ++b) fill_block(items, bias, b);
  });
}

void Int8Table::fill_block(const ItemRows& items, const float* bias, std::int64_t block) {
  std::uint8_t* bytes = blocks_.data() + block * block_bytes_;
  float* scales = reinterpret_cast<float*>(bytes + quads_ * 4 * kInt8Rows);
  std::memset(bytes, 128, static_cast<std::size_t>(quads_ * 4 * kInt8Rows));
  Scratch<float> widened(items.floats != nullptr ? 0 : dim_);
  double norm = 0.0, rest = 0.0;
  float most_bias = 0.0f;
  for (std::int64_t row = 0; row < kInt8Rows; ++row) {
    const std::int64_t place = block * kInt8Rows + row;
    const std::int64_t id = names_ != nullptr ? names_[place] : place < num_items_ ? place : -1;
    const float b = bias != nullptr && id >= 0 ? bias[id] : 0.0f;
    scales[row] = kInt8LeastScale;
    if (has_bias_) scales[kInt8Rows + row] = b;
    if (id < 0) continue;
    const float* item = items.floats != nullptr ? items.floats + id * dim_ : widened.data();
    if (items.floats == nullptr) {
      kernels().topk->widen(items, dim_, nullptr, id, 1, widened.data());
    }
    float most = 0.0f;
    bool bounded = std::fabs(b) <= kInt8MostBias;
    for (std::int64_t d = 0; d < dim_; ++d) {
      const float size = std::fabs(item[d]);
      bounded = bounded && size <= kInt8MostItem;  // false also for NaN
      most = size > most ? size : most;
    }
    if (!bounded) {
      scales[row] = std::numeric_limits<float>::quiet_NaN();
      if (has_bias_) scales[kInt8Rows + row] = 0.0f;
      continue;
    }
    const float scale = std::max(most / 127.0f, kInt8LeastScale);
    const double inverse = 1.0 / double{scale};
    double squares = 0.0, rests = 0.0;
    for (std::int64_t d = 0; d < dim_; ++d) {
      const double x = double{item[d]} * inverse;
      const double c = std::min(127.0, std::max(-127.0, nearest(x)));
      squares += c * c;
      rests += (x - c) * (x - c);
      bytes[(d / 4 * kInt8Rows + row) * 4 + d % 4] =
          static_cast<std::uint8_t>(static_cast<int>(c) + 128);
    }
    scales[row] = scale;
    norm = std::max(norm, squares);
    rest = std::max(rest, rests);
    most_bias = std::max(most_bias, std::fabs(b));
  }
  bounds_[static_cast<std::size_t>(block)] = {raised(std::sqrt(norm)), raised(std::sqrt(rest)),
                                              most_bias * 0x1p-20f, 0.0f};
}

Int8Items Int8Table::view() const {
  return {stored_blocks_ != nullptr ? stored_blocks_ : blocks_.data(),
          stored_bounds_ != nullptr ? stored_bounds_ : bounds_.data(),
          num_blocks_,
          block_bytes_,
          quads_,
          nullptr};
}

ByteItemBounds::ByteItemBounds(const ItemRows& items, const float* bias, std::int64_t num_items,
                               std::int64_t dim, int threads) {
  quads_ = (dim + 3) / 4;
  block_bytes_ = (quads_ * 4 + (bias != nullptr ? 8 : 4)) * kInt8Rows;
  num_blocks_ = (num_items + kInt8Rows - 1) / kInt8Rows;
  bounds_ = AlignedBuffer<Int8Bounds>(static_cast<std::size_t>(num_blocks_));
  const auto bound = [&](std::int64_t block) {
    const std::int64_t end = std::min((block + 1) * kInt8Rows, num_items);
    std::int32_t most = 0;
    float most_bias = 0.0f, exceptions = 0.0f;
    for (std::int64_t id = block * kInt8Rows; id < end; ++id) {
      const std::int8_t* item = items.bytes + id * dim;
      std::int32_t squares = 0;  // at most 2^14 * kInt8MaxDim
      for (std::int64_t d = 0; d < dim; ++d) squares += item[d] * item[d];
      const float scale = items.scales[id], b = bias != nullptr ? std::fabs(bias[id]) : 0.0f;
      // The same conditions as those of TopkInt8Blocks::except.
      const bool sized =
          scale == 0.0f || (scale >= kInt8LeastScale && scale <= kInt8MostItem / 128);
      if (!sized || !(b <= kInt8MostBias)) {
        exceptions = 1.0f;
        continue;
      }
      most = std::max(most, squares);
      most_bias = std::max(most_bias, b);
    }
    // Of s c, float32 rounds away at most 2^-24.
    const double norm = std::sqrt(static_cast<double>(most));
    bounds_[static_cast<std::size_t>(block)] = {raised(norm), raised(norm * 0x1p-24),
                                                most_bias * 0x1p-20f, exceptions};
  };
  constexpr std::int64_t kShare = 256;  // blocks
  const std::int64_t shares = (num_blocks_ + kShare - 1) / kShare;
  const int worth = threads_worth(0.3 * static_cast<double>(num_items * dim), threads);
  parallel(shares, worth, [&](std::int64_t share) {
    const std::int64_t last = std::min((share + 1) * kShare, num_blocks_);
    for (std::int64_t b = share * kShare; b < last; ++b) bound(b);
  });
}

Int8Items ByteItemBounds::view() const {
  return {nullptr, bounds_.data(), num_blocks_, block_bytes_, quads_, nullptr};
}

// ------------------------------------------------------------------------------ the search

namespace {

Int8Query as_bytes(const float* query, std::int64_t dim, int levels, std::int32_t* quads) {
  float most = 0.0f;
  for (std::int64_t d = 0; d < dim; ++d) most = std::max(most, std::fabs(query[d]));
  const float step = std::max(most / static_cast<float>(levels), kInt8LeastScale);
  double norm = 0.0, rest = 0.0;
  std::int32_t sum = 0;
  for (std::int64_t d = 0; d < dim; ++d) {
    const double x = double{query[d]}, most_level = levels;
    const double u = std::min(most_level, std::max(-most_level, nearest(x / step)));
    norm += x * x;
    rest += (x - u * step) * (x - u * step);
    const int whole = static_cast<int>(u);
    sum += whole;
    const auto byte = static_cast<std::uint32_t>(static_cast<std::uint8_t>(whole));
    quads[d / 4] =
        static_cast<std::int32_t>(static_cast<std::uint32_t>(quads[d / 4]) | byte << (8 * (d % 4)));
  }
  norm = std::sqrt(norm);
  rest = std::sqrt(rest);
  // Roundings of the float32 score and of the bounds: each at most 2^-24 of |x| |q|, and far
  // fewer than dim + 64 times two of them.
  const double rounding = (static_cast<double>(dim) + 64.0) * 0x1p-23 * (norm + rest);
  const float slack = (4.0f * static_cast<float>(dim) + 64.0f) * 0x1p-148f;
  return {quads, -128 * sum, step, raised(rest + rounding), raised(norm + rounding), slack};
}

}  // namespace

Int8Queries::Int8Queries(const float* queries, std::int64_t count, std::int64_t dim, int levels)
    : quads_(count * ((dim + 3) / 4)), queries_(count) {
  const std::int64_t width = (dim + 3) / 4;
  for (std::int64_t q = 0; q < count; ++q) {
    std::int32_t* quads = quads_.data() + q * width;
    std::fill_n(quads, width, 0);
    queries_[q] = as_bytes(queries + q * dim, dim, levels, quads);
  }
}

bool Int8Queries::bounded(const float* query, std::int64_t dim) {
  for (std::int64_t d = 0; d < dim; ++d) {
    if (!(std::fabs(query[d]) <= kInt8MostQuery)) return false;
  }
  return true;
}

Int8Candidates::Int8Candidates(std::int64_t queries, std::int64_t capacity, std::int64_t limit,
                               std::int32_t* bound, std::int64_t block_bytes)
    : floats_(queries * (2 * capacity + 1) + kInt8OpeningFloats),
      ids_(queries * capacity),
      longs_(queries * 2),
      blocks_(block_bytes > 0 ? std::max(kInt8ChunkBytes, block_bytes) : 0) {
  state_.blocks = blocks_.data();
  state_.limit = limit;
  state_.capacity = capacity;
  state_.opening = floats_.data();
  state_.scores = state_.opening + kInt8OpeningFloats;
  state_.upper = state_.scores + queries * capacity;
  state_.threshold = state_.upper + queries * capacity;
  state_.ids = ids_.data();
  state_.count = longs_.data();
  state_.seen_next = longs_.data() + queries;
  state_.shared_bound = bound;
}

namespace {

/// Joins what the threads have found for a query, scores it exactly and writes the best.
void settle(const TopkProblem& p, const KernelTable& table,
            const std::vector<std::unique_ptr<Int8Candidates>>& work, std::int64_t first,
            std::int64_t query, std::unique_ptr<Int8Candidates>& joined, float* out_scores,
            std::int64_t* out_ids) {
  std::int64_t total = 0;
  for (const auto& each : work) total += each->state().count[query];
  const std::int64_t room = round_up(std::max<std::int64_t>(total, 1), kTopkPad);
  if (!joined || joined->state().capacity < room) {
    joined = std::make_unique<Int8Candidates>(1, room, room, nullptr);
  }
  TopkState& s = joined->state();
  s.first_query = first + query;
  s.num_queries = 1;
  table.topk->int8_begin(p, s);
  for (const auto& each : work) {
    const TopkState& from = each->state();
    const std::int64_t at = query * from.capacity, count = from.count[query];
    std::copy_n(from.scores + at, count, s.scores + s.count[0]);
    std::copy_n(from.upper + at, count, s.upper + s.count[0]);
    std::copy_n(from.ids + at, count, s.ids + s.count[0]);
    s.count[0] += count;
  }
  table.topk->int8_settle(p, s, 0);
  const std::int64_t row = first + query;
  table.topk->finish(s.scores, s.ids, s.count[0], p.k, out_scores + row * p.k, out_ids + row * p.k);
}

/// All queries of `p`, whose bounds hold.
void search(const TopkProblem& p, const Int8Items& items, int threads, const KernelTable& table,
            float* out_scores, std::int64_t* out_ids) {
  const bool vnni = has_vnni();
  const Int8Queries queries(p.queries, p.num_queries, p.dim, table.topk->int8_levels(vnni));
  const std::int64_t wanted = std::max<std::int64_t>(4 * std::min(p.k, p.num_items), 512);
  const std::int64_t capacity = round_up(std::min(wanted, p.num_items + 1), kTopkPad);
  // A list is thinned out when it is full; one that has room for all items never is.
  const std::int64_t limit = wanted > p.num_items ? p.num_items + 1 : capacity;

  // On one thread: about 25 bytes of the table, or 100 multiply-adds, a nanosecond.
  const double bytes = static_cast<double>(items.num_blocks * items.block_bytes);
  const double products = bytes * static_cast<double>(p.num_queries);
  const int worth = threads_worth(std::max(bytes / 25.0, products / 100.0), threads);
  const std::int64_t fit =
      std::max<std::int64_t>(1, kScratchBytes / (worth * std::max<std::int64_t>(capacity, 1) * 12));
  const std::int64_t group = std::min({kGroupQueries, fit, p.num_queries});
  const std::int64_t piece = worth == 1
                                 ? std::max<std::int64_t>(items.num_blocks, 1)
                                 : std::max<std::int64_t>(64, items.num_blocks / (worth * kPieces));

  Scratch<std::int32_t> bound(worth > 1 ? p.num_queries : 0);
  std::fill_n(bound.data(), bound.size(), std::numeric_limits<std::int32_t>::min());
  std::vector<std::unique_ptr<Int8Candidates>> work(static_cast<std::size_t>(worth));
  for (auto& each : work) {
    each =
        std::make_unique<Int8Candidates>(group, capacity, limit, worth > 1 ? bound.data() : nullptr,
                                         items.blocks != nullptr ? 0 : items.block_bytes);
  }
  for (std::int64_t first = 0; first < p.num_queries; first += group) {
    const std::int64_t count = std::min(group, p.num_queries - first);
    std::atomic<std::int64_t> next{0};
    parallel(worth, worth, [&](std::int64_t worker) {
      TopkState& s = work[static_cast<std::size_t>(worker)]->state();
      s.first_query = first;
      s.num_queries = count;
      table.topk->int8_begin(p, s);
      for (;;) {
        const std::int64_t from = next.fetch_add(1, std::memory_order_relaxed) * piece;
        if (from >= items.num_blocks) return;
        table.topk->int8_scan(p, items, s, queries.data() + first, vnni, from,
                              std::min(from + piece, items.num_blocks));
      }
    });
    // Random reads of rows and the ordering of the best.
    const double each = 20e3 + 60.0 * static_cast<double>(std::min(p.k, p.num_items));
    const int shares = threads_worth(each * static_cast<double>(count), worth);
    parallel(shares, shares, [&](std::int64_t share) {
      std::unique_ptr<Int8Candidates> joined;
      for (std::int64_t q = count * share / shares; q < count * (share + 1) / shares; ++q) {
        settle(p, table, work, first, q, joined, out_scores, out_ids);
      }
    });
  }
}

}  // namespace

void score_topk_int8(const TopkProblem& problem, const Int8Items& items, int threads,
                     const KernelTable& table, float* out_scores, std::int64_t* out_ids) {
  if (problem.num_queries == 0) return;
  const ReadyTopk ready(problem, true, threads);
  const TopkProblem& p = ready.problem();
  if (p.listed != nullptr) return score_topk(p, threads, table, out_scores, out_ids);
  // Runs of queries whose bounds hold, and of others, which float32 serves.
  for (std::int64_t first = 0, end = 0; first < p.num_queries; first = end) {
    const bool bounded = Int8Queries::bounded(p.queries + first * p.dim, p.dim);
    for (end = first + 1; end < p.num_queries; ++end) {
      if (Int8Queries::bounded(p.queries + end * p.dim, p.dim) != bounded) break;
    }
    TopkProblem part = p;
    part.queries = p.queries + first * p.dim;
    part.num_queries = end - first;
    if (p.seen.values != nullptr) {
      part.seen = {p.seen.values, p.seen.offsets + first, end - first};
    }
    float* scores = out_scores + first * p.k;
    std::int64_t* ids = out_ids + first * p.k;
    if (!bounded) {
      score_topk(part, threads, table, scores, ids);
      continue;
    }
    // With queries enough each thread takes some of them, and none waits for another's candidates.
    const double cost = 10e3 * static_cast<double>(part.num_queries);
    const int worth = threads_worth(cost, threads);
    const bool own = part.num_queries >= kOwnQueries * worth;
    const std::int64_t shares = own ? worth : 1;
    parallel(shares, static_cast<int>(shares), [&](std::int64_t share) {
      const std::int64_t from = part.num_queries * share / shares;
      TopkProblem mine = part;
      mine.queries = part.queries + from * p.dim;
      mine.num_queries = part.num_queries * (share + 1) / shares - from;
      if (mine.seen.values != nullptr) {
        mine.seen.offsets += from;
        mine.seen.rows = mine.num_queries;
      }
      search(mine, items, own ? 1 : threads, table, scores + from * p.k, ids + from * p.k);
    });
  }
}

}  // namespace seqrec
