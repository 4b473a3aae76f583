// SPDX-License-Identifier: Apache-2.0
// Users that one call owns for a while, each once.
#pragma once

#include "base/scratch.h"
#include "engine/sessions.h"

namespace seqrec {

class SessionStore::Batch {
 public:
  Batch(SessionStore& store, std::int64_t most) : store_(store), slots_(most), most_(most) {}
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;
  ~Batch() {
    if (rows_ == 0) return;
    const Lock lock(store_.mutex_);
    give_back();
  }

  void begin(std::uint32_t owner) { owner_ = owner; }
  std::int64_t rows() const { return rows_; }
  bool full() const { return rows_ == most_; }
  std::uint32_t owner() const { return owner_; }
  std::int32_t slot(std::int64_t row) const { return slots_[row]; }

  /// Takes an idle user, or one that was inserted for this batch.
  void own(std::int32_t slot) {
    Session& s = store_.table_.at(slot);
    s.owner = owner_;
    s.row = static_cast<std::int32_t>(rows_);
    slots_[rows_++] = slot;
    ++store_.owned_;
  }

  /// Gives the last one back, under the lock.
  void disown_last() { release(slots_[--rows_]); }

  /// Gives all back, under the lock; those without an event are dropped.
  void give_back() {
    for (std::int64_t row = 0; row < rows_; ++row) release(slots_[row]);
    rows_ = 0;
    store_.wake();
  }

 private:
  void release(std::int32_t slot) {
    Session& s = store_.table_.at(slot);
    s.owner = 0;
    --store_.owned_;
    if (s.events == 0) store_.table_.erase(slot);
  }

  SessionStore& store_;
  Scratch<std::int32_t> slots_;
  std::int64_t most_, rows_ = 0;
  std::uint32_t owner_ = 0;
};

}  // namespace seqrec
