// SPDX-License-Identifier: Apache-2.0
// The gradient of the items needs the sum of each token's exponentials, which is known only after
// all items have been seen. So the items are gone through twice for each chunk of tokens: first
// sums and the gradient of the tokens (divided by the sum at the end), then the gradient of the
// items, from tokens that have been divided by their sums. Between the two, the exponentials are
// kept where those of a worthwhile number of tokens fit into memory that caches hold; for larger
// catalogues they are computed again, one block at a time.
#include "ops/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/aligned.h"
#include "base/huge_pages.h"
#include "base/round_up.h"
#include "base/thread_pool.h"

namespace seqrec {
namespace {

constexpr std::int64_t kItems = kCrossEntropyItems;
// Exponentials kept between the passes: 16 MiB, more only for the sake of enough tokens at once.
constexpr std::int64_t kKept = std::int64_t{4} << 20, kKeptMost = std::int64_t{12} << 20;
constexpr std::int64_t kEnough = 120;  // tokens for which the table is read again without much loss
constexpr std::int64_t kFewest = 96;   // tokens that make keeping worthwhile at all
constexpr std::int64_t kTokens = 4096;                        // tokens in a chunk at most
constexpr std::int64_t kTokenFloats = std::int64_t{1} << 20;  // numbers in a chunk of them at most
constexpr std::int64_t kStep = 48;  // tokens whose exponentials are worked on while in the cache
constexpr double kRate = 30.0;      // multiply-adds a nanosecond on one core, on the low side
constexpr double kLn2 = 0.693147180559945309;

// Sums beyond this may have overflowed on the way; those of a token whose target counts are never
// below 2^-56.
constexpr double kLargest = 0x1p60, kSmallest = 0x1p-57;

template <typename T>
AlignedBuffer<T> buffer(std::int64_t count) {
  return AlignedBuffer<T>(static_cast<std::size_t>(count));
}

/// A column that is the target of a token.
struct Hit {
  std::int64_t column, token;  // token within the chunk
  std::int64_t block() const { return column / kItems; }
};

/// What each share of the items has for itself.
struct Share {
  AlignedBuffer<float> rows, panels, bias, exponentials, sums, d_items, d_bias, d_tokens, largest;
  AlignedBuffer<double> totals;
  CrossEntropyBlock block() { return {rows.data(), panels.data(), bias.data()}; }
};

class CrossEntropyRun {
 public:
  CrossEntropyRun(const CrossEntropyProblem& problem, const CrossEntropyGradients& gradients,
                  int threads, const KernelTable& table)
      : p_(problem), g_(gradients), kernel_(*table.cross_entropy) {
    padded_ = kernel_.padded_dim(std::max<std::int64_t>(p_.dim, 1));
    columns_ = p_.samples == nullptr ? p_.items : p_.num_samples;
    blocks_ = (columns_ + kItems - 1) / kItems;
    item_gradients_ = g_.weight != nullptr || g_.bias != nullptr;
    any_gradient_ = item_gradients_ || g_.hidden != nullptr;
    plan_chunk();
    const double work = static_cast<double>(p_.tokens) * static_cast<double>(columns_) *
                        static_cast<double>(p_.dim) * (any_gradient_ ? 3.0 : 1.0);
    shares_ = std::min<std::int64_t>(threads_worth(work / kRate, threads), blocks_);
    prepare_columns();
    make_buffers();
  }

  float run() {
    clear_outputs();
    double loss = 0.0;
    for (std::int64_t begin = 0; begin < p_.tokens; begin += chunk_) {
      loss += run_chunk(begin, std::min(chunk_, p_.tokens - begin));
    }
    if (p_.samples != nullptr) scatter_samples();
    return static_cast<float>(loss);
  }

 private:
  void plan_chunk() {
    const std::int64_t most = std::max(
        kStep,
        std::min(kTokens, kTokenFloats / padded_ / kCrossEntropyTokens * kCrossEntropyTokens));
    const std::int64_t one = std::max<std::int64_t>(blocks_, 1) * kItems;
    const std::int64_t fit = std::max(kKept / one, std::min(kEnough, kKeptMost / one));
    keeps_ = item_gradients_ && fit >= std::min(kFewest, p_.tokens);
    const std::int64_t room =
        keeps_ ? std::min(fit / kCrossEntropyTokens * kCrossEntropyTokens, most) : most;
    // chunks of equal size
    const std::int64_t limit = std::max(room, kCrossEntropyTokens);
    const std::int64_t chunks = std::max<std::int64_t>(1, (p_.tokens + limit - 1) / limit);
    chunk_ = round_up((p_.tokens + chunks - 1) / chunks, kCrossEntropyTokens);
  }

