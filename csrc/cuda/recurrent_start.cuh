// SPDX-License-Identifier: Apache-2.0
// Starts the instance of a recurrent kernel that a plan asks for, forward or backward.
#pragma once

#include "cuda/launch.h"
#include "cuda/recurrent.h"

namespace seqrec {
namespace cuda {

template <template <RecurrentCell, RecurrentMath> class Kernel, RecurrentCell C, typename Layer>
void start_recurrent_of(const Layer& layer, cudaStream_t stream) {
  switch (layer.plan.math) {
    case RecurrentMath::kFloat32:
      return Kernel<C, RecurrentMath::kFloat32>::start(layer, stream);
    case RecurrentMath::kTf32:
      return Kernel<C, RecurrentMath::kTf32>::start(layer, stream);
    case RecurrentMath::kFloat16:
      return Kernel<C, RecurrentMath::kFloat16>::start(layer, stream);
    case RecurrentMath::kBfloat16:
      return Kernel<C, RecurrentMath::kBfloat16>::start(layer, stream);
  }
}

/// `Kernel<C, M>::start` launches the instance of a cell and an arithmetic; nothing without rows.
template <template <RecurrentCell, RecurrentMath> class Kernel, typename Layer>
void start_recurrent(const Layer& layer, cudaStream_t stream) {
  if (layer.batch.rows == 0) return;
  switch (layer.plan.cell) {
    case RecurrentCell::kRnn:
      return start_recurrent_of<Kernel, RecurrentCell::kRnn>(layer, stream);
    case RecurrentCell::kLstm:
      return start_recurrent_of<Kernel, RecurrentCell::kLstm>(layer, stream);
    case RecurrentCell::kGru:
      return start_recurrent_of<Kernel, RecurrentCell::kGru>(layer, stream);
  }
}

}  // namespace cuda
}  // namespace seqrec
