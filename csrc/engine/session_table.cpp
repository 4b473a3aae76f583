// SPDX-License-Identifier: Apache-2.0
#include "engine/session_table.h"

#include <algorithm>
#include <new>
#include <random>
#include <stdexcept>
#include <string>

#include "base/round_up.h"

namespace seqrec {
namespace {

constexpr std::size_t kLeastIndex = 64;

std::int64_t state_bytes(const Encoder& encoder, const SessionLimits& limits) {
  // Where items are kept, an embedding may take the place of the state.
  const std::int64_t floats =
      limits.items > 0 ? std::max(encoder.state_size(), encoder.dim()) : encoder.state_size();
  return 4 * floats;
}

std::int64_t page_bytes(const Encoder& encoder) { return 4 * kPageTokens * encoder.token_size(); }

std::int64_t chunks_of(std::int64_t items) { return (items + kChunkItems - 1) / kChunkItems; }

/// Users that may be expected at most, for the size of slabs.
std::int64_t expected_users(const Encoder& encoder, const SessionLimits& limits) {
  const std::int64_t least = static_cast<std::int64_t>(sizeof(Session)) +
                             state_bytes(encoder, limits) + page_bytes(encoder);
  return limits.memory == 0 ? limits.capacity : std::min(limits.capacity, limits.memory / least);
}

std::int64_t times(std::int64_t users, std::int64_t blocks) {
  return users > (std::int64_t{1} << 40) ? users : users * std::max<std::int64_t>(blocks, 1);
}

}  // namespace

SessionTable::SessionTable(const Encoder& encoder, const SessionLimits& limits)
    : limits_(limits),
      seed_((std::uint64_t{std::random_device{}()} << 32) ^ std::random_device{}()),
      sessions_(sizeof(Session), expected_users(encoder, limits)),
      states_(state_bytes(encoder, limits), expected_users(encoder, limits)),
      pages_(std::max<std::int64_t>(page_bytes(encoder), 8),
             times(expected_users(encoder, limits), encoder.window() / kPageTokens)),
      chunks_(4 * (kChunkItems + 1),
              times(expected_users(encoder, limits), chunks_of(limits.items))),
      token_size_(encoder.token_size()),
      state_bytes_(state_bytes(encoder, limits)),
      index_(kLeastIndex) {
  if (limits.memory == 0) return;
  const auto slabs = [](const BlockPool& pool, std::int64_t blocks) {
    const std::int64_t each = pool.slab_bytes() / std::max<std::int64_t>(pool.blocks_a_slab(), 1);
    return round_up(std::max<std::int64_t>(blocks, 1) * each, pool.slab_bytes());
  };
  std::int64_t least = bytes() + slabs(sessions_, 1) + slabs(states_, 1) + 1024;
  if (token_size_ > 0) least += slabs(pages_, encoder.window() / kPageTokens + 1);
  // a batch may bring as many ids again before the oldest are dropped
  if (limits.items > 0) least += slabs(chunks_, 2 * chunks_of(limits.items) + 2);
  if (limits.memory < least) {
    throw std::invalid_argument("memory: one user of this model needs " + std::to_string(least) +
                                " bytes, found " + std::to_string(limits.memory));
  }
}

SessionTable::~SessionTable() {
  for (std::int32_t slot = oldest_; slot != kNone; slot = at(slot).newer) at(slot).key.clear();
}

std::int64_t SessionTable::bytes() const {
  return static_cast<std::int64_t>(sizeof(*this)) + sessions_.bytes() + states_.bytes() +
         pages_.bytes() + chunks_.bytes() + far_bytes_ +
         static_cast<std::int64_t>(index_.capacity() * sizeof(Place));
}

// ---------------------------------------------------------------------------------- users by key

void SessionTable::prefetch(std::uint64_t hash) const {
  __builtin_prefetch(&index_[static_cast<std::size_t>(hash >> 32) & (index_.size() - 1)]);
}

void SessionTable::prefetch_user(std::uint64_t hash) const {
  const auto mine = static_cast<std::uint32_t>(hash >> 32);
  const Place& place = index_[mine & (index_.size() - 1)];
  if (place.slot != 0) __builtin_prefetch(&at(place.slot - 1));
}

void SessionTable::prefetch_state(std::uint64_t hash) const {
  constexpr std::int64_t kMost = 1024;  // what follows is fetched by the processor itself
  const auto mine = static_cast<std::uint32_t>(hash >> 32);
  const Place& place = index_[mine & (index_.size() - 1)];
  if (place.slot == 0) return;
  const Session& s = at(place.slot - 1);
  const char* bytes = states_.at<char>(s.state);
  for (std::int64_t i = 0; i < std::min(state_bytes_, kMost); i += 64) {
    __builtin_prefetch(bytes + i);
  }
  if (s.older != kNone) __builtin_prefetch(&at(s.older));
  if (s.newer != kNone) __builtin_prefetch(&at(s.newer));
}

std::int32_t SessionTable::find(const UserKey& key, std::uint64_t hash) const {
  const std::size_t mask = index_.size() - 1;
  const auto mine = static_cast<std::uint32_t>(hash >> 32);
  for (std::size_t i = mine & mask;; i = (i + 1) & mask) {
    const Place& place = index_[i];
    if (place.slot == 0) return kNone;
    if (place.hash == mine && at(place.slot - 1).key.equals(key)) return place.slot - 1;
  }
}

std::int64_t SessionTable::position_of(std::int32_t slot) const {
  const std::size_t mask = index_.size() - 1;
  std::size_t i = at(slot).hash & mask;
  while (index_[i].slot != slot + 1) i = (i + 1) & mask;
  return static_cast<std::int64_t>(i);
}

bool SessionTable::grow_index() {
  if (static_cast<std::size_t>(users_ + 1) * 4 <= index_.size() * 3) return true;
  if (!within(static_cast<std::int64_t>(2 * index_.size() * sizeof(Place)))) return false;
  std::vector<Place> larger(2 * index_.size());
  const std::size_t mask = larger.size() - 1;
  for (const Place& place : index_) {
    if (place.slot == 0) continue;
    std::size_t i = place.hash & mask;
    while (larger[i].slot != 0) i = (i + 1) & mask;
    larger[i] = place;
  }
  index_.swap(larger);
  return true;
}

std::int32_t SessionTable::insert(const UserKey& key, std::uint64_t hash, std::uint32_t owner) {
  while (users_ >= limits_.capacity) {
    if (!evict_one()) return kNone;
  }
  while (!grow_index()) {
    if (!evict_one()) return kNone;
  }
  if (!ensure(sessions_, 1) || !ensure(states_, 1)) return kNone;
  StoredKey stored;
  stored.set(key);
  const std::int32_t slot = sessions_.take();
  Session& s = *new (&at(slot)) Session{};
  s.key = stored;
  s.hash = static_cast<std::uint32_t>(hash >> 32);
  s.state = states_.take();
  s.first_page = s.first_chunk = s.last_chunk = kNone;
  s.owner = owner;
  far_bytes_ += StoredKey::far_bytes(key);
  const std::size_t mask = index_.size() - 1;
  std::size_t i = s.hash & mask;
  while (index_[i].slot != 0) i = (i + 1) & mask;
  index_[i] = {s.hash, slot + 1};
  link(slot);
  ++users_;
  return slot;
}

void SessionTable::erase(std::int32_t slot) {
  Session& s = at(slot);
  const std::size_t mask = index_.size() - 1;
  auto hole = static_cast<std::size_t>(position_of(slot));
  // Those that follow move back where their own place is not behind the hole.
  for (std::size_t i = (hole + 1) & mask; index_[i].slot != 0; i = (i + 1) & mask) {
    if (((i - index_[i].hash) & mask) >= ((i - hole) & mask)) {
      index_[hole] = index_[i];
      hole = i;
    }
  }
  index_[hole] = {0, 0};
  unlink(slot);
  drop_pages(s);
  chunks_.give_chain(s.first_chunk);
  far_bytes_ -= StoredKey::far_bytes(s.key.view());
  s.key.clear();
  states_.give(s.state);
  sessions_.give(slot);
  --users_;
}

// ---------------------------------------------------------------------------------- order of use

void SessionTable::link(std::int32_t slot) {
  Session& s = at(slot);
  s.older = newest_;
  s.newer = kNone;
  (newest_ == kNone ? oldest_ : at(newest_).newer) = slot;
  newest_ = slot;
}

void SessionTable::unlink(std::int32_t slot) {
  const Session& s = at(slot);
  if (cursor_ == slot) cursor_ = s.newer;
  (s.older == kNone ? oldest_ : at(s.older).newer) = s.newer;
  (s.newer == kNone ? newest_ : at(s.newer).older) = s.older;
}

void SessionTable::touch(std::int32_t slot, std::int64_t now) {
  at(slot).used = now;
  if (newest_ == slot) return;
  unlink(slot);
  link(slot);
}

void SessionTable::expire(std::int64_t time, std::int64_t most, bool counted) {
  std::int32_t slot = oldest_;
  while (slot != kNone && most-- > 0 && at(slot).used <= time) {
    const std::int32_t newer = at(slot).newer;
    if (at(slot).owner == 0) {
      erase(slot);
      counts_.expired += counted;
    }
    slot = newer;
  }
}

bool SessionTable::evict_one() {
  for (std::int32_t slot = oldest_; slot != kNone; slot = at(slot).newer) {
    if (at(slot).owner != 0) continue;
    erase(slot);
    ++counts_.evictions;
    return true;
  }
  return false;
}

// ---------------------------------------------------------------------------------------- blocks

bool SessionTable::ensure(BlockPool& pool, std::int64_t count) {
  bool shrunk = false;
  while (!pool.has(count)) {
    if (within(pool.slab_bytes())) {
      try {
        pool.grow();
        continue;
      } catch (const std::bad_alloc&) {
        // as if the limit were reached
      }
    }
    if (evict_one()) continue;
    if (shrunk) return false;
    shrink();
    shrunk = true;
  }
  return true;
}

void SessionTable::shrink() {
  for (BlockPool* pool : {&sessions_, &states_, &pages_, &chunks_}) pool->shrink();
}

bool SessionTable::reserve_pages(Session& s, std::int64_t tokens) {
  if (token_size_ == 0) return true;
  const std::int64_t wanted = (tokens + kPageTokens - 1) / kPageTokens;
  if (wanted <= s.pages) return true;
  if (!ensure(pages_, wanted - s.pages)) return false;
  std::int32_t last = s.first_page;
  while (last != kNone && pages_.next(last) != kNone) last = pages_.next(last);
  for (; s.pages < wanted; ++s.pages) {
    const std::int32_t page = pages_.take();
    (last == kNone ? s.first_page : pages_.next(last)) = page;
    last = page;
  }
  return true;
}

void SessionTable::drop_pages(Session& s) {
  pages_.give_chain(s.first_page);
  s.first_page = kNone;
  s.pages = 0;
}

void SessionTable::page_addresses(const Session& s, float** out) const {
  for (std::int32_t page = s.first_page; page != kNone; page = pages_.next(page)) {
    *out++ = pages_.at<float>(page);
  }
}

bool SessionTable::reserve_items(Session& s, std::int64_t count) {
  const std::int64_t wanted = chunks_of(s.first_item + s.items + std::min(count, limits_.items));
  if (wanted <= s.chunks) return true;
  if (!ensure(chunks_, wanted - s.chunks)) return false;
  std::int32_t last = s.last_chunk;
  while (last != kNone && chunks_.next(last) != kNone) last = chunks_.next(last);
  for (; s.chunks < wanted; ++s.chunks) {
    const std::int32_t chunk = chunks_.take();
    if (last == kNone) {
      s.first_chunk = s.last_chunk = chunk;
    } else {
      chunks_.next(last) = chunk;
    }
    last = chunk;
  }
  return true;
}

void SessionTable::append_items(Session& s, const std::int32_t* items, std::int64_t count) {
  if (count > limits_.items) {
    items += count - limits_.items;
    count = limits_.items;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t place = (s.first_item + s.items) % kChunkItems;
    if (place == 0 && s.items > 0) s.last_chunk = chunks_.next(s.last_chunk);
    chunks_.at<std::int32_t>(s.last_chunk)[place] = items[i];
    ++s.items;
  }
  while (s.items > limits_.items) {
    --s.items;
    if (++s.first_item < kChunkItems) continue;
    s.first_item = 0;
    const std::int32_t empty = s.first_chunk;
    s.first_chunk = chunks_.next(empty);
    chunks_.give(empty);
    --s.chunks;
  }
}

void SessionTable::last_items(const Session& s, std::int64_t count, std::int32_t* out) const {
  std::int64_t skip = s.first_item + s.items - count, left = count;
  std::int32_t chunk = s.first_chunk;
  for (; skip >= kChunkItems; skip -= kChunkItems) chunk = chunks_.next(chunk);
  while (left > 0) {
    const std::int64_t here = std::min(kChunkItems - skip, left);
    out = std::copy_n(chunks_.at<std::int32_t>(chunk) + skip, here, out);
    left -= here;
    skip = 0;
    chunk = chunks_.next(chunk);
  }
}

}  // namespace seqrec
