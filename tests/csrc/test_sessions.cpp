// SPDX-License-Identifier: Apache-2.0
// The session store over an encoder that can be checked exactly: sums of items and positions.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <list>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/sessions.h"

using seqrec::Encoder;
using seqrec::JaggedView;
using seqrec::kPageTokens;
using seqrec::SessionOptions;
using seqrec::SessionsReplaced;
using seqrec::SessionStore;
using seqrec::UserKey;
using seqrec::UserState;

namespace {

constexpr std::int64_t kItems = 100;

/// Embeds a history as {sum of (position + 1) * item, number of events}; exact in float32. With a
/// window, each event is kept in the pages and the state knows the last one alone.
class SumEncoder final : public Encoder {
 public:
  explicit SumEncoder(std::int64_t window)
      : Encoder(kItems, 2, window, false, seqrec::kernels()), window_size(window) {}

  std::int64_t state_size() const override { return window_size > 0 ? 1 : 2; }
  std::int64_t token_size() const override { return window_size > 0 ? 1 : 0; }

  void advance(const UserState* users, const JaggedView<std::int32_t>& events) const override {
    if (fail.exchange(false)) throw std::bad_alloc();
    for (std::int64_t row = 0; row < events.rows; ++row) {
      const UserState& user = users[row];
      if (fail_at == row) {
        user.fixed[0] = -1.0f;  // half of the work is done
        throw std::bad_alloc();
      }
      for (std::int64_t t = events.offsets[row]; t < events.offsets[row + 1]; ++t) {
        const std::int64_t position = user.length + t - events.offsets[row];
        const auto item = static_cast<float>(events.values[t]);
        if (window_size > 0) {
          CHECK(position < window_size, "position %ld", static_cast<long>(position));
          user.pages[position / kPageTokens][position % kPageTokens] = item;
          user.fixed[0] = item;
        } else {
          if (position == 0) user.fixed[0] = user.fixed[1] = 0.0f;
          user.fixed[0] += static_cast<float>(position + 1) * item;
          user.fixed[1] = static_cast<float>(position + 1);
        }
      }
    }
  }

  const std::int64_t window_size;
  mutable std::atomic<bool> fail{false};
  std::int64_t fail_at = -1;

 protected:
  void encode_group(const JaggedView<std::int32_t>& rows, float* out) const override {
    for (std::int64_t row = 0; row < rows.rows; ++row) {
      out[2 * row] = 0.0f;
      const std::int64_t length = rows.offsets[row + 1] - rows.offsets[row];
      for (std::int64_t t = 0; t < length; ++t) {
        out[2 * row] += static_cast<float>((t + 1) * rows.values[rows.offsets[row] + t]);
      }
      out[2 * row + 1] = static_cast<float>(length);
    }
  }
  void embed_group(const UserState* users, std::int64_t count, float* out) const override {
    for (std::int64_t i = 0; i < count; ++i) {
      const UserState& user = users[i];
      if (window_size == 0) {
        std::copy_n(user.fixed, 2, out + 2 * i);
        continue;
      }
      out[2 * i] = 0.0f;
      for (std::int64_t t = 0; t < user.length; ++t) {
        out[2 * i] += static_cast<float>(t + 1) * user.pages[t / kPageTokens][t % kPageTokens];
      }
      out[2 * i + 1] = static_cast<float>(user.length);
    }
  }
  std::int64_t group_tokens() const override { return 512; }
  std::int64_t group_rows() const override { return 64; }
  double token_cost() const override { return 1e4; }
};

using History = std::vector<std::int32_t>;

/// What the encoder has to say of a whole history.
std::vector<float> expected(const History& history, std::int64_t window, std::int64_t hop) {
  std::size_t begin = 0;
  if (window > 0 && static_cast<std::int64_t>(history.size()) > window) {
    const std::int64_t over = static_cast<std::int64_t>(history.size()) - window;
    begin = static_cast<std::size_t>((over + hop - 1) / hop * hop);
  }
  float sum = 0.0f;
  for (std::size_t t = begin; t < history.size(); ++t) {
    sum += static_cast<float>(t - begin + 1) * static_cast<float>(history[t]);
  }
  return {sum, static_cast<float>(history.size() - begin)};
}

void check_user(SessionStore& store, const UserKey& key, const History& history) {
  float out[2];
  std::uint8_t known;
  store.embed(&key, 1, 1, out, &known, nullptr, nullptr);
  CHECK((known != 0) == !history.empty());
  if (history.empty()) return;
  const auto wanted = expected(history, store.encoder().window(), store.options().hop);
  CHECK(out[0] == wanted[0] && out[1] == wanted[1], "%g %g, expected %g %g",
        static_cast<double>(out[0]), static_cast<double>(out[1]), static_cast<double>(wanted[0]),
        static_cast<double>(wanted[1]));
}

SessionOptions options(std::int64_t capacity, std::int64_t hop = 1, std::int64_t remember = 7) {
  return {capacity, 0, 0, hop, remember};
}

/// A file of the test that is gone when the test ends.
class TemporaryFile {
 public:
  TemporaryFile() {
    file = mkstemp(name.data());
    CHECK(file >= 0);
    unlink(name.c_str());
  }
  ~TemporaryFile() { close(file); }
  void rewind() const { CHECK(lseek(file, 0, SEEK_SET) == 0); }

  std::string name = "/tmp/seqrec_sessions_XXXXXX";
  int file;
};

constexpr std::uint8_t kIdentity[SessionStore::kIdentityBytes] = {1, 2, 3};

}  // namespace

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
