// SPDX-License-Identifier: Apache-2.0
#include "ops/recurrent.h"

#include <algorithm>
#include <vector>

#include "base/aligned.h"
#include "base/huge_pages.h"
#include "base/offsets.h"
#include "base/round_up.h"
#include "base/team.h"
#include "base/thread_pool.h"

namespace seqrec {
namespace {

// What a thread computes in a nanosecond at least, to judge whether another thread is worth it.
constexpr double kFlopsPerNanosecond = 50.0;
constexpr double kPackedPerNanosecond = 5.0;
// With few rows a step is the fetching of the recurrent weights.
constexpr double kFetchedPerNanosecond = 25.0;
// Two threads that meet after a step wait for one another for some 100 nanoseconds.
constexpr double kStepShareNanoseconds = 130.0;

std::int64_t length(const RecurrentProblem& p, std::int64_t row) {
  return p.offsets[row + 1] - p.offsets[row];
}

/// The rows with at least one token, longest first.
std::vector<std::int64_t> longest_first(const RecurrentProblem& p) {
  std::vector<std::int64_t> order;
  order.reserve(static_cast<std::size_t>(p.rows));
  for (std::int64_t row = 0; row < p.rows; ++row) {
    if (length(p, row) > 0) order.push_back(row);
  }
  const auto longer = [&](std::int64_t a, std::int64_t b) { return length(p, a) > length(p, b); };
  if (!std::is_sorted(order.begin(), order.end(), longer)) {
    std::stable_sort(order.begin(), order.end(), longer);
  }
  return order;
}

/// Rows without tokens end in the state in which they began.
void finish_empty_rows(const RecurrentProblem& p) {
  for (std::int64_t row = 0; row < p.rows; ++row) {
    if (length(p, row) > 0) continue;
    const auto end_as_begun = [&](const float* begin, float* end) {
      if (begin != nullptr) {
        std::copy_n(begin + row * p.hidden, p.hidden, end + row * p.hidden);
      } else {
        std::fill_n(end + row * p.hidden, p.hidden, 0.0f);
      }
    };
    end_as_begun(p.h0, p.h_end);
    if (p.cell == RecurrentCell::kLstm) end_as_begun(p.c0, p.c_end);
  }
}

/// Threads that one step of a few rows is worth, each with its own hidden units.
int team_size(const RecurrentProblem& p, std::int64_t panels, int threads) {
  const double step =
      static_cast<double>(recurrent_gates(p.cell) * p.hidden * p.hidden) / kFetchedPerNanosecond;
  const std::int64_t most = std::min<std::int64_t>({threads, panels, Team::kMost});
  return static_cast<int>(std::clamp(step / kStepShareNanoseconds, 1.0, static_cast<double>(most)));
}

/// A member of the team that takes all rows through time.
struct Member {
  Team* team;
  int number;
  std::int64_t panels;

  RecurrentPart part() const {
    return {panels * number / team->size(), panels * (number + 1) / team->size()};
  }

