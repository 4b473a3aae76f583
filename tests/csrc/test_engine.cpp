// SPDX-License-Identifier: Apache-2.0
// Whole models from many threads: what each of them gets is, bit for bit, what it gets alone.
#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/engine.h"
#include "engine/recurrent_encoder.h"
#include "engine/sasrec_encoder.h"
#include "engine/sessions.h"

namespace {

using namespace seqrec;

constexpr int kThreads = 4;
constexpr std::int64_t kItems = 1100, kDim = 64;  // enough for a table of bytes
constexpr std::int64_t kHidden = 40, kInner = 96, kHeads = 2, kWindow = 20, kBest = 10;

/// Random weights under the names of a model.
class Weights {
 public:
  const float* add(const std::string& name, std::int64_t size, float width = 0.1f) {
    kept_.emplace_back(static_cast<std::size_t>(size));
    std::normal_distribution<float> normal(0.0f, width);
    for (float& x : kept_.back()) x = normal(random_);
    tensors.set(name, kept_.back().data(), size);
    return kept_.back().data();
  }

  void linear(const std::string& name, std::int64_t outputs, std::int64_t inputs) {
    add(name + ".weight", outputs * inputs);
    add(name + ".bias", outputs);
  }

  void norm(const std::string& name) {
    add(name + ".weight", kDim, 1.0f);
    add(name + ".bias", kDim);
  }

  Tensors tensors;

 private:
  std::mt19937 random_{3};
  std::vector<std::vector<float>> kept_;
};

struct Model {
  Weights weights;
  std::shared_ptr<const Engine> engine;

  std::shared_ptr<const Encoder> encoder() const { return {engine, &engine->encoder()}; }
};

std::unique_ptr<Model> sasrec() {
  auto made = std::make_unique<Model>();
  Weights& w = made->weights;
  const float* items = w.add("item_embedding.weight", kItems * kDim);
  w.add("position_embedding.weight", kWindow * kDim);
  w.norm("final_norm");
  for (const std::string block : {"blocks.0", "blocks.1"}) {
    w.norm(block + ".attention_norm");
    w.norm(block + ".feed_forward_norm");
    w.linear(block + ".attention.qkv", 3 * kDim, kDim);
    w.linear(block + ".attention.out", kDim, kDim);
    w.linear(block + ".feed_forward.up", kInner, kDim);
    w.linear(block + ".feed_forward.down", kDim, kInner);
  }
  const SasrecConfig config{kItems, kDim, kHeads, kInner, 2, kWindow, false};
  made->engine =
      std::make_shared<Engine>(std::make_unique<SasrecEncoder>(config, w.tensors, kernels()),
                               nullptr, items, nullptr, nullptr, 2, kernels());
  return made;
}

std::unique_ptr<Model> recurrent(RecurrentCell cell) {
  auto made = std::make_unique<Model>();
  Weights& w = made->weights;
  const float* items = w.add("item_embedding.weight", kItems * kDim);
  const std::int64_t rows = recurrent_gates(cell) * kHidden;
  for (const std::string layer : {"_l0", "_l1"}) {
    const std::int64_t inputs = layer == "_l0" ? kDim : kHidden;
    w.add("recurrent.weight_ih" + layer, rows * inputs);
    w.add("recurrent.weight_hh" + layer, rows * kHidden);
    w.add("recurrent.bias_ih" + layer, rows);
    w.add("recurrent.bias_hh" + layer, rows);
  }
  w.linear("projection", kDim, kHidden);
  const float* bias = w.add("output_bias", kItems);
  const RecurrentConfig config{cell, CellActivation::kTanh, kItems, kDim, kHidden, 2, false};
  made->engine =
      std::make_shared<Engine>(std::make_unique<RecurrentEncoder>(config, w.tensors, kernels()),
                               nullptr, items, bias, nullptr, 2, kernels());
  return made;
}

/// Requests for whole histories, of a user alone and of many, on `threads` threads each.
std::vector<float> histories(const Engine& engine, unsigned number, int steps, int threads) {
  std::mt19937 random(number);
  std::vector<float> found;
  for (int step = 0; step < steps; ++step) {
    const std::int64_t rows = step % 2 == 0 ? 1 : 1 + random() % 24;
    std::vector<std::int32_t> items;
    std::vector<std::int64_t> offsets{0};
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::size_t i = 0, n = 1 + random() % (2 * kWindow); i < n; ++i) {
        items.push_back(static_cast<std::int32_t>(random() % kItems));
      }
      offsets.push_back(static_cast<std::int64_t>(items.size()));
    }
    const JaggedView<std::int32_t> view{items.data(), offsets.data(), rows};
    std::vector<float> scores(static_cast<std::size_t>(rows * kBest));
    std::vector<std::int64_t> ids(scores.size());
    engine.recommend(view, {view, nullptr}, kBest, threads, scores.data(), ids.data());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      CHECK(ids[i] >= 0 && ids[i] < kItems && std::isfinite(scores[i]));
      const auto row = static_cast<std::ptrdiff_t>(i / kBest);
      const auto item = static_cast<std::int32_t>(ids[i]);
      CHECK(std::count(items.begin() + offsets[static_cast<std::size_t>(row)],
                       items.begin() + offsets[static_cast<std::size_t>(row + 1)], item) == 0);
    }
    found.insert(found.end(), scores.begin(), scores.end());
    for (const std::int64_t id : ids) found.push_back(static_cast<float>(id));
  }
  return found;
}

