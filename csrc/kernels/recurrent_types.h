// SPDX-License-Identifier: Apache-2.0
// What the recurrent kernels and those who call them share: plain data, no functions.
//
// Weights, biases and the order of gates are torch's: lstm i, f, g, o; gru r, z, n. Matrices are
// row-major and dense. A token is one event of one row; tokens lie as in `x`, rows end to end.
#pragma once

#include <cstdint>

namespace seqrec {

enum class RecurrentCell : std::int32_t { kRnn, kLstm, kGru };
enum class CellActivation : std::int32_t { kTanh, kSigmoid };

/// Rows of a weight matrix for each hidden unit.
__attribute__((always_inline)) constexpr std::int64_t recurrent_gates(RecurrentCell cell) {
  return cell == RecurrentCell::kLstm ? 4 : cell == RecurrentCell::kGru ? 3 : 1;
}

/// One recurrent layer over a jagged batch: its inputs, what it computes, and what it leaves for
/// the gradient. G is the number of gates.
struct RecurrentProblem {
  RecurrentCell cell;
  CellActivation activation;
  std::int64_t tokens;
  std::int64_t rows;
  std::int64_t inputs;  // at least 1
  std::int64_t hidden;  // at least 1

  const float* x;               // [tokens, inputs]
  const std::int64_t* offsets;  // [rows + 1], first 0, last `tokens`, never decreasing
  const float* w_ih;            // [G * hidden, inputs]
  const float* w_hh;            // [G * hidden, hidden]
  const float* b_ih;            // [G * hidden], or null: zeros
  const float* b_hh;            // [G * hidden], or null: zeros
  const float* h0;              // [rows, hidden], or null: zeros
  const float* c0;              // lstm: [rows, hidden], or null: zeros

  // Computed. Inputs of the gradient as well.
  float* output;  // [tokens, hidden]: the hidden state after every token
  float* h_end;   // [rows, hidden]: after the last token of each row; h0 where it has none
  float* c_end;   // lstm: [rows, hidden]

  // Left for the gradient; all null where none will be asked for.
  float* gates;  // lstm, gru: [tokens, G * hidden], after their activation: i, f, g, o or r, z, n
  float* cells;  // lstm: [tokens, hidden], c' of every token
  float* hn;     // gru: [tokens, hidden], U_n h + d_n
};

/// The gradients of a RecurrentProblem whose forward pass has been computed.
///
/// The two biases of an rnn or lstm are only ever added up, so their gradients are one array; a
/// gru multiplies d_n by the reset gate, so it needs both.
struct RecurrentGradients {
  // Given. Each may be null: zeros.
  const float* d_output;  // [tokens, hidden]
  const float* d_h_end;   // [rows, hidden]
  const float* d_c_end;   // lstm: [rows, hidden]

  // Computed (overwritten, not added to). Each may be null: not wanted.
  float* dx;     // [tokens, inputs]
  float* dw_ih;  // [G * hidden, inputs]
  float* dw_hh;  // [G * hidden, hidden]
  float* db_ih;  // [G * hidden]; rnn, lstm: the gradient of either bias
  float* db_hh;  // gru: [G * hidden]; null for the others
  float* dh0;    // [rows, hidden]
  float* dc0;    // lstm: [rows, hidden]
};

/// Panels of hidden units, from the first to the one before `end`.
struct RecurrentPart {
  std::int64_t first, end;
};

/// The rows that one thread runs through all their time steps, and its memory.
///
/// Several threads can take the same rows, each of them its own panels of hidden units. They then
/// meet after every step, and may join while others are on their way.
struct RecurrentShare {
  const std::int64_t* order;  // [count] rows with at least one token, longest first
  std::int64_t count;
  const float* packed;  // the weights, as `pack` wrote them
  float* scratch;       // [scratch_size]

  /// Called after every step but the last; null where a thread has its rows to itself. Returns when
  /// every thread has written its part of the states of so many steps, with the panels that this
  /// thread has from then on.
  RecurrentPart (*meet)(void* team, std::int64_t steps) = nullptr;
  void* team = nullptr;
  float* cells = nullptr;       // [cells_size] of the team; where there is one, or null
  std::int64_t first_step = 0;  // the steps before it have been taken by others
  RecurrentPart part = {0, 0};  // the panels of the first step; all of them where it is empty
};

/// The functions of the forward pass, compiled for one instruction set.
struct RecurrentKernels {
  std::int64_t (*panels)(const RecurrentProblem& problem);
  std::int64_t (*packed_size)(const RecurrentProblem& problem);
  std::int64_t (*scratch_size)(const RecurrentProblem& problem, std::int64_t count);
  std::int64_t (*cells_size)(const RecurrentProblem& problem, std::int64_t count);
  void (*pack)(const RecurrentProblem& problem, std::int64_t first_panel, std::int64_t end_panel,
               float* packed);
  void (*run)(const RecurrentProblem& problem, const RecurrentShare& share);
  /// A hash of weights and biases: packed ones are true as long as it stays the same.
  std::uint64_t (*fingerprint)(const RecurrentProblem& problem);
};

}  // namespace seqrec
