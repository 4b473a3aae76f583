// SPDX-License-Identifier: Apache-2.0
// An encoder that can be checked exactly, sums of items and positions, and what it has to say.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string>
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

inline constexpr std::int64_t kItems = 100;

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
  void encode_group(const JaggedView<std::int32_t>& rows, float* out, int) const override {
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
inline std::vector<float> expected(const History& history, std::int64_t window, std::int64_t hop) {
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

inline void check_user(SessionStore& store, const UserKey& key, const History& history) {
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

inline SessionOptions options(std::int64_t capacity, std::int64_t hop = 1,
                              std::int64_t remember = 7) {
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

inline constexpr std::uint8_t kIdentity[SessionStore::kIdentityBytes] = {1, 2, 3};
