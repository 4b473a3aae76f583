// SPDX-License-Identifier: Apache-2.0
// What the kernels of linear + cross-entropy are given: plain pointers, no functions.
#pragma once

#include <cstdint>

namespace seqrec {

/// Items that are worked on at once, and the multiple that rows of tokens are padded to.
inline constexpr std::int64_t kCrossEntropyItems = 192;
inline constexpr std::int64_t kCrossEntropyTokens = 12;

/// Exponentials are kept times 2^-56: half of the range of float32 lies on each side of a token's
/// reference, so that a logit may exceed it by far.
inline constexpr int kCrossEntropyShift = 56;

/// A block of kCrossEntropyItems items, packed. Missing items have weight 0 and bias -inf.
struct CrossEntropyBlock {
  float* rows;    // [items, padded dim], columns beyond dim are 0
  float* panels;  // the same transposed: [items / panel][padded dim][panel]
  float* bias;    // [items]
};

/// Tokens are rows [tokens, padded dim], `tokens` a multiple of kCrossEntropyTokens; exponentials
/// of a block are rows [tokens, kCrossEntropyItems]. All of it is aligned to cache lines.
struct CrossEntropyKernels {
  /// `dim` rounded up to whole vectors.
  std::int64_t (*padded_dim)(std::int64_t dim);

  /// Packs `count` rows of `weight` [items, dim] and of `bias` (or null): from `first` on, or those
  /// that `ids` names from ids[first] on, which `bias` is then parallel to.
  void (*pack_items)(const float* weight, const float* bias, const std::int64_t* ids,
                     std::int64_t first, std::int64_t count, std::int64_t dim,
                     const CrossEntropyBlock& block);

  /// A row against an item, its terms added in the same order as in the two below.
  float (*logit)(const float* token, const float* item, float bias, std::int64_t dim);

  /// out[i, j] = 2^-56 exp(logit - reference[i]); sums[i] = their sum over the block. The exponent
  /// is held between -47 and 120; items whose bias is -inf get 0.
  void (*exponentials)(const float* tokens, const float* reference, std::int64_t num_tokens,
                       std::int64_t dim, const CrossEntropyBlock& block, float* out, float* sums);

  /// largest[i] = max(largest[i], all logits of the block); NaN where one is NaN.
  void (*maxima)(const float* tokens, std::int64_t num_tokens, std::int64_t dim,
                 const CrossEntropyBlock& block, float* largest);

  /// out[i, :] += sum over items of exponentials[i, j] rows[j, :].
  void (*add_token_gradient)(const float* exponentials, const CrossEntropyBlock& block,
                             std::int64_t num_tokens, std::int64_t dim, float* out);

  /// out[j, :] += sum over tokens of exponentials[i, j] tokens[i, :]; out is [items, padded dim].
  /// `next`: as many exponentials, fetched meanwhile for the next call; or null.
  void (*add_item_gradient)(const float* exponentials, const float* next, const float* tokens,
                            std::int64_t num_tokens, std::int64_t dim, float* out);

  /// out[j] += sum over tokens of exponentials[i, j] factors[i].
  void (*add_bias_gradient)(const float* exponentials, const float* factors,
                            std::int64_t num_tokens, float* out);
};

}  // namespace seqrec