  /// The biases of the samples, and the samples in the order of their items.
  void prepare_columns() {
    if (p_.samples == nullptr) return;
    const std::int64_t* samples = p_.samples;
    if (p_.bias != nullptr || p_.log_q_samples != nullptr) {
      column_bias_ = buffer<float>(columns_);
      for (std::int64_t j = 0; j < columns_; ++j) {
        column_bias_[static_cast<std::size_t>(j)] =
            (p_.bias != nullptr ? p_.bias[samples[j]] : 0.0f) -
            (p_.log_q_samples != nullptr ? p_.log_q_samples[j] : 0.0f);
      }
    }
    by_item_.resize(static_cast<std::size_t>(columns_));
    for (std::int64_t j = 0; j < columns_; ++j) by_item_[static_cast<std::size_t>(j)] = j;
    std::sort(by_item_.begin(), by_item_.end(), [&](std::int64_t a, std::int64_t b) {
      return samples[a] != samples[b] ? samples[a] < samples[b] : a < b;
    });
  }

  void make_buffers() {
    tokens_ = buffer<float>(chunk_ * padded_);
    reference_ = buffer<float>(chunk_);
    chosen_ = buffer<float>(chunk_);
    factors_ = buffer<float>(chunk_);
    on_target_ = buffer<float>(chunk_);
    totals_ = buffer<double>(chunk_);
    if (item_gradients_) scaled_ = buffer<float>(chunk_ * padded_);
    if (keeps_) kept_ = buffer<float>(blocks_ * chunk_ * kItems);
    advise_huge_pages(kept_.data(), static_cast<std::int64_t>(kept_.size() * sizeof(float)));
    if (p_.samples != nullptr && g_.weight != nullptr)
      d_samples_ = buffer<float>(columns_ * p_.dim);
    if (p_.samples != nullptr && g_.bias != nullptr) d_shift_ = buffer<float>(columns_);
    share_.resize(static_cast<std::size_t>(shares_));
    for (Share& s : share_) {
      s.rows = buffer<float>(kItems * padded_);
      s.panels = buffer<float>(kItems * padded_);
      s.bias = buffer<float>(kItems);
      s.exponentials = buffer<float>(kStep * kItems);
      s.sums = buffer<float>(kStep);
      s.totals = buffer<double>(chunk_);
      s.largest = buffer<float>(chunk_);
      if (g_.hidden != nullptr) s.d_tokens = buffer<float>(chunk_ * padded_);
      if (item_gradients_) {
        s.d_items = buffer<float>(kItems * padded_);
        s.d_bias = buffer<float>(kItems);
      }
    }
  }

  /// Zeros where nothing is written but only added.
  void clear_outputs() {
    const bool sampled = p_.samples != nullptr;
    if (g_.weight != nullptr && (sampled || p_.tokens == 0)) {
      std::fill_n(g_.weight, p_.items * p_.dim, 0.0f);
    }
    if (g_.bias != nullptr && (sampled || p_.tokens == 0)) std::fill_n(g_.bias, p_.items, 0.0f);
    std::fill_n(d_samples_.data(), d_samples_.size(), 0.0f);
    std::fill_n(d_shift_.data(), d_shift_.size(), 0.0f);
  }

  double run_chunk(std::int64_t begin, std::int64_t count) {
    begin_ = begin;
    count_ = count;
    padded_count_ = round_up(count, kCrossEntropyTokens);
    load_tokens();
    find_hits();
    sum_exponentials();
    if (!sums_are_sound()) {
      // a logit far above the target's: begin again from the largest of each token
      take_largest_as_reference();
      sum_exponentials();
    }
    const double loss = finish_tokens();
    if (item_gradients_) {
      each_share([&](Share& s, std::int64_t from, std::int64_t to) { add_items(s, from, to); });
      if (p_.samples != nullptr) add_targets();
    }
    return loss;
  }

  template <typename Body>
  void each_share(const Body& body) {
    parallel(shares_, static_cast<int>(shares_), [&](std::int64_t k) {
      body(share_[static_cast<std::size_t>(k)], blocks_ * k / shares_, blocks_ * (k + 1) / shares_);
    });
  }

  const float* target_row(std::int64_t i) const { return p_.weight + target(i) * p_.dim; }
  std::int64_t target(std::int64_t i) const { return p_.targets[begin_ + i]; }
  float* token(std::int64_t i) { return tokens_.data() + i * padded_; }

