// SPDX-License-Identifier: Apache-2.0
// The stream of the caller, for headers that binding files read too.
#pragma once

#ifdef SEQREC_CUDA_SHIM
#include "cuda/shim/runtime.h"
#else
#include <cuda_runtime_api.h>
#endif
