// SPDX-License-Identifier: Apache-2.0
// A few lines instead of a test framework: named tests, checks that stop the program.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

struct Test {
  std::string name;
  std::function<void()> body;
};

inline std::vector<Test>& all_tests() {
  static std::vector<Test> tests;
  return tests;
}

struct AddTest {
  AddTest(const char* name, std::function<void()> body) { all_tests().push_back({name, body}); }
};

#define TEST(name)                                 \
  static void name();                              \
  static const AddTest add_##name(#name, &(name)); \
  static void name()

#define CHECK(condition, ...)                                                      \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: failed: %s  ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, " " __VA_ARGS__);                                       \
      std::fprintf(stderr, "\n");                                                  \
      std::exit(1);                                                                \
    }                                                                              \
  } while (false)
