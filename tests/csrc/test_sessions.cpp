// SPDX-License-Identifier: Apache-2.0
// The session store: equal to encoding anew, order of use, bounds, time, failures.
#include <list>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "sum_encoder.h"

TEST(sessions_any_interleaving_equals_encoding_anew) {
  std::mt19937 random(1);
  for (const auto& [window, hop] :
       std::vector<std::pair<int, int>>{{0, 1}, {40, 1}, {40, 7}, {40, 40}, {1, 1}, {16, 3}}) {
    SessionStore store(std::make_shared<SumEncoder>(window), options(1000, hop));
    std::map<std::int64_t, History> histories;
    for (int round = 0; round < 300; ++round) {
      std::vector<UserKey> keys;
      History items;
      const std::size_t count = 1 + random() % (round % 7 == 0 ? 900 : 20);
      for (std::size_t i = 0; i < count; ++i) {
        const std::int64_t user = random() % 23;
        keys.push_back(UserKey::of(user));
        items.push_back(static_cast<std::int32_t>(random() % 5));
        histories[user].push_back(items.back());
      }
      const auto all = static_cast<std::int64_t>(count);
      CHECK(store.observe(keys.data(), items.data(), all, 2) == all);
      const std::int64_t user = random() % 24;
      // sums stay exact as long as they are below 2^24
      if (window == 0 && histories[user].size() > 700) {
        CHECK(store.forget(UserKey::of(user)));
        histories[user].clear();
      }
      check_user(store, UserKey::of(user), histories[user]);
      std::vector<std::int32_t> kept;
      const History& all_of = histories[user];
      CHECK(store.history(UserKey::of(user), &kept) == static_cast<std::int64_t>(all_of.size()));
      const auto most = static_cast<std::size_t>(std::max(window, 7));
      const auto last =
          all_of.size() > most ? all_of.end() - static_cast<long>(most) : all_of.begin();
      CHECK(kept == History(last, all_of.end()));
    }
  }
}

TEST(sessions_evict_who_was_used_longest_ago) {
  std::mt19937 random(2);
  for (const int capacity : {1, 2, 5, 40}) {
    SessionStore store(std::make_shared<SumEncoder>(0), options(capacity));
    std::list<std::int64_t> order;  // most recent first
    std::map<std::int64_t, History> histories;
    std::int64_t evictions = 0;
    for (int step = 0; step < 3000; ++step) {
      std::vector<UserKey> keys;
      History items;
      for (std::size_t i = 0, n = 1 + random() % 12; i < n; ++i) {
        const std::int64_t user = random() % 60;
        keys.push_back(UserKey::of(user));
        items.push_back(1 + static_cast<std::int32_t>(random() % 3));
        const bool known = std::count(order.begin(), order.end(), user) != 0;
        order.remove(user);
        if (!known) {
          histories[user].clear();
          if (static_cast<int>(order.size()) == capacity) {
            histories[order.back()].clear();
            order.pop_back();
            ++evictions;
          }
        }
        order.push_front(user);
        histories[user].push_back(items.back());
      }
      store.observe(keys.data(), items.data(), static_cast<std::int64_t>(keys.size()), 1);
      for (std::int64_t user = 0; user < 60; ++user) {
        CHECK(store.contains(UserKey::of(user)) == !histories[user].empty(), "capacity %d, step %d",
              capacity, step);
      }
      const std::int64_t user = random() % 60;
      check_user(store, UserKey::of(user), histories[user]);
      if (!histories[user].empty()) {
        order.remove(user);
        order.push_front(user);
      }
    }
    CHECK(store.statistics().evictions == evictions);
    CHECK(store.size() <= capacity);
  }
}