/// Events of live users, a few of them in a call, and what is recommended after each.
std::vector<float> live(const Engine& engine, SessionStore& store, std::int64_t number, int steps) {
  std::mt19937 random(static_cast<unsigned>(number));
  std::vector<float> found;
  for (int step = 0; step < steps; ++step) {
    constexpr std::int64_t kUsers = 3;
    UserKey keys[kUsers];
    std::int32_t items[kUsers];
    for (std::int64_t i = 0; i < kUsers; ++i) {
      keys[i] = UserKey::of(10 * number + static_cast<std::int64_t>(random() % 4));
      items[i] = static_cast<std::int32_t>(random() % kItems);
    }
    CHECK(store.observe(keys, items, kUsers, 2) == kUsers);
    float queries[kUsers * kDim], scores[kUsers * kBest];
    std::uint8_t known[kUsers];
    std::int64_t offsets[kUsers + 1], ids[kUsers * kBest];
    std::vector<std::int32_t> seen;
    store.embed(keys, kUsers, 2, queries, known, &seen, offsets);
    engine.rank(queries, kUsers, {{seen.data(), offsets, kUsers}, nullptr}, kBest, 2, scores, ids);
    CHECK(std::count(known, known + kUsers, 1) == kUsers);
    found.insert(found.end(), queries, queries + kUsers * kDim);
    found.insert(found.end(), scores, scores + kUsers * kBest);
    if (random() % 8 == 0) CHECK(store.forget(keys[0]));
  }
  return found;
}

/// Runs body(number) of all threads one after another, then all at once.
template <typename Body>
void same_alone_and_together(Body&& alone, Body&& together) {
  std::vector<std::vector<float>> wanted, found(kThreads);
  for (int number = 0; number < kThreads; ++number) wanted.push_back(alone(number));
  std::vector<std::thread> threads;
  for (int number = 0; number < kThreads; ++number) {
    threads.emplace_back(
        [&, number] { found[static_cast<std::size_t>(number)] = together(number); });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(found == wanted);
}

void check_model(const Model& model, int steps) {
  const Engine& engine = *model.engine;
  CHECK(engine.table_bytes() > 0);
  const auto ask = [&](int number) {
    return histories(engine, static_cast<unsigned>(number), steps, 1 + number % 3);
  };
  same_alone_and_together(ask, ask);
  // with the window moved at every event, by hops, or no window at all
  for (const std::int64_t hop : {1, 5}) {
    if (hop > 1 && engine.encoder().window() == 0) continue;
    SessionStore first(model.encoder(), {1000, 0, 0, hop, 30});
    SessionStore second(model.encoder(), {1000, 0, 0, hop, 30});
    const auto run = [&](SessionStore* store) {
      return [&engine, store, steps](int number) { return live(engine, *store, number, steps); };
    };
    const auto alone = run(&first), together = run(&second);
    same_alone_and_together(alone, together);
  }
}

}  // namespace

TEST(engine_threads_share_a_sasrec) { check_model(*sasrec(), 40); }

TEST(engine_threads_share_a_gru) { check_model(*recurrent(RecurrentCell::kGru), 40); }

TEST(engine_threads_share_an_lstm) { check_model(*recurrent(RecurrentCell::kLstm), 40); }