  /// Copies the chunk's tokens to whole vectors and takes the target's logit as reference.
  void load_tokens() {
    for (std::int64_t i = 0; i < padded_count_; ++i) {
      float* row = token(i);
      const std::int64_t width = i < count_ ? p_.dim : 0;
      if (width > 0) std::copy_n(p_.hidden + (begin_ + i) * p_.dim, width, row);
      std::fill(row + width, row + padded_, 0.0f);
      const auto at = static_cast<std::size_t>(i);
      if (i >= count_) {
        // its exponentials are tiny, and its factor is 0
        chosen_[at] = reference_[at] = 1e30f;
        continue;
      }
      float shift = p_.bias == nullptr ? 0.0f : p_.bias[target(i)];
      if (p_.log_q_targets != nullptr) shift -= p_.log_q_targets[begin_ + i];
      chosen_[at] = reference_[at] = kernel_.logit(row, target_row(i), shift, p_.dim);
    }
  }

  /// The columns of the chunk's targets, by block and token. Of the samples, these do not count;
  /// of all items, there is one a token.
  void find_hits() {
    hits_.clear();
    for (std::int64_t i = 0; i < count_; ++i) {
      const std::int64_t item = target(i);
      if (p_.samples == nullptr) {
        hits_.push_back({item, i});
        continue;
      }
      auto at = std::lower_bound(
          by_item_.begin(), by_item_.end(), item,
          [&](std::int64_t column, std::int64_t wanted) { return p_.samples[column] < wanted; });
      for (; at != by_item_.end() && p_.samples[*at] == item; ++at) hits_.push_back({*at, i});
    }
    std::sort(hits_.begin(), hits_.end(), [](const Hit& a, const Hit& b) {
      if (a.block() != b.block()) return a.block() < b.block();
      return a.token != b.token ? a.token < b.token : a.column < b.column;
    });
  }

  /// The hits of a block from token `from` on.
  std::vector<Hit>::const_iterator hits_from(std::int64_t block, std::int64_t from) const {
    return std::lower_bound(hits_.begin(), hits_.end(), from,
                            [&](const Hit& a, std::int64_t token) {
                              return a.block() != block ? a.block() < block : a.token < token;
                            });
  }

  bool is_before(std::vector<Hit>::const_iterator hit, std::int64_t block, std::int64_t to) const {
    return hit != hits_.end() && hit->block() == block && hit->token < to;
  }

  void pack(Share& s, std::int64_t block) {
    const std::int64_t first = block * kItems;
    const float* bias = column_bias_.size() > 0 ? column_bias_.data()
                        : p_.samples == nullptr ? p_.bias
                                                : nullptr;
    kernel_.pack_items(p_.weight, bias, p_.samples, first, std::min(kItems, columns_ - first),
                       p_.dim, s.block());
  }

  /// The exponentials of a block for tokens [from, to), without those of samples that do not count.
  void exponentials(Share& s, std::int64_t block, std::int64_t from, std::int64_t to, float* out) {
    kernel_.exponentials(token(from), reference_.data() + from, to - from, p_.dim, s.block(), out,
                         s.sums.data());
    if (p_.samples == nullptr) return;
    for (auto hit = hits_from(block, from); is_before(hit, block, to);) {
      const std::int64_t i = hit->token;
      float* row = out + (i - from) * kItems;
      for (; is_before(hit, block, i + 1); ++hit) row[hit->column - block * kItems] = 0.0f;
      float sum = 0.0f;
      for (std::int64_t j = 0; j < kItems; ++j) sum += row[j];
      s.sums[static_cast<std::size_t>(i - from)] = sum;
    }
  }

  /// Takes the one-hot of the targets off: then exponentials times factor are a (p - 1) there.
  void take_off_targets(std::int64_t block, std::int64_t from, std::int64_t to, float* e) {
    for (auto hit = hits_from(block, from); is_before(hit, block, to); ++hit) {
      e[(hit->token - from) * kItems + hit->column - block * kItems] -=
          static_cast<float>(totals_[static_cast<std::size_t>(hit->token)]);
    }
  }

  float* place(Share& s, std::int64_t block, std::int64_t from) {
    return keeps_ ? kept_.data() + (block * chunk_ + from) * kItems : s.exponentials.data();
  }

