// SPDX-License-Identifier: Apache-2.0
// The kernels of one instruction set as a table of functions, and the choice between tables.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/topk_types.h"

namespace seqrec {

struct KernelTable {
  const char* name;  // "baseline", "avx2" or "avx512"
  int lanes;         // floats in one vector register

  std::int64_t (*topk_chunk_rows)(std::int64_t dim);
  void (*topk_begin)(const TopkProblem& problem, TopkState& state);
  void (*topk_scan)(const TopkProblem& problem, TopkState& state, std::int64_t first_item,
                    std::int64_t end_item);
  void (*topk_finish)(float* scores, std::int32_t* ids, std::int64_t count, std::int64_t k,
                      float* out_scores, std::int64_t* out_ids);
};

const KernelTable& baseline_kernels();
#if defined(__x86_64__)
const KernelTable& avx2_kernels();
const KernelTable& avx512_kernels();
#endif

/// Instruction sets that this library was built for, narrowest first.
std::vector<std::string> compiled_isas();

/// Those of compiled_isas() that this processor can run, narrowest first.
std::vector<std::string> supported_isas();

/// Features of this processor that matter here, by name.
std::vector<std::string> cpu_features();

/// The kernels in use: the widest that the processor can run and SEQREC_FAST_ISA allows.
///
/// Chosen at the first call. Throws std::invalid_argument when SEQREC_FAST_ISA is none of
/// baseline, avx2 and avx512.
const KernelTable& kernels();

/// The table of a supported instruction set; throws std::invalid_argument for any other name.
const KernelTable& kernels_of(const std::string& name);

}  // namespace seqrec
