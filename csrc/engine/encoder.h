// SPDX-License-Identifier: Apache-2.0
// A trained user encoder: events in, user embeddings out; whole histories, or one event at a time.
//
// An encoder never changes after it is made, so that any number of threads may share it. What a
// user's past amounts to is kept by the caller in a UserState: a fixed part (hidden states, or the
// last position before the last block) and, for attention, keys and values in pages.
#pragma once

#include <cstdint>
#include <string>

#include "base/jagged.h"
#include "isa/kernel_table.h"

namespace seqrec {

/// Tokens of a page of keys and values; whole vectors of every instruction set.
inline constexpr std::int64_t kPageTokens = 16;

/// Bytes that an encoder takes at most for products of the items with its first weights, which it
/// would otherwise compute for every event anew.
inline constexpr std::int64_t kMostFoldedBytes = std::int64_t{32} << 20;

/// What is kept of a user's past. Pointers of the caller.
struct UserState {
  float* fixed;         // [state_size]; contents are defined once length > 0
  float* const* pages;  // each [kPageTokens * token_size]; page i holds events 16 i … 16 i + 15
  std::int64_t length;  // events that the state holds
};

class Encoder {
 public:
  Encoder(std::int64_t num_items, std::int64_t dim, std::int64_t window, bool unit,
          const KernelTable& table)
      : table_(table), num_items_(num_items), dim_(dim), window_(window), unit_(unit) {}
  virtual ~Encoder() = default;
  Encoder(const Encoder&) = delete;
  Encoder& operator=(const Encoder&) = delete;

  std::int64_t num_items() const { return num_items_; }
  /// Length of an embedding.
  std::int64_t dim() const { return dim_; }
  /// The most recent events that are read; 0: all.
  std::int64_t window() const { return window_; }
  /// Floats of the fixed part of a UserState.
  virtual std::int64_t state_size() const = 0;
  /// Floats kept of each event in pages; 0: none.
  virtual std::int64_t token_size() const = 0;

  /// out [rows, dim] = the embeddings after the last event of each history, of which only the last
  /// `window` events are read. No row may be empty. Throws std::bad_alloc.
  void encode(const JaggedView<std::int32_t>& histories, float* out, int threads) const;

  /// Appends row i of `events` to users[i]: states are updated, except their `length`. No row may
  /// be empty, users are all different, and length + events fit the window and the pages.
  virtual void advance(const UserState* users, const JaggedView<std::int32_t>& events) const = 0;

  /// out [users, dim] = the embeddings of users with at least one event.
  void embed(const UserState* users, std::int64_t count, float* out) const;

 protected:
  /// Longest first, out [rows, dim]; on one thread, unless there are more threads than rows.
  virtual void encode_group(const JaggedView<std::int32_t>& rows, float* out,
                            int threads) const = 0;
  virtual void embed_group(const UserState* users, std::int64_t count, float* out) const = 0;
  /// Tokens and rows that one group holds at most (a single row may have more tokens).
  virtual std::int64_t group_tokens() const = 0;
  virtual std::int64_t group_rows() const = 0;
  /// Multiply-adds for one token, roughly.
  virtual double token_cost() const = 0;

  const KernelTable& table_;

 private:
  std::int64_t num_items_, dim_, window_;
  bool unit_;  // embeddings are scaled to length 1
};

/// Scales rows [count, dim] to length 1, as torch.nn.functional.normalize does.
void scale_to_unit(float* rows, std::int64_t count, std::int64_t dim);

}  // namespace seqrec
