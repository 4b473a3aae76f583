// SPDX-License-Identifier: Apache-2.0
// The kernels of one instruction set as a table of functions, and the choice between tables.
//
// Every file of units/ holds one operation and is compiled once for each instruction set, with
// SEQREC_ISA (the namespace) and SEQREC_LANES (floats a register) defined by the build.
#pragma once

#include <string>
#include <vector>

#include "kernels/attention_types.h"
#include "kernels/cross_entropy_types.h"
#include "kernels/decode_types.h"
#include "kernels/dropout_types.h"
#include "kernels/embedding_types.h"
#include "kernels/feed_forward_types.h"
#include "kernels/hstu_attention_types.h"
#include "kernels/layer_norm_types.h"
#include "kernels/linear_types.h"
#include "kernels/peak_types.h"
#include "kernels/recurrent_backward_types.h"
#include "kernels/recurrent_types.h"
#include "kernels/sequence_input_types.h"
#include "kernels/topk_types.h"

/// Every operation: the struct of its functions and its name. A unit defines `NAME_kernels`.
#define SEQREC_OPERATIONS(X)                      \
  X(AttentionKernels, attention)                  \
  X(CrossEntropyKernels, cross_entropy)           \
  X(DecodeKernels, decode)                        \
  X(DropoutKernels, dropout)                      \
  X(EmbeddingKernels, embedding)                  \
  X(FeedForwardKernels, feed_forward)             \
  X(HstuAttentionKernels, hstu_attention)         \
  X(LayerNormKernels, layer_norm)                 \
  X(LinearKernels, linear)                        \
  X(PeakKernels, peak)                            \
  X(RecurrentKernels, recurrent)                  \
  X(RecurrentBackwardKernels, recurrent_backward) \
  X(SequenceInputKernels, sequence_input)         \
  X(TopkKernels, topk)

namespace seqrec {

struct KernelTable {
  const char* name;  // "baseline", "avx2" or "avx512"
  int lanes;         // floats in one vector register

#define SEQREC_MEMBER(type, operation) const type* operation;
  SEQREC_OPERATIONS(SEQREC_MEMBER)
#undef SEQREC_MEMBER
};

#define SEQREC_DECLARE_KERNELS(type, operation) extern const type operation##_kernels;
#define SEQREC_ADDRESS_OF_KERNELS(type, operation) , &operation##_kernels

/// Makes `isa::table` out of what the units compiled for the namespace `isa` define.
#define SEQREC_KERNEL_TABLE(isa, name, lanes)                                                  \
  namespace isa {                                                                              \
  SEQREC_OPERATIONS(SEQREC_DECLARE_KERNELS)                                                    \
  static const KernelTable table = {name, lanes SEQREC_OPERATIONS(SEQREC_ADDRESS_OF_KERNELS)}; \
  }

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

/// Makes kernels() return kernels_of(name) from now on: how tests reach every instruction set.
void use_isa(const std::string& name);

}  // namespace seqrec
