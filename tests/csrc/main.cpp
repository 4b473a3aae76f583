// SPDX-License-Identifier: Apache-2.0
// Runs the tests whose name begins with one of the arguments, or all.
#include <cstring>

#include "check.h"

int main(int argc, char** argv) {
  int ran = 0;
  for (const Test& test : all_tests()) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; ++i) {
      wanted = wanted || test.name.compare(0, std::strlen(argv[i]), argv[i]) == 0;
    }
    if (!wanted) continue;
    test.body();
    ++ran;
    std::printf("ok %s\n", test.name.c_str());
  }
  CHECK(ran > 0, "no test of that name");
  std::printf("%d tests\n", ran);
  return 0;
}
