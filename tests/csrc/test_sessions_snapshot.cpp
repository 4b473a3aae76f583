// SPDX-License-Identifier: Apache-2.0
// The session store: snapshots, another model, many threads.
#include <array>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "sum_encoder.h"

TEST(sessions_snapshot_keeps_states_order_and_age) {
  for (const int window : {0, 20}) {
    const auto encoder = std::make_shared<SumEncoder>(window);
    const SessionOptions with{50, 0, 1000, window == 0 ? 1 : 4, 3};
    SessionStore store(encoder, with);
    std::map<std::int64_t, History> histories;
    std::mt19937 random(5);
    for (int step = 0; step < 1500; ++step) {
      const std::int64_t user = random() % 50;
      const UserKey key = UserKey::of(user);
      const auto item = static_cast<std::int32_t>(random() % 5);
      store.set_clock(step);
      if (!store.contains(key)) histories[user].clear();
      store.observe(&key, &item, 1, 1);
      histories[user].push_back(item);
    }
    const TemporaryFile to;
    store.save(to.file, kIdentity, 77);
    to.rewind();
    SessionStore again(encoder, with);
    again.set_clock(5000);
    again.load(to.file, kIdentity, 77 + 3);
    CHECK(again.size() <= store.size() && again.size() >= store.size() - 2);
    SessionStore few(encoder, {5, 0, 0, window == 0 ? 1 : 4, 3});
    to.rewind();
    few.load(to.file, kIdentity, 77);
    CHECK(few.size() == 5);
    const auto before = few.statistics();
    CHECK(before.bytes > 0);
    for (const auto& [user, history] : histories) {
      if (again.contains(UserKey::of(user))) check_user(again, UserKey::of(user), history);
      if (few.contains(UserKey::of(user))) check_user(few, UserKey::of(user), history);
    }
  }
}