TEST(sessions_stay_within_memory_and_give_it_back) {
  for (const int window : {0, 64}) {
    const auto encoder = std::make_shared<SumEncoder>(window);
    bool refused = false;
    try {
      SessionStore small(encoder, {1000, 2000, 0, 1, 7});
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
    constexpr std::int64_t kMemory = 400000;
    SessionStore store(encoder, {1000000, kMemory, 0, 1, 7});
    std::map<std::int64_t, History> histories;
    std::mt19937 random(3);
    for (int step = 0; step < 40000; ++step) {
      const std::int64_t user = random() % 4000;
      const UserKey key = UserKey::of(user);
      const auto item = static_cast<std::int32_t>(random() % 5);
      if (!store.contains(key)) histories[user].clear();
      // first many users of few events, then few users of many
      const int events = step < 20000 ? 1 : 40;
      for (int i = 0; i < events; ++i) {
        store.observe(&key, &item, 1, 1);
        histories[user].push_back(item);
      }
      if (step % 16 == 0) check_user(store, key, histories[user]);
      const auto found = store.statistics();
      CHECK(found.bytes <= kMemory, "%ld bytes", static_cast<long>(found.bytes));
    }
    CHECK(store.statistics().evictions > 0);
    CHECK(store.size() > 100, "%ld users", static_cast<long>(store.size()));
  }
}

TEST(sessions_cost_what_is_promised) {
  // The state of this encoder is 8 bytes: what a user costs beside it, with integer keys.
  SessionStore store(std::make_shared<SumEncoder>(0), options(1000000, 1, 0));
  std::vector<UserKey> keys;
  for (std::int64_t user = 0; user < 100000; ++user) keys.push_back(UserKey::of(user * 977));
  const History items(keys.size(), 1);
  store.observe(keys.data(), items.data(), static_cast<std::int64_t>(keys.size()), 1);
  const auto found = store.statistics();
  const double each = static_cast<double>(found.bytes) / static_cast<double>(found.users);
  CHECK(each <= 8 + 64 + 0.2 * 512, "%g bytes", each);
}

TEST(sessions_expire) {
  SessionStore store(std::make_shared<SumEncoder>(0), {100, 0, 10, 1, 0});
  const std::int32_t item = 1;
  store.set_clock(-50);
  for (std::int64_t user = 0; user < 50; ++user) {
    const UserKey key = UserKey::of(user);
    store.set_clock(user);
    store.observe(&key, &item, 1, 1);
  }
  CHECK(store.size() == 10);  // used at 40 … 49
  CHECK(!store.contains(UserKey::of(std::int64_t{39})));
  check_user(store, UserKey::of(std::int64_t{40}), {1});  // used now
  store.set_clock(58);
  CHECK(store.contains(UserKey::of(std::int64_t{49})));
  CHECK(!store.contains(UserKey::of(std::int64_t{48})));
  CHECK(store.size() == 2);
  store.set_clock(59);
  CHECK(store.size() == 0);
  CHECK(store.statistics().expired == 50);
}

TEST(sessions_keys_are_apart) {
  SessionStore store(std::make_shared<SumEncoder>(0), options(100));
  const std::string bytes(300, 'x');
  std::vector<UserKey> keys = {UserKey::of(std::int64_t{1}), UserKey::of("1", 1),
                               UserKey::of("", 0), UserKey::of(std::int64_t{-1})};
  for (const std::uint32_t size : {15u, 16u, 17u, 64u, 300u}) {
    keys.push_back(UserKey::of(bytes.data(), size));
  }
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const auto item = static_cast<std::int32_t>(i + 1);
    store.observe(&keys[i], &item, 1, 1);
  }
  for (std::size_t i = 0; i < keys.size(); ++i) {
    check_user(store, keys[i], {static_cast<std::int32_t>(i + 1)});
  }
  for (const UserKey& key : keys) CHECK(store.forget(key) && !store.forget(key));
  CHECK(store.size() == 0);
}

TEST(sessions_survive_failures_of_the_model) {
  for (const int window : {0, 8}) {
    const auto encoder = std::make_shared<SumEncoder>(window);
    SessionStore store(encoder, options(100, window == 0 ? 1 : 3));
    std::map<std::int64_t, History> histories;
    std::mt19937 random(4);
    for (int step = 0; step < 2000; ++step) {
      std::vector<UserKey> keys;
      History items;
      for (std::int64_t user = 0; user < 4; ++user) {
        keys.push_back(UserKey::of(static_cast<std::int64_t>(random() % 6) + 10 * user));
        items.push_back(static_cast<std::int32_t>(random() % 5));
      }
      const bool fails = random() % 3 == 0;
      encoder->fail = fails && step % 2 == 0;
      encoder->fail_at = fails && step % 2 == 1 ? static_cast<std::int64_t>(random() % 4) : -1;
      bool failed = false;
      try {
        store.observe(keys.data(), items.data(), 4, 1);
      } catch (const std::bad_alloc&) {
        failed = true;
      }
      CHECK(failed == fails);
      encoder->fail_at = -1;
      if (!failed) {
        for (std::size_t i = 0; i < 4; ++i) histories[keys[i].number].push_back(items[i]);
      }
      for (const UserKey& key : keys) check_user(store, key, histories[key.number]);
    }
  }
}
