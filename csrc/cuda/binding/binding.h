// SPDX-License-Identifier: Apache-2.0
// What the files of the module seqrec_fast._cuda share: tensors and streams arrive as integers, and
// seqrec_fast.ops.cuda has checked what they are.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>

#include "cuda/launch.h"
#include "cuda/numbers.h"

namespace py = pybind11;

namespace seqrec {
namespace cuda {

using Address = std::uintptr_t;

/// Device memory; null for 0.
template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

/// The stream of the caller; 0 is the default stream.
inline cudaStream_t stream_at(Address address) { return reinterpret_cast<cudaStream_t>(address); }

inline std::int64_t element_bytes(Number number) { return number == Number::kFloat32 ? 4 : 2; }

}  // namespace cuda
}  // namespace seqrec
