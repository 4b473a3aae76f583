// SPDX-License-Identifier: Apache-2.0
// Kernels on the CPU: `program` runs all tests, `program NAME...` those that begin so. What begins
// with fault_ is wrong on purpose and runs only when it is named.
#include <cstdio>
#include <cstring>
#include <exception>

#include "../check.h"

int main(int count, char** names) {
  int ran = 0;
  for (const Test& test : all_tests()) {
    bool wanted = count == 1 && test.name.rfind("fault_", 0) != 0;
    for (int i = 1; i < count; ++i) wanted = wanted || test.name.rfind(names[i], 0) == 0;
    if (!wanted) continue;
    try {
      test.body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", test.name.c_str(), error.what());
      return 3;
    }
    ++ran;
  }
  std::printf("%d tests\n", ran);
  return ran == 0 ? 4 : 0;
}
