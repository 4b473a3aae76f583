// SPDX-License-Identifier: Apache-2.0
// One recurrent layer on the GPU over a jagged batch, forward and back through time: what the
// launchers take. Plain data and two functions; kernels/recurrent_types.h says what each means.
//
// T is float, half or bfloat16 by `math`. All matrices are row-major and dense.
#pragma once

#include "cuda/stream.h"

#include <cstdint>

#include "cuda/recurrent_plan.h"

namespace seqrec {
namespace cuda {

/// The rows of a batch: offsets [rows + 1], or null where all rows have tokens / rows tokens.
struct RecurrentRows {
  std::int64_t tokens;
  std::int64_t rows;
  const std::int64_t* offsets;
};

struct RecurrentForward {
  RecurrentRows batch;
  RecurrentPlan plan;
  CellActivation activation;
  void* workspace;         // [plan.workspace] bytes
  const void* projected;   // T [tokens, G * hidden], W_ih x; may be `gates`
  const void* w_hh;        // T [G * hidden, hidden]
  const void* b_ih;        // T [G * hidden] or null
  const void* b_hh;        // T [G * hidden] or null
  const void* h0;          // T [rows, hidden] or null
  const void* c0;          // lstm: T [rows, hidden] or null
  void* output;            // T [tokens, hidden]
  void* h_end;             // T [rows, hidden]
  void* c_end;             // lstm: T [rows, hidden]
  void* gates;             // lstm, gru: T [tokens, G * hidden], or null: not kept
  float* cells;            // lstm: [tokens, hidden], or null
  void* hn;                // gru: T [tokens, hidden], or null
};

struct RecurrentBackward {
  RecurrentRows batch;
  RecurrentPlan plan;
  CellActivation activation;
  void* workspace;
  const void* w_hh_t;  // T [hidden, G * hidden], the transpose
  const void* h0;
  const void* c0;
  const void* output;
  const void* gates;
  const float* cells;
  const void* hn;
  const void* d_output;  // T [tokens, hidden] or null: zeros; so are the two after it
  const void* d_h_end;   // T [rows, hidden]
  const void* d_c_end;   // lstm: T [rows, hidden]
  /// Gradients of the sums before the activations, T [tokens, D * hidden]: of the rnn; of the lstm
  /// i, f, g, o; of the gru hn, r, z, n, of which the first three belong to the recurrent weights
  /// and the last three to those of the inputs.
  void* d_gates;
  void* h_prev;  // T [tokens, hidden], the state before each token; or null: not wanted
  void* dh0;     // T [rows, hidden] or null: not wanted
  void* dc0;     // lstm: T [rows, hidden] or null
};

void launch_recurrent_forward(const RecurrentForward& layer, cudaStream_t stream);
void launch_recurrent_backward(const RecurrentBackward& layer, cudaStream_t stream);

}  // namespace cuda
}  // namespace seqrec