TEST(sessions_damaged_snapshots_are_refused) {
  const auto encoder = std::make_shared<SumEncoder>(0);
  SessionStore store(encoder, options(3000));
  const std::string text = "somebody with a name";
  for (std::int64_t user = 0; user < 3000; ++user) {
    const UserKey key = user % 2 == 0
                            ? UserKey::of(user)
                            : UserKey::of(text.data(), static_cast<std::uint32_t>(1 + user % 20));
    const auto item = static_cast<std::int32_t>(user % 5);
    store.observe(&key, &item, 1, 1);
  }
  const TemporaryFile to;
  store.save(to.file, kIdentity, 77);
  const auto size = lseek(to.file, 0, SEEK_END);
  std::vector<char> whole(static_cast<std::size_t>(size));
  CHECK(pread(to.file, whole.data(), whole.size(), 0) == size);
  const auto refused = [&](const std::vector<char>& bytes, const std::uint8_t* identity) {
    const TemporaryFile damaged;
    CHECK(write(damaged.file, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
    damaged.rewind();
    SessionStore target(encoder, options(3000));
    try {
      target.load(damaged.file, identity, 77);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(refused(whole, kIdentity).empty());
  const std::uint8_t other[SessionStore::kIdentityBytes] = {9};
  CHECK(refused(whole, other).find("another model") != std::string::npos);
  std::mt19937 random(6);
  for (std::size_t i = 0; i < 500; ++i) {
    std::vector<char> bytes = whole;
    const std::size_t at = i < 200 ? i : random() % whole.size();
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
    CHECK(!refused(bytes, kIdentity).empty(), "byte %zu", at);
    bytes.assign(whole.begin(), whole.begin() + static_cast<long>(at));
    CHECK(!refused(bytes, kIdentity).empty(), "cut off at byte %zu", at);
  }
  std::vector<char> more = whole;
  more.push_back(0);
  CHECK(refused(more, kIdentity).find("more behind") != std::string::npos);
}

TEST(sessions_go_over_to_another_model) {
  const auto encoder = std::make_shared<SumEncoder>(20);
  SessionStore store(encoder, options(50));
  History items;
  std::vector<std::int32_t> table(kItems);
  for (std::int32_t item = 0; item < kItems; ++item) {
    table[static_cast<std::size_t>(item)] = item % 3 == 0 ? -1 : (item + 1) % 100;
  }
  std::map<std::int64_t, History> mapped;
  for (std::int64_t user = 0; user < 50; ++user) {
    for (std::int32_t event = 0; event < 1 + user % 30; ++event) {
      const UserKey key = UserKey::of(user);
      const auto item = static_cast<std::int32_t>((user * 7 + event * 3 + event % 3) % 100);
      store.observe(&key, &item, 1, 1);
      // of the old window, what the new model knows
      if (event >= user % 30 - 19 && table[static_cast<std::size_t>(item)] >= 0) {
        mapped[user].push_back(table[static_cast<std::size_t>(item)]);
      }
    }
  }
  for (const int window : {0, 10, 40}) {
    SessionStore next(std::make_shared<SumEncoder>(window), options(50, 1, 25));
    SessionStore copy(encoder, options(50));
    const TemporaryFile to;
    store.save(to.file, kIdentity, 1);
    to.rewind();
    copy.load(to.file, kIdentity, 1);
    next.take_from(copy, table.data());
    for (std::int64_t user = 0; user < 50; ++user) {
      check_user(next, UserKey::of(user), mapped[user]);
      const UserKey key = UserKey::of(user);
      const std::int32_t item = 1;
      next.observe(&key, &item, 1, 1);
      mapped[user].push_back(1);
      check_user(next, key, mapped[user]);
      mapped[user].pop_back();
    }
    bool refused = false;
    try {
      copy.size();
    } catch (const SessionsReplaced&) {
      refused = true;
    }
    CHECK(refused);
  }
}

TEST(sessions_threads_do_not_mix_users) {
  for (const auto& [window, hop, capacity] : std::vector<std::array<int, 3>>{
           {0, 1, 1000}, {24, 1, 1000}, {24, 5, 1000}, {0, 1, 5}, {24, 5, 7}, {24, 1, 1}}) {
    SessionStore store(std::make_shared<SumEncoder>(window), options(capacity, hop));
    constexpr int kThreads = 8;
    constexpr std::int64_t kOwn = 6;
    std::vector<std::thread> threads;
    for (int number = 0; number < kThreads; ++number) {
      threads.emplace_back([&, number] {
        // Users of one thread alone, whose answers are known, and users of all threads.
        std::map<std::int64_t, History> histories;
        std::mt19937 random(static_cast<unsigned>(number));
        for (int step = 0; step < 300; ++step) {
          std::vector<UserKey> keys;
          History items;
          for (std::size_t i = 0, n = 1 + random() % 9; i < n; ++i) {
            const bool shared = random() % 3 == 0;
            const std::int64_t user =
                shared ? -1 - static_cast<std::int64_t>(random() % 4)
                       : number * kOwn + static_cast<std::int64_t>(random() % kOwn);
            keys.push_back(UserKey::of(user));
            items.push_back(static_cast<std::int32_t>(random() % 5));
            histories[user].push_back(items.back());
          }
          const auto count = static_cast<std::int64_t>(keys.size());
          CHECK(store.observe(keys.data(), items.data(), count, 2) == count);
          std::vector<float> out(keys.size() * 2);
          std::vector<std::uint8_t> known(keys.size());
          std::vector<std::int64_t> offsets(keys.size() + 1);
          std::vector<std::int32_t> seen;
          store.embed(keys.data(), count, 2, out.data(), known.data(), &seen, offsets.data());
          CHECK(offsets.back() == static_cast<std::int64_t>(seen.size()));
          for (std::size_t i = 0; i < keys.size() && capacity == 1000; ++i) {
            if (keys[i].number < 0) continue;
            const auto wanted = expected(histories[keys[i].number], window, hop);
            CHECK(known[i] != 0 && out[2 * i] == wanted[0] && out[2 * i + 1] == wanted[1]);
          }
          if (random() % 16 == 0) {
            const std::int64_t user = number * kOwn + static_cast<std::int64_t>(random() % kOwn);
            store.forget(UserKey::of(user));
            histories[user].clear();
          }
          if (random() % 32 == 0) store.forget(UserKey::of(std::int64_t{-1}));
          CHECK(store.size() <= capacity);
          if (number == 0 && step % 50 == 0) {
            const TemporaryFile to;
            store.save(to.file, kIdentity, 1);
            to.rewind();
            SessionStore copy(std::make_shared<SumEncoder>(window), options(capacity, hop));
            copy.load(to.file, kIdentity, 1);
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
}

TEST(sessions_threads_lose_nothing_while_the_model_changes) {
  const auto encoder = std::make_shared<SumEncoder>(0);
  std::vector<std::int32_t> same(kItems);
  for (std::size_t item = 0; item < same.size(); ++item) same[item] = static_cast<int>(item);
  auto store = std::make_shared<SessionStore>(encoder, options(1000, 1, 5000));
  std::mutex mutex;
  const auto current = [&] {
    const std::lock_guard<std::mutex> lock(mutex);
    return store;
  };
  std::vector<std::thread> threads;
  for (std::int64_t number = 0; number < 4; ++number) {
    threads.emplace_back([&, number] {
      const UserKey keys[3] = {UserKey::of(number), UserKey::of(number), UserKey::of(number + 100)};
      const std::int32_t items[3] = {1, 2, 3};
      for (int step = 0; step < 400; ++step) {
        for (std::int64_t done = 0; done < 3;) {
          done += current()->observe(keys + done, items + done, 3 - done, 1);
        }
      }
    });
  }
  threads.emplace_back([&] {
    for (int turn = 0; turn < 20; ++turn) {
      auto next = std::make_shared<SessionStore>(encoder, options(1000, 1, 5000));
      const std::lock_guard<std::mutex> lock(mutex);
      next->take_from(*store, same.data());
      store = next;
    }
  });
  for (std::thread& thread : threads) thread.join();
  for (std::int64_t number = 0; number < 4; ++number) {
    History both, one(400, 3);
    for (int step = 0; step < 400; ++step) both.insert(both.end(), {1, 2});
    check_user(*store, UserKey::of(number), both);
    check_user(*store, UserKey::of(number + 100), one);
  }
}