  /// First pass: totals of each token and, where wanted, sum_j e_ij w_j.
  void sum_exponentials() {
    each_share([&](Share& s, std::int64_t first, std::int64_t last) {
      std::fill_n(s.totals.data(), padded_count_, 0.0);
      if (g_.hidden != nullptr) std::fill_n(s.d_tokens.data(), padded_count_ * padded_, 0.0f);
      for (std::int64_t block = first; block < last; ++block) {
        pack(s, block);
        for (std::int64_t from = 0; from < padded_count_; from += kStep) {
          const std::int64_t to = std::min(from + kStep, padded_count_);
          float* e = place(s, block, from);
          exponentials(s, block, from, to, e);
          for (std::int64_t i = from; i < to; ++i) {
            s.totals[static_cast<std::size_t>(i)] += s.sums[static_cast<std::size_t>(i - from)];
          }
          if (g_.hidden != nullptr) {
            kernel_.add_token_gradient(e, s.block(), to - from, p_.dim,
                                       s.d_tokens.data() + from * padded_);
          }
        }
      }
    });
    for (std::int64_t i = 0; i < count_; ++i) {
      const auto at = static_cast<std::size_t>(i);
      // among samples the target has no place, so it is added here
      on_target_[at] = p_.samples == nullptr
                           ? 0.0f
                           : std::ldexp(std::exp(std::min(chosen_[at] - reference_[at], 80.0f)),
                                        -kCrossEntropyShift);
      double total = on_target_[at];
      for (const Share& s : share_) total += s.totals[at];
      totals_[at] = total;
    }
  }

  bool sums_are_sound() const {
    for (std::int64_t i = 0; i < count_; ++i) {
      const double total = totals_[static_cast<std::size_t>(i)];
      if (!(total > kSmallest && total < kLargest)) return false;
    }
    return true;
  }

  void take_largest_as_reference() {
    each_share([&](Share& s, std::int64_t first, std::int64_t last) {
      std::fill_n(s.largest.data(), padded_count_, -INFINITY);
      for (std::int64_t block = first; block < last; ++block) {
        pack(s, block);
        kernel_.maxima(tokens_.data(), padded_count_, p_.dim, s.block(), s.largest.data());
      }
    });
    for (std::int64_t i = 0; i < count_; ++i) {
      const auto at = static_cast<std::size_t>(i);
      float largest = chosen_[at];
      for (const Share& s : share_) {
        if (!(s.largest[at] <= largest) && !std::isnan(largest)) largest = s.largest[at];
      }
      reference_[at] = largest;
    }
  }

  /// Losses, factors a_i / total_i, the tokens times these, and the gradient of the tokens.
  double finish_tokens() {
    double loss = 0.0;
    for (std::int64_t i = 0; i < padded_count_; ++i) {
      const auto at = static_cast<std::size_t>(i);
      factors_[at] = 0.0f;
      if (i < count_) {
        const double a = p_.token_weights[begin_ + i];
        loss += a * (std::log(totals_[at]) + kCrossEntropyShift * kLn2 +
                     (static_cast<double>(reference_[at]) - static_cast<double>(chosen_[at])));
        factors_[at] = static_cast<float>(a / totals_[at]);
        // what the one-hot of the target takes from its probability
        on_target_[at] =
            static_cast<float>(a * (static_cast<double>(on_target_[at]) / totals_[at] - 1.0));
        if (g_.hidden != nullptr) finish_token_gradient(i);
      }
      if (item_gradients_) {
        float* row = scaled_.data() + i * padded_;
        for (std::int64_t k = 0; k < padded_; ++k) row[k] = token(i)[k] * factors_[at];
      }
    }
    return loss;
  }

  void finish_token_gradient(std::int64_t i) {
    float* sum = share_[0].d_tokens.data() + i * padded_;
    for (std::size_t other = 1; other < share_.size(); ++other) {
      const float* more = share_[other].d_tokens.data() + i * padded_;
      for (std::int64_t k = 0; k < p_.dim; ++k) sum[k] += more[k];
    }
    const float factor = factors_[static_cast<std::size_t>(i)];
    const float on_target = on_target_[static_cast<std::size_t>(i)];
    const float* row = target_row(i);
    float* out = g_.hidden + (begin_ + i) * p_.dim;
    for (std::int64_t k = 0; k < p_.dim; ++k) out[k] = factor * sum[k] + on_target * row[k];
  }

