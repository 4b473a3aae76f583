// SPDX-License-Identifier: Apache-2.0
// A store of users: what an encoder keeps of each one's past, under a bound of users and of memory.
//
// * A user is worked on by one call at a time, which owns it; calls for other users go on. The lock
//   of the store is held only while users are looked up, taken and given back, never while a model
//   computes. A call that owns users never waits for further ones, so that no two wait for each
//   other.
// * Where a call fails, each of its users is as it was before, or has had all of its events of one
//   batch.
// * After a fork the child may go on: users in work at that moment are computed from their items,
// or
//   dropped where these are not all kept.
// * Windows: while a user has at most `window` events, an event is one step of the encoder. With
//   more, the window moves on by `hop` events at a time and is encoded anew. With hop 1 that would
//   be at every event, so that only items are kept then, and the embedding is computed when it is
//   asked for, once for as many events as came in between.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "engine/encoder.h"
#include "engine/session_table.h"

namespace seqrec {

struct SessionOptions {
  std::int64_t capacity;  // users, at least 1
  std::int64_t memory;    // bytes of everything; 0: no limit
  std::int64_t ttl;       // nanoseconds from the last use until a user is dropped; 0: never
  std::int64_t hop;       // 1 … window; 1 without a window
  std::int64_t remember;  // last items kept of a user; with a window at least those of it
};

struct SessionStatistics {
  std::int64_t users, hits, misses, evictions, expired, bytes, pages, observes, reencodings;
};

/// The store has been replaced; its users are in the next one.
class SessionsReplaced : public std::runtime_error {
 public:
  SessionsReplaced() : std::runtime_error("the sessions have gone to another model") {}
};

class SessionStore {
 public:
  /// Throws std::invalid_argument where `memory` cannot hold one user.
  SessionStore(std::shared_ptr<const Encoder> encoder, const SessionOptions& options);
  ~SessionStore();
  SessionStore(const SessionStore&) = delete;
  SessionStore& operator=(const SessionStore&) = delete;

  const Encoder& encoder() const { return *encoder_; }
  const SessionOptions& options() const { return options_; }

  /// Event i is items[i], in [0, num_items), of user keys[i]; new users are taken in. Returns how
  /// many events were taken in: fewer where the store was replaced meanwhile. Throws
  /// std::bad_alloc.
  std::int64_t observe(const UserKey* keys, const std::int32_t* items, std::int64_t count,
                       int threads);

  /// out [count, dim] = embeddings, zeros where known[i] is 0. Where `seen` is not null, the kept
  /// items of all users are appended to it, and offsets [count + 1] say whose they are.
  void embed(const UserKey* keys, std::int64_t count, int threads, float* out, std::uint8_t* known,
             std::vector<std::int32_t>* seen, std::int64_t* offsets);

  /// Whether the user was known.
  bool forget(const UserKey& key);
  /// Whether the user is known; neither this nor `history` counts as use.
  bool contains(const UserKey& key);
  /// Events observed of a user (0: not known), and the items that are kept, oldest first.
  std::int64_t history(const UserKey& key, std::vector<std::int32_t>* items);
  void clear();
  std::int64_t size();
  SessionStatistics statistics();

  /// Writes all users to a file that is open for writing, those used longest ago first. Others may
  /// go on meanwhile; each user is written as it is at some moment of the call. `identity`
  /// [kIdentityBytes] is that of the model, `wall` the time of day in nanoseconds. Throws
  /// std::system_error where the file cannot be written.
  void save(int file, const std::uint8_t* identity, std::int64_t wall);
  /// Reads what `save` wrote into this store, which is empty; throws std::invalid_argument, with
  /// what is wrong, where the file is not a whole snapshot of this model. The store is then of no
  /// more use.
  void load(int file, const std::uint8_t* identity, std::int64_t wall);
  static constexpr std::int64_t kIdentityBytes = 32;

  /// Takes the users of `old`, whose items are renumbered by table [old items] (-1: gone); their
  /// states are computed from the items when they are needed. Users of whom no item is kept are
  /// dropped. Calls to `old` throw SessionsReplaced from here on.
  void take_from(SessionStore& old, const std::int32_t* table);

  /// The time from here on, in nanoseconds, instead of the clock's.
  void set_clock(std::int64_t now) { clock_.store(now); }

 private:
  using Lock = std::unique_lock<std::mutex>;
  class Batch;
  struct Observation;
  struct Restored;
  struct Stores;
  struct Walking;

  std::int64_t now() const;
  std::uint32_t next_owner();
  void check_alive() const {
    if (replaced_) throw SessionsReplaced();
  }
  /// The user of a key who has not expired, or kNone.
  std::int32_t find(const UserKey& key, std::uint64_t hash, std::int64_t time);
  /// Waits until some user is given back.
  void wait(Lock& lock);
  void expire_some(std::int64_t time);
  void wake();

  std::int64_t gather(Batch& batch, Observation& work, const UserKey* keys,
                      const std::int32_t* items, std::int64_t count);
  bool reserve(Session& s, std::int64_t events);
  void plan(Batch& batch, Observation& work, const std::int32_t* items, std::int64_t count);
  void compute(Observation& work, std::int64_t rows, int threads);
  void commit(Batch& batch, Observation& work);
  std::int64_t embed_some(const UserKey* keys, std::int64_t count, int threads, float* out,
                          std::uint8_t* known, std::vector<std::int32_t>* seen,
                          std::int64_t* offsets);
  std::int64_t batch_rows() const;

  /// Calls visit(session) under the lock for each user in order of use, none of them owned. The
  /// visit may open the lock when it has done with the session.
  template <typename Visit>
  void walk(Lock& lock, Visit&& visit);
  /// Takes in a user of a file or of another store as the most recent one, under the lock.
  void restore(const Restored& user);

  /// A child process finds the store as if calls in work had dropped their users' states.
  void after_fork();
  void enlist();

  std::shared_ptr<const Encoder> encoder_;
  SessionOptions options_;
  std::int64_t kept_;  // ids of a user
  std::mutex mutex_;
  std::condition_variable given_back_;
  SessionTable table_;
  std::int64_t waiting_ = 0, owned_ = 0;
  std::uint32_t owner_ = 0, mark_ = 0;
  bool replaced_ = false;
  std::int64_t hits_ = 0, misses_ = 0, observes_ = 0;
  std::int64_t reencodings_ = 0;
  bool walking_ = false;  // one walk at a time
  std::atomic<std::int64_t> clock_;
};

}  // namespace seqrec
