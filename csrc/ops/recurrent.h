// SPDX-License-Identifier: Apache-2.0
// A recurrent layer forward as a whole operation: order of rows, packing, threads, memory.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

#include "base/aligned.h"
#include "isa/kernel_table.h"
#include "kernels/recurrent_types.h"

namespace seqrec {

/// Computes `output`, `h_end`, `c_end` and what is to be kept for the gradient.
///
/// The rows are dealt out to up to `threads` threads by their lengths, and each thread takes its
/// rows through all time steps: threads never wait for one another between steps. Where there are
/// fewer rows than threads and a step is long enough, the threads share the hidden units of all
/// rows and meet after every step. The result of a row depends neither on the number of threads
/// nor, but for rounding, on the rows beside it. Throws std::bad_alloc.
void recurrent_forward(const RecurrentProblem& problem, int threads, const KernelTable& table);

/// recurrent_forward with weights that RecurrentKernels::pack has packed; those of the problem are
/// not read.
void recurrent_run(const RecurrentProblem& problem, const float* packed, int threads,
                   const KernelTable& table);

/// The packed weights of one layer, kept from call to call as long as the weights stay the same.
///
/// What the weights are is looked at in every call (RecurrentKernels::fingerprint): they may be
/// changed by anybody, without a word. May be used by many threads at once.
class RecurrentPacking {
 public:
  using Weights = std::shared_ptr<const AlignedBuffer<float>>;

  /// The packed weights of a problem. Throws std::bad_alloc.
  Weights of(const RecurrentProblem& problem, int threads, const KernelTable& table);

 private:
  struct Key {
    const KernelTable* table;
    RecurrentCell cell;
    CellActivation activation;
    std::int64_t inputs, hidden;
    bool b_ih, b_hh;
    std::uint64_t fingerprint;

    bool operator==(const Key& other) const {
      return table == other.table && cell == other.cell && activation == other.activation &&
             inputs == other.inputs && hidden == other.hidden && b_ih == other.b_ih &&
             b_hh == other.b_hh && fingerprint == other.fingerprint;
    }
  };

  std::mutex mutex_;
  Key key_{};
  Weights weights_;
};

}  // namespace seqrec
