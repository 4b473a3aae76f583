// SPDX-License-Identifier: Apache-2.0
// Session stores in a process that forks: the child has one thread, and none of the calls of
// others.
#include <pthread.h>

#include <algorithm>
#include <new>
#include <thread>

#include "engine/sessions.h"

namespace seqrec {

struct SessionStore::Stores {
  /// Lives to the end of the process, as forks may come at any time.
  static Stores& get() {
    static auto* stores = [] {
      auto* made = new Stores;
      pthread_atfork(&before, &in_parent, &in_child);
      return made;
    }();
    return *stores;
  }

  /// No store may be in the middle of a change when the memory is copied.
  static void before() {
    Stores& stores = get();
    stores.mutex.lock();
    // Two stores may be locked by one thread, in an order that is not known here: never wait for
    // one while others are held.
    const std::size_t count = stores.all.size();
    for (std::size_t held = 0; held < count;) {
      if (stores.all[held]->mutex_.try_lock()) {
        ++held;
        continue;
      }
      while (held > 0) stores.all[--held]->mutex_.unlock();
      std::this_thread::yield();
    }
  }

  static void in_parent() {
    Stores& stores = get();
    for (SessionStore* store : stores.all) store->mutex_.unlock();
    stores.mutex.unlock();
  }

  static void in_child() {
    for (SessionStore* store : get().all) store->after_fork();
    in_parent();
  }

  std::mutex mutex;
  std::vector<SessionStore*> all;
};

void SessionStore::enlist() {
  Stores& stores = Stores::get();
  const std::lock_guard<std::mutex> lock(stores.mutex);
  stores.all.push_back(this);
}

SessionStore::~SessionStore() {
  Stores& stores = Stores::get();
  const std::lock_guard<std::mutex> lock(stores.mutex);
  stores.all.erase(std::find(stores.all.begin(), stores.all.end(), this));
}

void SessionStore::after_fork() {
  // Who waited is not here, and would be waited for when the variable is destroyed.
  new (&given_back_) std::condition_variable;
  waiting_ = 0;
  if (walking_) replaced_ = false;  // another store was taking over: that may begin again
  walking_ = false;
  table_.set_cursor(SessionTable::kNone);
  for (std::int32_t slot = table_.oldest(); owned_ > 0 && slot != SessionTable::kNone;) {
    Session& s = table_.at(slot);
    const std::int32_t newer = s.newer;
    if (s.owner != 0) {
      --owned_;
      s.owner = 0;
      // The state was in work: only the items say what it was.
      s.stale = true;
      s.embedded = false;
      if (s.events == 0 || s.length > s.items) table_.erase(slot);
    }
    slot = newer;
  }
}

}  // namespace seqrec
