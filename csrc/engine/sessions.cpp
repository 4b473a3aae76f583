// SPDX-License-Identifier: Apache-2.0
#include "engine/sessions.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <string>

#include "base/thread_pool.h"
#include "engine/session_batch.h"

namespace seqrec {
namespace {

constexpr std::int64_t kNoClock = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t kBatchRows = 512;
constexpr std::int64_t kBatchItems = std::int64_t{1} << 16;  // of all windows of a batch
constexpr std::int64_t kGroupRows = 128;
constexpr std::int64_t kSweep = 16;  // expired users that one call drops beside its work

SessionOptions checked(SessionOptions options, const Encoder& encoder) {
  const std::int64_t most = std::max<std::int64_t>(encoder.window(), 1);
  if (options.capacity < 1) throw std::invalid_argument("capacity: expected at least 1");
  if (options.hop < 1 || options.hop > most) {
    throw std::invalid_argument("hop: expected 1 to " + std::to_string(most) + ", found " +
                                std::to_string(options.hop));
  }
  // slots are counted in 32 bits
  options.capacity = std::min<std::int64_t>(options.capacity, std::int64_t{1} << 30);
  options.remember = std::max(options.remember, encoder.window());
  return options;
}

}  // namespace

SessionStore::SessionStore(std::shared_ptr<const Encoder> encoder, const SessionOptions& options)
    : encoder_(std::move(encoder)),
      options_(checked(options, *encoder_)),
      kept_(options_.remember),
      table_(*encoder_, {options_.capacity, options_.memory, options_.remember}),
      clock_(kNoClock) {
  enlist();
}

std::int64_t SessionStore::now() const {
  const std::int64_t set = clock_.load(std::memory_order_relaxed);
  if (set != kNoClock) return set;
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::uint32_t SessionStore::next_owner() {
  if (++owner_ == 0) ++owner_;
  return owner_;
}

void SessionStore::wait(Lock& lock) {
  ++waiting_;
  given_back_.wait(lock);
  --waiting_;
}

void SessionStore::wake() {
  if (waiting_ > 0) given_back_.notify_all();
}

void SessionStore::expire_some(std::int64_t time) {
  if (options_.ttl > 0) table_.expire(time - options_.ttl, kSweep);
}

std::int32_t SessionStore::find(const UserKey& key, std::uint64_t hash, std::int64_t time) {
  const std::int32_t slot = table_.find(key, hash);
  if (slot == SessionTable::kNone || options_.ttl == 0) return slot;
  const Session& s = table_.at(slot);
  if (s.owner != 0 || s.used > time - options_.ttl) return slot;
  table_.erase(slot);
  table_.count_expired();
  return SessionTable::kNone;
}

std::int64_t SessionStore::batch_rows() const {
  return kept_ == 0 ? kBatchRows : std::clamp(kBatchItems / kept_, std::int64_t{1}, kBatchRows);
}

// ------------------------------------------------------------------------------------ embeddings

void SessionStore::embed(const UserKey* keys, std::int64_t count, int threads, float* out,
                         std::uint8_t* known, std::vector<std::int32_t>* seen,
                         std::int64_t* offsets) {
  if (seen != nullptr) offsets[0] = static_cast<std::int64_t>(seen->size());
  for (std::int64_t at = 0; at < count;) {
    at += embed_some(keys + at, count - at, threads, out + at * encoder_->dim(), known + at, seen,
                     seen != nullptr ? offsets + at : nullptr);
  }
}

std::int64_t SessionStore::embed_some(const UserKey* keys, std::int64_t count, int threads,
                                      float* out, std::uint8_t* known,
                                      std::vector<std::int32_t>* seen, std::int64_t* offsets) {
  const std::int64_t dim = encoder_->dim(), most = std::min(count, batch_rows());
  const std::int64_t keys_most = std::min(count, 2 * most);
  const std::int64_t pages_most = encoder_->window() / kPageTokens + 1;
  Scratch<std::int32_t> row_of_key(keys_most);
  Scratch<UserState> ready(most);
  Scratch<float*> pages(encoder_->token_size() > 0 ? most * pages_most : 1);
  // Rows in the order in which they are computed: first those with a state, then the windows.
  Scratch<std::int32_t> ready_row(most), stale_row(most);
  Scratch<std::int64_t> begins(most + 1);
  Scratch<float*> cache(most);
  Scratch<std::int32_t> windows(kept_ > 0 ? most * kept_ : 1);
  Scratch<float> rows(most * dim);
  std::int64_t done = 0, ready_rows = 0, stale_rows = 0;
  begins[0] = 0;
  Batch batch(*this, most);
  {
    Lock lock(mutex_);
    check_alive();
    const std::int64_t time = now();
    batch.begin(next_owner());
    expire_some(time);
    while (done < keys_most) {
      const UserKey& key = keys[done];
      const std::int32_t slot = find(key, table_.hash(key), time);
      if (slot == SessionTable::kNone) {
        known[done] = 0;
        std::fill_n(out + done * dim, dim, 0.0f);
        if (seen != nullptr) offsets[done + 1] = offsets[done];
        ++misses_;
        ++done;
        continue;
      }
      Session& s = table_.at(slot);
      if (s.owner != 0 && s.owner != batch.owner()) {
        if (batch.rows() > 0) break;
        wait(lock);
        check_alive();
        continue;
      }
      if (s.owner == 0) {
        if (batch.full()) break;
        batch.own(slot);
        const auto row = static_cast<std::int64_t>(s.row);
        if (!s.stale) {
          float** mine = encoder_->token_size() > 0 ? pages.data() + row * pages_most : nullptr;
          if (mine != nullptr) table_.page_addresses(s, mine);
          ready[ready_rows] = {table_.state(s), mine, s.length};
          ready_row[ready_rows++] = s.row;
        } else if (s.embedded) {
          std::copy_n(table_.state(s), dim, rows.data() + row * dim);
        } else {
          table_.last_items(s, s.length, windows.data() + begins[stale_rows]);
          begins[stale_rows + 1] = begins[stale_rows] + s.length;
          cache[stale_rows] = table_.state(s);
          stale_row[stale_rows++] = s.row;
        }
      }
      table_.touch(slot, time);
      if (seen != nullptr) {
        const std::size_t begin = seen->size();
        seen->resize(begin + static_cast<std::size_t>(s.items));
        table_.last_items(s, s.items, seen->data() + begin);
        offsets[done + 1] = static_cast<std::int64_t>(seen->size());
      }
      known[done] = 1;
      row_of_key[done++] = s.row;
      ++hits_;
    }
  }
  if (ready_rows > 0) {
    Scratch<float> found(ready_rows * dim);
    const std::int64_t each =
        std::clamp((ready_rows + threads - 1) / threads, std::int64_t{32}, kGroupRows);
    parallel((ready_rows + each - 1) / each, threads, [&](std::int64_t group) {
      const std::int64_t first = group * each;
      encoder_->embed(ready.data() + first, std::min(each, ready_rows - first),
                      found.data() + first * dim);
    });
    for (std::int64_t i = 0; i < ready_rows; ++i) {
      std::copy_n(found.data() + i * dim, dim, rows.data() + ready_row[i] * dim);
    }
  }
  if (stale_rows > 0) {
    Scratch<float> found(stale_rows * dim);
    encoder_->encode({windows.data(), begins.data(), stale_rows}, found.data(), threads);
    for (std::int64_t i = 0; i < stale_rows; ++i) {
      std::copy_n(found.data() + i * dim, dim, rows.data() + stale_row[i] * dim);
      std::copy_n(found.data() + i * dim, dim, cache[i]);
    }
  }
  for (std::int64_t i = 0; i < done; ++i) {
    if (known[i] == 0) continue;
    std::copy_n(rows.data() + std::int64_t{row_of_key[i]} * dim, dim, out + i * dim);
  }
  if (batch.rows() > 0) {
    const Lock lock(mutex_);
    for (std::int64_t i = 0; i < stale_rows; ++i) {
      table_.at(batch.slot(stale_row[i])).embedded = true;
    }
    reencodings_ += stale_rows;
    batch.give_back();
  }
  return done;
}

// ----------------------------------------------------------------------------------- single users

bool SessionStore::forget(const UserKey& key) {
  const std::uint64_t hash = table_.hash(key);
  Lock lock(mutex_);
  while (true) {
    check_alive();
    const std::int32_t slot = find(key, hash, now());
    if (slot == SessionTable::kNone) return false;
    if (table_.at(slot).owner == 0) {
      table_.erase(slot);
      wake();  // someone may wait for room
      return true;
    }
    wait(lock);
  }
}

bool SessionStore::contains(const UserKey& key) {
  const Lock lock(mutex_);
  check_alive();
  return find(key, table_.hash(key), now()) != SessionTable::kNone;
}

std::int64_t SessionStore::history(const UserKey& key, std::vector<std::int32_t>* items) {
  const std::uint64_t hash = table_.hash(key);
  Lock lock(mutex_);
  while (true) {
    check_alive();
    const std::int32_t slot = find(key, hash, now());
    items->clear();
    if (slot == SessionTable::kNone) return 0;
    const Session& s = table_.at(slot);
    if (s.owner == 0) {
      items->resize(static_cast<std::size_t>(s.items));
      table_.last_items(s, s.items, items->data());
      return s.events;
    }
    wait(lock);
  }
}

// --------------------------------------------------------------------------------------- all users

void SessionStore::clear() {
  Lock lock(mutex_);
  while (true) {
    check_alive();
    table_.expire(std::numeric_limits<std::int64_t>::max(), table_.size(), false);
    if (table_.size() == 0) break;
    wait(lock);
  }
  wake();
}

std::int64_t SessionStore::size() { return statistics().users; }

SessionStatistics SessionStore::statistics() {
  constexpr std::int64_t kSome = 1024;  // dropped in one go, so that others wait for a short time
  while (true) {
    const Lock lock(mutex_);
    check_alive();
    const std::int64_t before = table_.size();
    if (options_.ttl > 0) table_.expire(now() - options_.ttl, kSome);
    if (before - table_.size() == kSome) continue;
    return {table_.size(),
            hits_,
            misses_,
            table_.counts().evictions,
            table_.counts().expired,
            table_.bytes(),
            table_.pages_in_use(),
            observes_,
            reencodings_};
  }
}

}  // namespace seqrec
