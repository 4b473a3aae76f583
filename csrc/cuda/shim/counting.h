// SPDX-License-Identifier: Apache-2.0
// A part of engine.cpp: what tests are told of launches, loads and stores.
#pragma once

#include <mutex>
#include <utility>
#include <vector>

#include "cuda/shim/meeting.h"

namespace seqrec {
namespace cuda {
namespace shim {

namespace {

struct Watched {
  std::uintptr_t begin;
  std::size_t bytes;
  Counter counter;
};
std::vector<Watched> watched_memory;  // the first is everything

void add(std::uint64_t& sum, std::uint64_t value) {
  __atomic_fetch_add(&sum, value, __ATOMIC_RELAXED);
}

template <typename F>
void for_each_counter(const void* p, F f) {
  const auto at = reinterpret_cast<std::uintptr_t>(p);
  for (Watched& w : watched_memory) {
    if (at - w.begin < w.bytes) f(w.counter);
  }
}

}  // namespace

void count_load_slow(const void* from, std::size_t bytes) {
  for_each_counter(from, [&](Counter& c) {
    add(c.loads, 1);
    add(c.loaded_bytes, bytes);
  });
}

void count_store_slow(const void* to, std::size_t bytes) {
  for_each_counter(to, [&](Counter& c) {
    add(c.stores, 1);
    add(c.stored_bytes, bytes);
  });
}

void start_counting(const std::vector<std::pair<std::uintptr_t, std::size_t>>& watched) {
  const std::lock_guard<std::mutex> lock(one_launch);
  watched_memory.assign(1, {0, ~static_cast<std::size_t>(0), {}});
  for (const auto& [begin, bytes] : watched) watched_memory.push_back({begin, bytes, {}});
  counting = true;
}

std::vector<Counter> stop_counting() {
  const std::lock_guard<std::mutex> lock(one_launch);
  counting = false;
  std::vector<Counter> found;
  for (const Watched& w : watched_memory) found.push_back(w.counter);
  return found;
}

std::vector<Launched> take_launches() {
  const std::lock_guard<std::mutex> lock(one_launch);
  return std::move(launches);
}

}  // namespace shim
}  // namespace cuda
}  // namespace seqrec
