// SPDX-License-Identifier: Apache-2.0
#include "kernels/embedding.h"

namespace seqrec {
namespace SEQREC_ISA {

extern const EmbeddingKernels embedding_kernels;
const EmbeddingKernels embedding_kernels = {
    &Embedding<SEQREC_LANES>::gather,
    &Embedding<SEQREC_LANES>::scatter,
};

}  // namespace SEQREC_ISA
}  // namespace seqrec