  /// Second pass: sum_i e_ij factor_i h_i for the items of blocks [first, last).
  void add_items(Share& s, std::int64_t first, std::int64_t last) {
    const bool fresh = begin_ == 0 && p_.samples == nullptr;
    for (std::int64_t block = first; block < last; ++block) {
      if (!keeps_) pack(s, block);
      std::fill_n(s.d_items.data(), s.d_items.size(), 0.0f);
      std::fill_n(s.d_bias.data(), s.d_bias.size(), 0.0f);
      for (std::int64_t from = 0; from < padded_count_; from += kStep) {
        const std::int64_t to = std::min(from + kStep, padded_count_);
        float* e = place(s, block, from);
        if (!keeps_) exponentials(s, block, from, to, e);
        if (p_.samples == nullptr) take_off_targets(block, from, to, e);
        const bool more = keeps_ && (to < padded_count_ || block + 1 < last);
        if (g_.weight != nullptr) {
          const float* next = !more                ? nullptr
                              : to < padded_count_ ? place(s, block, to)
                                                   : place(s, block + 1, 0);
          kernel_.add_item_gradient(e, next, scaled_.data() + from * padded_, to - from, p_.dim,
                                    s.d_items.data());
        }
        if (g_.bias != nullptr) {
          kernel_.add_bias_gradient(e, factors_.data() + from, to - from, s.d_bias.data());
        }
      }
      store_items(s, block, fresh);
    }
  }

  void store_items(Share& s, std::int64_t block, bool fresh) {
    const std::int64_t begin = block * kItems, end = std::min(begin + kItems, columns_);
    float* weight = p_.samples == nullptr ? g_.weight : d_samples_.data();
    float* bias = p_.samples == nullptr ? g_.bias : d_shift_.data();
    for (std::int64_t j = begin; j < end; ++j) {
      if (g_.weight != nullptr) {
        const float* from = s.d_items.data() + (j - begin) * padded_;
        float* to = weight + j * p_.dim;
        if (fresh) {
          std::copy_n(from, p_.dim, to);
        } else {
          for (std::int64_t k = 0; k < p_.dim; ++k) to[k] += from[k];
        }
      }
      if (g_.bias != nullptr) {
        const float sum = s.d_bias[static_cast<std::size_t>(j - begin)];
        bias[j] = fresh ? sum : bias[j] + sum;
      }
    }
  }

  /// The part of the targets in the gradients of the items, where they are no column.
  void add_targets() {
    for (std::int64_t i = 0; i < count_; ++i) {
      const float on_target = on_target_[static_cast<std::size_t>(i)];
      if (g_.weight != nullptr) {
        float* to = g_.weight + target(i) * p_.dim;
        for (std::int64_t k = 0; k < p_.dim; ++k) to[k] += on_target * token(i)[k];
      }
      if (g_.bias != nullptr) g_.bias[target(i)] += on_target;
    }
  }

  /// Adds the gradients of the samples to their items. An item may have been drawn many times, so
  /// that its sum is made in double.
  void scatter_samples() {
    std::vector<double> sum(static_cast<std::size_t>(p_.dim));
    for (auto at = by_item_.begin(); at != by_item_.end();) {
      const std::int64_t item = p_.samples[*at];
      std::fill(sum.begin(), sum.end(), 0.0);
      double shift = 0.0;
      for (; at != by_item_.end() && p_.samples[*at] == item; ++at) {
        if (g_.weight != nullptr) {
          const float* from = d_samples_.data() + *at * p_.dim;
          for (std::size_t k = 0; k < sum.size(); ++k) sum[k] += from[k];
        }
        if (g_.bias != nullptr) shift += d_shift_[static_cast<std::size_t>(*at)];
      }
      if (g_.weight != nullptr) {
        float* to = g_.weight + item * p_.dim;
        for (std::size_t k = 0; k < sum.size(); ++k) to[k] = static_cast<float>(to[k] + sum[k]);
      }
      if (g_.bias != nullptr) g_.bias[item] = static_cast<float>(g_.bias[item] + shift);
    }
  }

  const CrossEntropyProblem& p_;
  const CrossEntropyGradients& g_;
  const CrossEntropyKernels& kernel_;
  std::int64_t padded_ = 0, columns_ = 0, blocks_ = 0, shares_ = 1, chunk_ = 0;
  bool item_gradients_ = false, any_gradient_ = false, keeps_ = false;
  std::int64_t begin_ = 0, count_ = 0, padded_count_ = 0;  // the chunk at work
  // [chunk] or [chunk, padded]; on_target_ is first the target's exponential, then what its
  // gradient row is multiplied by
  AlignedBuffer<float> tokens_, scaled_, reference_, chosen_, factors_, on_target_, kept_;
  AlignedBuffer<double> totals_;
  AlignedBuffer<float> column_bias_, d_samples_, d_shift_;  // [samples] or [samples, dim]
  std::vector<std::int64_t> by_item_;
  std::vector<Hit> hits_;
  std::vector<Share> share_;
};

}  // namespace

float cross_entropy(const CrossEntropyProblem& problem, const CrossEntropyGradients& gradients,
                    int threads, const KernelTable& table) {
  return CrossEntropyRun(problem, gradients, threads, table).run();
}

}  // namespace seqrec
