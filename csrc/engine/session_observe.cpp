// SPDX-License-Identifier: Apache-2.0
// How a session store takes in events: users are taken, planned for and computed in batches.
#include <algorithm>
#include <exception>
#include <limits>
#include <mutex>

#include "base/thread_pool.h"
#include "engine/session_batch.h"

namespace seqrec {
namespace {

constexpr std::int64_t kBatchEvents = 1024;  // looked up while others wait: some 50 µs
constexpr std::int64_t kGroupRows = 128;     // the recurrent kernel multiplies so many at a time
constexpr std::int64_t kGroupTokens = 2048;  // and an attention model forms so many keys
constexpr std::int64_t kLookAhead = 12;      // keys whose memory is fetched beforehand

}  // namespace

/// A batch of events, sorted by user. Row r is row r of the batch.
struct SessionStore::Observation {
  enum Kind : std::uint8_t {
    kKeep,     // only the items are kept
    kAdvance,  // the state goes on
    kPrefill,  // the state is computed from the items of the window
  };

  Observation(std::int64_t rows, std::int64_t events, std::int64_t window, std::int64_t pages)
      : row_of_event(events),
        count(rows),
        kind(rows),
        length(rows),
        begin(rows + 1),
        items(events + rows * window),
        users(rows),
        page(std::max<std::int64_t>(rows * pages, 1)),
        failed(rows),
        pages_a_row(pages) {}

