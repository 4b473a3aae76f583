// SPDX-License-Identifier: Apache-2.0
// Users of a session store, written to a file, read back, or handed on to another store.
#include <algorithm>
#include <cstring>

#include "engine/sessions.h"
#include "engine/snapshot_file.h"

namespace seqrec {
namespace {

constexpr std::uint32_t kNumberKey = 0xffffffff;
constexpr std::uint8_t kHasState = 1;

}  // namespace

/// What another store, or a file, knows of a user.
struct SessionStore::Restored {
  UserKey key;
  std::int64_t events, used, length;
  const std::int32_t* items;  // oldest first
  std::int64_t num_items;
  const float* state;  // null: only the items are known
};

/// Marks a store as walked through; others who want to walk wait.
struct SessionStore::Walking {
  Walking(SessionStore& walked, Lock& held) : store(walked), lock(held) {
    while (store.walking_) store.wait(lock);
    store.check_alive();
    store.walking_ = true;
  }
  ~Walking() {
    if (!lock.owns_lock()) lock.lock();
    store.walking_ = false;
    store.wake();
  }

  SessionStore& store;
  Lock& lock;
};

template <typename Visit>
void SessionStore::walk(Lock& lock, Visit&& visit) {
  const std::uint32_t mark = ++mark_;
  table_.set_cursor(table_.oldest());
  while (table_.cursor() != SessionTable::kNone) {
    Session& s = table_.at(table_.cursor());
    if (s.owner != 0) {
      wait(lock);  // it is among the most recent ones now, and so comes later
      continue;
    }
    // Who is used meanwhile goes to the end, and would be met twice.
    table_.set_cursor(s.newer);
    if (s.saved == mark) continue;
    s.saved = mark;
    visit(s);
  }
}

void SessionStore::save(int file, const std::uint8_t* identity, std::int64_t wall) {
  const std::int64_t size = encoder_->state_size();
  const bool states =
      encoder_->window() == 0;  // else the items say all, in a fraction of the bytes
  SnapshotHeader header{};
  std::memcpy(header.identity, identity, kIdentityBytes);
  header.wall = wall;
  header.window = encoder_->window();
  header.state_size = size;
  std::vector<std::int32_t> items;
  items.reserve(static_cast<std::size_t>(kept_));
  SnapshotWriter writer(file, header);
  {
    Lock lock(mutex_);
    const Walking walking(*this, lock);
    const std::int64_t time = now();
    walk(lock, [&](const Session& s) {
      if (options_.ttl > 0 && s.used <= time - options_.ttl) return;
      const UserKey key = s.key.view();
      if (key.is_number()) {
        writer.put(kNumberKey);
        writer.put(key.number);
      } else {
        writer.put(key.size);
        writer.put(key.text, key.size);
      }
      items.resize(static_cast<std::size_t>(s.items));
      table_.last_items(s, s.items, items.data());
      writer.put(s.events);
      writer.put(std::max<std::int64_t>(time - s.used, 0));
      writer.put(s.length);
      writer.put(s.items);
      writer.put(states && !s.stale ? kHasState : std::uint8_t{0});
      writer.put(items.data(), s.items);
      if (states && !s.stale) writer.put(table_.state(s), size);
      writer.end_user();
      if (!writer.full()) return;
      lock.unlock();
      writer.flush();
      lock.lock();
    });
  }
  writer.finish();
}

void SessionStore::load(int file, const std::uint8_t* identity, std::int64_t wall) {
  SnapshotReader reader(file);
  const SnapshotHeader& header = reader.header();
  const std::int64_t size = encoder_->state_size();
  if (std::memcmp(header.identity, identity, kIdentityBytes) != 0 ||
      header.window != encoder_->window() || header.state_size != size) {
    throw std::invalid_argument(
        "of another model; give the bundle that the sessions were made with");
  }
  const std::int64_t time = now(), away = std::max<std::int64_t>(wall - header.wall, 0);
  std::vector<char> text;
  std::vector<std::int32_t> items;
  std::vector<float> state;
  const Lock lock(mutex_);
  while (reader.next_block()) {
    while (reader.left() > 0) {
      const auto length_of_key = reader.get<std::uint32_t>();
      UserKey key = UserKey::of(std::int64_t{0});
      if (length_of_key == kNumberKey) {
        key.number = reader.get<std::int64_t>();
      } else {
        if (length_of_key > reader.rest()) reader.damaged();
        text.reserve(1);  // so that the text of an empty key is not null
        key = UserKey::of(reader.get<char>(length_of_key, text), length_of_key);
      }
      Restored user{key, reader.get<std::int64_t>(), 0, 0, nullptr, 0, nullptr};
      const auto age = reader.get<std::int64_t>();
      user.length = reader.get<std::int32_t>();
      user.num_items = reader.get<std::int32_t>();
      const bool has_state = reader.get<std::uint8_t>() == kHasState;
      if (user.num_items < 0 || user.num_items > reader.rest() / 4) reader.damaged();
      user.items = reader.get<std::int32_t>(user.num_items, items);
      if (has_state) user.state = reader.get<float>(size, state);
      const bool fits = user.events > 0 && user.length > 0 && age >= 0 &&
                        std::all_of(items.begin(), items.end(), [&](std::int32_t item) {
                          return item >= 0 && item < encoder_->num_items();
                        });
      if (!fits || (has_state && encoder_->window() > 0)) reader.damaged();
      user.used =
          time - std::min(age, std::int64_t{1} << 61) - std::min(away, std::int64_t{1} << 61);
      if (options_.ttl > 0 && user.used <= time - options_.ttl) {
        table_.count_expired();
      } else {
        restore(user);
      }
      reader.end_user();
    }
  }
}

void SessionStore::restore(const Restored& user) {
  const std::int64_t items = std::min(user.num_items, kept_), window = encoder_->window();
  // With hop 1 the window is as long as it can be; else it stays what it was.
  std::int64_t length = user.length;
  if (user.state == nullptr)
    length = std::min(window > 0 && options_.hop == 1 ? window : length, items);
  if (window > 0) length = std::min(length, window);
  if (length == 0) return;
  const std::uint64_t hash = table_.hash(user.key);
  const std::int32_t before = table_.find(user.key, hash);
  if (before != SessionTable::kNone) table_.erase(before);  // forgotten and known again since
  const std::int32_t slot = table_.insert(user.key, hash, next_owner());
  if (slot == SessionTable::kNone) throw std::bad_alloc();
  Session& s = table_.at(slot);
  if (kept_ > 0 && !table_.reserve_items(s, items)) throw std::bad_alloc();
  if (kept_ > 0) table_.append_items(s, user.items + (user.num_items - items), items);
  s.events = user.events;
  s.length = static_cast<std::int32_t>(length);
  s.stale = user.state == nullptr;
  if (!s.stale) std::copy_n(user.state, encoder_->state_size(), table_.state(s));
  table_.touch(slot, user.used);
  s.owner = 0;
}

void SessionStore::take_from(SessionStore& old, const std::int32_t* table) {
  std::vector<std::int32_t> items;
  Lock old_lock(old.mutex_);
  const Walking walking(old, old_lock);
  clock_.store(old.clock_.load());
  items.reserve(static_cast<std::size_t>(old.kept_));
  old.replaced_ = true;  // from here on its calls wait for this one, and then fail
  old.wake();
  try {
    old.walk(old_lock, [&](const Session& s) {
      items.resize(static_cast<std::size_t>(s.items));
      old.table_.last_items(s, s.items, items.data());
      std::size_t count = 0;
      for (const std::int32_t item : items) {
        if (table[item] >= 0) items[count++] = table[item];
      }
      const auto left = static_cast<std::int64_t>(count);
      const Lock lock(mutex_);  // never while it waits for the other
      restore({s.key.view(), s.events, s.used, left, items.data(), left, nullptr});
    });
  } catch (...) {
    old.replaced_ = false;
    throw;
  }
  const Lock lock(mutex_);
  hits_ = old.hits_;
  misses_ = old.misses_;
  observes_ = old.observes_;
  reencodings_ = old.reencodings_;
  table_.count_on(old.table_.counts());
}

}  // namespace seqrec
