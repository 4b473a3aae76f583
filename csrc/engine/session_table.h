// SPDX-License-Identifier: Apache-2.0
// The memory of a session store: users by key and in order of use, and the blocks that they hold.
//
// Everything here happens under the lock of the store.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "engine/block_pool.h"
#include "engine/encoder.h"
#include "engine/user_key.h"

namespace seqrec {

/// Item ids in a block.
inline constexpr std::int64_t kChunkItems = 15;

/// What is kept of one user. The items are the last ones observed, oldest first.
struct Session {
  StoredKey key;
  std::uint32_t hash;
  std::int64_t events;        // observed since the user is known
  std::int64_t used;          // nanoseconds of the clock
  std::int32_t older, newer;  // neighbours in the order of use
  std::int32_t length;        // events in the state; with a window, those that the window holds
  std::int32_t state;         // block of the fixed part
  std::int32_t first_page;    // chain
  std::int32_t pages;         // blocks in it
  std::int32_t first_chunk;   // chain of chunks of items
  std::int32_t last_chunk;    // the one that holds the last item; later ones are empty
  std::int32_t chunks;        // blocks in it
  std::int32_t items;         // ids that are kept
  std::uint32_t owner;        // the batch that works on the user, 0: none
  std::int32_t row;           // of that batch
  std::uint32_t saved;        // the last snapshot that holds the user
  std::uint8_t first_item;    // place in the first chunk
  bool stale;                 // the state says nothing: what counts are the last `length` items
  bool embedded;              // of a stale user: `state` holds the embedding
};

struct SessionLimits {
  std::int64_t capacity;  // users
  std::int64_t memory;    // bytes of everything; 0: no limit
  std::int64_t items;     // ids kept of a user
};

struct SessionCounts {
  std::int64_t evictions = 0, expired = 0;
};

class SessionTable {
 public:
  static constexpr std::int32_t kNone = BlockPool::kNone;

  /// Throws std::invalid_argument where `memory` cannot hold one user.
  SessionTable(const Encoder& encoder, const SessionLimits& limits);
  ~SessionTable();
  SessionTable(const SessionTable&) = delete;
  SessionTable& operator=(const SessionTable&) = delete;

  std::int64_t size() const { return users_; }
  std::int64_t bytes() const;
  std::int64_t pages_in_use() const { return pages_.in_use(); }
  const SessionCounts& counts() const { return counts_; }
  const SessionLimits& limits() const { return limits_; }

  std::uint64_t hash(const UserKey& key) const { return hash_key(key, seed_); }
  /// Brings the place where a key would be looked up nearer.
  void prefetch(std::uint64_t hash) const;
  /// The same for the user that is most likely to be found there.
  void prefetch_user(std::uint64_t hash) const;
  /// The same for their state and for their neighbours in the order of use.
  void prefetch_state(std::uint64_t hash) const;
  /// kNone where the key is not known.
  std::int32_t find(const UserKey& key, std::uint64_t hash) const;
  Session& at(std::int32_t slot) const { return *sessions_.at<Session>(slot); }
  float* state(const Session& s) const { return states_.at<float>(s.state); }

  /// A new user, the most recent one, owned by `owner` (not 0). Evicts others where that is needed;
  /// kNone where there is no room although nobody idle is left. Throws std::bad_alloc.
  std::int32_t insert(const UserKey& key, std::uint64_t hash, std::uint32_t owner);
  void erase(std::int32_t slot);
  void touch(std::int32_t slot, std::int64_t now);
  std::int32_t oldest() const { return oldest_; }
  std::int32_t newest() const { return newest_; }
  /// Drops idle users, oldest first, that were last used at `time` or before; `most` of them.
  void expire(std::int64_t time, std::int64_t most, bool counted = true);
  void count_expired() { ++counts_.expired; }
  /// Goes on from the counts of the store before, beside what has been counted here.
  void count_on(const SessionCounts& before) {
    counts_.evictions += before.evictions;
    counts_.expired += before.expired;
  }

  /// Room for `tokens` events in the pages of an owned user; false where there is none.
  bool reserve_pages(Session& s, std::int64_t tokens);
  void drop_pages(Session& s);
  /// out [at least pages] = the addresses of the pages.
  void page_addresses(const Session& s, float** out) const;

  /// Room for `count` more ids of an owned user; false where there is none.
  bool reserve_items(Session& s, std::int64_t count);
  /// Appends ids for which there is room, and drops the oldest beyond the limit.
  void append_items(Session& s, const std::int32_t* items, std::int64_t count);
  /// out = the last `count` ids, oldest first.
  void last_items(const Session& s, std::int64_t count, std::int32_t* out) const;

  /// The user at which a walk from the oldest on has arrived; it moves on where that user moves.
  void set_cursor(std::int32_t slot) { cursor_ = slot; }
  std::int32_t cursor() const { return cursor_; }

 private:
  struct Place {
    std::uint32_t hash;
    std::int32_t slot;  // + 1; 0: empty
  };

  bool within(std::int64_t more) const {
    return limits_.memory == 0 || bytes() + more <= limits_.memory;
  }
  bool ensure(BlockPool& pool, std::int64_t count);
  bool evict_one();
  void shrink();
  bool grow_index();
  std::int64_t position_of(std::int32_t slot) const;
  void link(std::int32_t slot);
  void unlink(std::int32_t slot);

  SessionLimits limits_;
  std::uint64_t seed_;
  BlockPool sessions_, states_, pages_, chunks_;
  std::int64_t token_size_, state_bytes_;
  std::vector<Place> index_;  // a power of two, at most 3/4 full, linear probing
  std::int64_t users_ = 0, far_bytes_ = 0;
  std::int32_t oldest_ = kNone, newest_ = kNone, cursor_ = kNone;
  SessionCounts counts_;
};

}  // namespace seqrec