  Scratch<std::int32_t> row_of_event;
  Scratch<std::int64_t> count;  // events
  Scratch<Kind> kind;
  Scratch<std::int64_t> length;  // of the session afterwards
  Scratch<std::int64_t> begin;   // of the row's items: those of the window that count, the new ones
  Scratch<std::int32_t> items;
  Scratch<UserState> users;
  Scratch<float*> page;
  Scratch<std::uint8_t> failed;
  std::int64_t pages_a_row;
  std::exception_ptr error;
};

std::int64_t SessionStore::observe(const UserKey* keys, const std::int32_t* items,
                                   std::int64_t count, int threads) {
  for (std::int64_t at = 0; at < count;) {
    const std::int64_t rows = std::min(count - at, batch_rows());
    const std::int64_t events = std::min(count - at, kBatchEvents);
    // Without a window, only users who come from another model are encoded from their items.
    const std::int64_t window = kept_;
    Observation work(rows, events, window,
                     encoder_->token_size() > 0 ? encoder_->window() / kPageTokens + 1 : 0);
    Batch batch(*this, rows);
    std::int64_t taken = 0;
    try {
      taken = gather(batch, work, keys + at, items + at, events);
    } catch (const SessionsReplaced&) {
      return at;
    }
    compute(work, batch.rows(), threads);
    commit(batch, work);
    if (work.error) std::rethrow_exception(work.error);
    at += taken;
  }
  return count;
}

std::int64_t SessionStore::gather(Batch& batch, Observation& work, const UserKey* keys,
                                  const std::int32_t* items, std::int64_t count) {
  Scratch<std::uint64_t> hashes(count);
  for (std::int64_t i = 0; i < count; ++i) hashes[i] = table_.hash(keys[i]);
  Lock lock(mutex_);
  check_alive();
  std::int64_t time = now();
  batch.begin(next_owner());
  expire_some(time);
  std::int64_t taken = 0;
  while (taken < count) {
    const std::uint64_t hash = hashes[taken];
    if (taken + kLookAhead < count) table_.prefetch(hashes[taken + kLookAhead]);
    if (taken + kLookAhead * 2 / 3 < count)
      table_.prefetch_user(hashes[taken + kLookAhead * 2 / 3]);
    if (taken + kLookAhead / 3 < count) table_.prefetch_state(hashes[taken + kLookAhead / 3]);
    std::int32_t slot = find(keys[taken], hash, time);
    const bool known = slot != SessionTable::kNone;
    const bool mine = known && table_.at(slot).owner == batch.owner();
    if (!mine) {
      if (batch.full()) break;
      const bool busy = known && table_.at(slot).owner != 0;
      if (!known) slot = table_.insert(keys[taken], hash, batch.owner());
      if (busy || slot == SessionTable::kNone) {
        if (batch.rows() > 0) break;
        if (!busy && owned_ == 0) throw std::bad_alloc();  // nobody will make room
        wait(lock);
        check_alive();
        time = now();
        continue;
      }
      batch.own(slot);
      work.count[batch.rows() - 1] = 0;
    }
    Session& s = table_.at(slot);
    std::int64_t& events = work.count[s.row];
    if (!reserve(s, events + 1)) {
      const bool alone = batch.rows() == 1 && owned_ == 1 && events == 0;
      if (!mine) batch.disown_last();
      if (batch.rows() > 0) break;
      if (alone) throw std::bad_alloc();
      wait(lock);
      check_alive();
      time = now();
      continue;
    }
    ++events;
    ++(known ? hits_ : misses_);
    table_.touch(slot, time);
    work.row_of_event[taken++] = s.row;
  }
  plan(batch, work, items, taken);
  return taken;
}

bool SessionStore::reserve(Session& s, std::int64_t events) {
  if (kept_ > 0 && !table_.reserve_items(s, events)) return false;
  const std::int64_t window = encoder_->window(), total = s.length + events;
  if (window == 0 || (total > window && options_.hop == 1)) return true;
  return table_.reserve_pages(s, std::min(total, window));
}

void SessionStore::plan(Batch& batch, Observation& work, const std::int32_t* items,
                        std::int64_t count) {
  const std::int64_t window = encoder_->window(), hop = options_.hop;
  std::int64_t begin = 0;
  for (std::int64_t row = 0; row < batch.rows(); ++row) {
    const Session& s = table_.at(batch.slot(row));
    const std::int64_t events = work.count[row], total = s.length + events;
    std::int64_t length = total;
    auto kind = s.stale ? Observation::kPrefill : Observation::kAdvance;
    if (window > 0 && total > window) {
      length = hop == 1 ? window : total - hop * ((total - window + hop - 1) / hop);
      kind = hop == 1 ? Observation::kKeep : Observation::kPrefill;
    } else if (encoder_->token_size() > 0 && s.length > 0 && 4 * events > total) {
      kind = Observation::kPrefill;  // sooner than so many steps
    }
    // What the window holds of the past comes first.
    const std::int64_t past =
        kind == Observation::kPrefill ? std::max<std::int64_t>(length - events, 0) : 0;
    table_.last_items(s, past, work.items.data() + begin);
    work.kind[row] = kind;
    work.length[row] = std::min<std::int64_t>(length, std::numeric_limits<int>::max());
    work.begin[row] = begin;
    begin += past + events;
    float** pages = work.page.data() + row * work.pages_a_row;
    if (work.pages_a_row > 0) table_.page_addresses(s, pages);
    work.users[row] = {table_.state(s), pages, kind == Observation::kAdvance ? s.length : 0};
    work.failed[row] = 0;
    if (kind == Observation::kPrefill) ++reencodings_;
  }
  work.begin[batch.rows()] = begin;
  // Each event goes behind those of its user that came before.
  Scratch<std::int64_t> place(batch.rows());
  for (std::int64_t row = 0; row < batch.rows(); ++row) {
    place[row] = work.begin[row + 1] - work.count[row];
  }
  for (std::int64_t i = 0; i < count; ++i) {
    work.items[place[work.row_of_event[i]]++] = items[i];
  }
}

void SessionStore::compute(Observation& work, std::int64_t rows, int threads) {
  // What a row computes: the end of its items, as long as its new length where it is a prefill.
  Scratch<std::int64_t> chosen(rows), first(rows + 1);
  const auto tokens_of = [&](std::int64_t row) {
    return work.kind[row] == Observation::kPrefill ? work.length[row] : work.count[row];
  };
  const std::int64_t each =
      std::clamp((rows + threads - 1) / threads, std::int64_t{32}, kGroupRows);
  std::int64_t count = 0, groups = 0, tokens = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    if (work.kind[row] == Observation::kKeep) continue;
    const std::int64_t more = tokens_of(row);
    if (count == 0 || count - first[groups - 1] == each || tokens + more > kGroupTokens) {
      first[groups++] = count;
      tokens = 0;
    }
    tokens += more;
    chosen[count++] = row;
  }
  if (count == 0) return;
  first[groups] = count;
  const std::int64_t size = encoder_->state_size();
  std::mutex failing;
  parallel(groups, threads, [&](std::int64_t group) {
    const std::int64_t from = first[group], in_group = first[group + 1] - from;
    const std::int64_t* row = chosen.data() + from;
    try {
      Scratch<float> before(in_group * size);
      Scratch<UserState> users(in_group);
      Scratch<std::int64_t> offsets(in_group + 1);
      offsets[0] = 0;
      for (std::int64_t i = 0; i < in_group; ++i) {
        users[i] = work.users[row[i]];
        offsets[i + 1] = offsets[i] + tokens_of(row[i]);
        if (users[i].length > 0) {
          std::copy_n(users[i].fixed, size, before.data() + i * size);
        }
      }
      Scratch<std::int32_t> values(offsets[in_group]);
      for (std::int64_t i = 0; i < in_group; ++i) {
        const std::int64_t length = tokens_of(row[i]);
        std::copy_n(work.items.data() + work.begin[row[i] + 1] - length, length,
                    values.data() + offsets[i]);
      }
      try {
        encoder_->advance(users.data(), {values.data(), offsets.data(), in_group});
      } catch (...) {
        for (std::int64_t i = 0; i < in_group; ++i) {
          const UserState& user = users[i];
          if (user.length > 0) std::copy_n(before.data() + i * size, size, user.fixed);
        }
        throw;
      }
    } catch (...) {
      for (std::int64_t i = 0; i < in_group; ++i) work.failed[row[i]] = 1;
      const std::lock_guard<std::mutex> lock(failing);
      if (!work.error) work.error = std::current_exception();
    }
  });
}

void SessionStore::commit(Batch& batch, Observation& work) {
  const Lock lock(mutex_);
  for (std::int64_t row = 0; row < batch.rows(); ++row) {
    Session& s = table_.at(batch.slot(row));
    const auto kind = work.kind[row];
    if (work.failed[row] != 0) {
      // Pages may have been written over: the items say what they were.
      if (kind == Observation::kPrefill) {
        s.stale = s.length > 0;
        s.embedded = false;
      }
      continue;
    }
    const std::int64_t events = work.count[row];
    if (kept_ > 0) {
      table_.append_items(s, work.items.data() + work.begin[row + 1] - events, events);
    }
    s.length = static_cast<std::int32_t>(work.length[row]);
    s.events += events;
    observes_ += events;
    s.stale = kind == Observation::kKeep;
    s.embedded = false;
    if (kind == Observation::kKeep) table_.drop_pages(s);
  }
  batch.give_back();
}

}  // namespace seqrec
