// SPDX-License-Identifier: Apache-2.0
// Chooses the instruction set once, at the first use of a kernel.
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "isa/kernel_table.h"

namespace seqrec {

SEQREC_KERNEL_TABLE(isa_baseline, "baseline", 4)
#if defined(__x86_64__)
SEQREC_KERNEL_TABLE(isa_avx2, "avx2", 8)
SEQREC_KERNEL_TABLE(isa_avx512, "avx512", 16)
#endif

namespace {

struct Unit {
  const KernelTable& table;
  bool (*runs)();
};

#if defined(__x86_64__)
bool runs_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

// Narrowest first.
const Unit kUnits[] = {
    {isa_baseline::table, [] { return true; }},
#if defined(__x86_64__)
    {isa_avx2::table, &runs_avx2},
    {isa_avx512::table, &runs_avx512},
#endif
};

constexpr const char* kKnown[] = {"baseline", "avx2", "avx512"};

int rank_of(const std::string& name) {
  int rank = 0;
  for (const char* known : kKnown) {
    if (name == known) return rank;
    ++rank;
  }
  return -1;
}

const KernelTable& choose() {
  const char* cap = std::getenv("SEQREC_FAST_ISA");
  int limit = 2;
  if (cap != nullptr && *cap != '\0') {
    limit = rank_of(cap);
    if (limit < 0) {
      throw std::invalid_argument("SEQREC_FAST_ISA: found '" + std::string(cap) +
                                  "'; set it to baseline, avx2 or avx512, or unset it");
    }
  }
  const Unit* best = &kUnits[0];
  for (const Unit& unit : kUnits) {
    if (rank_of(unit.table.name) <= limit && unit.runs()) best = &unit;
  }
  return best->table;
}

}  // namespace

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Unit& unit : kUnits) names.emplace_back(unit.table.name);
  return names;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Unit& unit : kUnits) {
    if (unit.runs()) names.emplace_back(unit.table.name);
  }
  return names;
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> found;
#if defined(__x86_64__)
#define SEQREC_FEATURE(name) \
  if (__builtin_cpu_supports(name)) found.emplace_back(name)
  SEQREC_FEATURE("sse2");
  SEQREC_FEATURE("sse4.2");
  SEQREC_FEATURE("avx");
  SEQREC_FEATURE("avx2");
  SEQREC_FEATURE("fma");
  SEQREC_FEATURE("avx512f");
  SEQREC_FEATURE("avx512dq");
  SEQREC_FEATURE("avx512bw");
  SEQREC_FEATURE("avx512vl");
  SEQREC_FEATURE("avx512vnni");
#undef SEQREC_FEATURE
#elif defined(__aarch64__)
  found.emplace_back("neon");
#endif
  return found;
}

namespace {
std::atomic<const KernelTable*> chosen{nullptr};
}

const KernelTable& kernels() {
  const KernelTable* table = chosen.load(std::memory_order_acquire);
  if (table == nullptr) {
    table = &choose();  // two threads may both choose; they choose the same
    chosen.store(table, std::memory_order_release);
  }
  return *table;
}

const KernelTable& kernels_of(const std::string& name) {
  for (const Unit& unit : kUnits) {
    if (name == unit.table.name && unit.runs()) return unit.table;
  }
  throw std::invalid_argument("isa: '" + name + "' is not compiled in or not supported here");
}

void use_isa(const std::string& name) {
  chosen.store(&kernels_of(name), std::memory_order_release);
}

}  // namespace seqrec