  static RecurrentPart meet(void* self, std::int64_t steps) {
    const Member& member = *static_cast<const Member*>(self);
    member.team->meet(member.number, steps);
    return member.part();
  }
};

void run_as_team(const RecurrentProblem& p, const std::vector<std::int64_t>& order,
                 const float* packed, int threads, const RecurrentKernels& kernels) {
  const auto count = static_cast<std::int64_t>(order.size());
  constexpr std::int64_t kApart = kLinePair / sizeof(float);
  const std::int64_t cells = round_up(kernels.cells_size(p, count), kApart);
  const std::int64_t size = round_up(kernels.scratch_size(p, count), kApart);
  AlignedBuffer<float> scratch(static_cast<std::size_t>(cells + size * threads));
  Team team;
  team.run(threads, [&](int number, std::int64_t first_step) {
    Member member{&team, number, kernels.panels(p)};
    RecurrentShare share{order.data(), count, packed, scratch.data() + cells + number * size};
    share.meet = &Member::meet;
    share.team = &member;
    share.cells = scratch.data();
    share.first_step = first_step;
    share.part = member.part();
    kernels.run(p, share);
  });
}

double weights_of(const RecurrentProblem& p) {
  return static_cast<double>(recurrent_gates(p.cell) * p.hidden * (p.inputs + p.hidden));
}

AlignedBuffer<float> packed_weights(const RecurrentProblem& p, int threads,
                                    const RecurrentKernels& kernels) {
  AlignedBuffer<float> packed(static_cast<std::size_t>(kernels.packed_size(p)));
  const std::int64_t panels = kernels.panels(p);
  const int packers = threads_worth(weights_of(p) / kPackedPerNanosecond,
                                    static_cast<int>(std::min<std::int64_t>(threads, panels)));
  parallel(packers, packers, [&](std::int64_t i) {
    kernels.pack(p, panels * i / packers, panels * (i + 1) / packers, packed.data());
  });
  return packed;
}

}  // namespace

void recurrent_forward(const RecurrentProblem& p, int threads, const KernelTable& table) {
  check_offsets(p.offsets, p.rows, p.tokens, "tokens of x");
  if (p.tokens == 0) return finish_empty_rows(p);
  recurrent_run(p, packed_weights(p, threads, *table.recurrent).data(), threads, table);
}

RecurrentPacking::Weights RecurrentPacking::of(const RecurrentProblem& p, int threads,
                                               const KernelTable& table) {
  const RecurrentKernels& kernels = *table.recurrent;
  const Key key{&table,
                p.cell,
                p.activation,
                p.inputs,
                p.hidden,
                p.b_ih != nullptr,
                p.b_hh != nullptr,
                kernels.fingerprint(p)};
  const std::lock_guard<std::mutex> lock(mutex_);
  if (weights_ == nullptr || !(key == key_)) {
    weights_.reset();  // not both at once where nobody else reads the old ones
    weights_ = std::make_shared<const AlignedBuffer<float>>(packed_weights(p, threads, kernels));
    key_ = key;
  }
  return weights_;
}

void recurrent_run(const RecurrentProblem& p, const float* packed, int threads,
                   const KernelTable& table) {
  const RecurrentKernels& kernels = *table.recurrent;
  finish_empty_rows(p);
  const std::vector<std::int64_t> order = longest_first(p);
  if (order.empty()) return;
  const std::int64_t states = p.tokens * p.hidden * 4;
  advise_huge_pages(p.output, states);
  advise_huge_pages(p.gates, states * recurrent_gates(p.cell));
  advise_huge_pages(p.cells, states);
  advise_huge_pages(p.hn, states);

  const auto count = static_cast<std::int64_t>(order.size());
  const double work = 2 * weights_of(p) * static_cast<double>(p.tokens) / kFlopsPerNanosecond;
  const int worth = threads_worth(work, threads);
  const std::int64_t shares = std::min<std::int64_t>(worth, count);
  const int team = team_size(p, kernels.panels(p), worth);
  if (team > shares) return run_as_team(p, order, packed, team, kernels);
  // Dealt like cards, so that all shares have about the same lengths.
  std::vector<std::int64_t> dealt;
  std::vector<std::int64_t> begin;
  dealt.reserve(order.size());
  for (std::int64_t s = 0; s < shares; ++s) {
    begin.push_back(static_cast<std::int64_t>(dealt.size()));
    for (std::int64_t i = s; i < count; i += shares) {
      dealt.push_back(order[static_cast<std::size_t>(i)]);
    }
  }
  begin.push_back(count);
  parallel(shares, static_cast<int>(shares), [&](std::int64_t s) {
    const auto at = static_cast<std::size_t>(s);
    const std::int64_t rows = begin[at + 1] - begin[at];
    AlignedBuffer<float> scratch(static_cast<std::size_t>(kernels.scratch_size(p, rows)));
    const RecurrentShare share{dealt.data() + begin[at], rows, packed, scratch.data()};
    kernels.run(p, share);
  });
}

}  // namespace seqrec
