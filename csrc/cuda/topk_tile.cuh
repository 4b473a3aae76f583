// SPDX-License-Identifier: Apache-2.0
// Products of a tile of items and a tile of queries: a chunk of dimensions at a time, from shared
// memory into registers.
//
// A warp takes 32 items and all queries of the block. Rows lie a multiple of 64 bytes and 16 more
// apart, so that what a warp loads at once comes from different banks. Each score is one sum in
// ascending order of the dimensions, whatever the other queries are and however the items are cut.
#pragma once

#include "cuda/device.cuh"
#include "cuda/topk.h"

namespace seqrec {
namespace cuda {

inline constexpr int kTopkStageRow = kTopkChunk + 16;

/// The numbers of each type, and whether they are rounded to tf32.
template <TopkType kType>
struct TopkNumbers;
template <>
struct TopkNumbers<TopkType::kFloat> {
  using T = float;
};
template <>
struct TopkNumbers<TopkType::kTf32> {
  using T = float;
};
template <>
struct TopkNumbers<TopkType::kHalf> {
  using T = Half;
};
template <>
struct TopkNumbers<TopkType::kBFloat16> {
  using T = BFloat16;
};

/// Scores of 32 items and kQueries queries in the registers of a warp, by the tensor cores.
///
/// Items are the rows of the left factor, queries the columns of the right one; a 32-bit word of
/// shared memory is two 16-bit numbers or one tf32, and the words of a fragment lie alike.
template <TopkType kType, int kQueries>
struct TopkTile {
  static constexpr int kColumns = kQueries / 8;
  float sums[2][kColumns][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
      }
    }
  }

  static __device__ __forceinline__ unsigned word(const unsigned char* row, int at) {
    const unsigned found = reinterpret_cast<const unsigned*>(row)[at];
    if constexpr (kType == TopkType::kTf32) return to_tf32(__uint_as_float(found));
    return found;
  }

  /// Adds the products of one chunk. `items` is the chunk of the tile's first item, `queries` that
  /// of the block's first query, whose rows lie `query_row` bytes apart.
  __device__ __forceinline__ void multiply(const unsigned char* items, const unsigned char* queries,
                                           int query_row) {
    const int lane = threadIdx.x % 32, group = lane / 4, at = lane % 4;
    const unsigned char* left = items + (threadIdx.x / 32 * 32 + group) * kTopkStageRow;
    const unsigned char* right = queries + group * query_row;
    // not unrolled: the fragments of two steps at once would cost a third of the blocks, or spills
#pragma unroll 1
    for (int first = 0; first < kTopkChunk / 4; first += 8) {  // words
      unsigned a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const unsigned char *upper = left + 16 * m * kTopkStageRow,
                            *lower = upper + 8 * kTopkStageRow;
        a[m][0] = word(upper, first + at);
        a[m][1] = word(lower, first + at);
        a[m][2] = word(upper, first + at + 4);
        a[m][3] = word(lower, first + at + 4);
      }
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        const unsigned char* column = right + 8 * n * query_row;
        const unsigned b[2] = {word(column, first + at), word(column, first + at + 4)};
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          if constexpr (kType == TopkType::kTf32) {
            mma_m16n8k8_tf32(sums[m][n], a[m], b);
          } else {
            mma_m16n8k16<typename TopkNumbers<kType>::T>(sums[m][n], a[m], b);
          }
        }
      }
    }
  }

  static constexpr int kItemsOfThread = 4;
  static constexpr int kQueriesOfThread = 2 * kColumns;

  static __device__ __forceinline__ int item(int i) {
    return threadIdx.x / 32 * 32 + threadIdx.x % 32 / 4 + 8 * i;
  }
  static __device__ __forceinline__ int query(int j) {
    return 8 * (j / 2) + threadIdx.x % 4 * 2 + j % 2;
  }
  __device__ __forceinline__ float sum(int i, int j) const {
    return sums[i / 2][j / 2][i % 2 * 2 + j % 2];
  }
};

/// The same by fused multiply-adds in float32: a thread takes 8 items and an eighth of the queries.
template <int kQueries>
struct TopkTile<TopkType::kFloat, kQueries> {
  static constexpr int kItemsOfThread = 8;
  static constexpr int kQueriesOfThread = kQueries / 8;
  float sums[kItemsOfThread][kQueriesOfThread];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kItemsOfThread; ++i) {
#pragma unroll
      for (int j = 0; j < kQueriesOfThread; ++j) sums[i][j] = 0.0f;
    }
  }

  __device__ __forceinline__ void multiply(const unsigned char* items, const unsigned char* queries,
                                           int query_row) {
    const unsigned char* left = items + item(0) * kTopkStageRow;
    const unsigned char* right = queries + query(0) * query_row;
    // one piece at a time: the next one's loads would need registers that there are not
#pragma unroll 1
    for (int first = 0; first < kTopkChunk; first += 16) {
      float4 a[kItemsOfThread];
#pragma unroll
      for (int i = 0; i < kItemsOfThread; ++i) {
        a[i] = *reinterpret_cast<const float4*>(left + 4 * i * kTopkStageRow + first);
      }
#pragma unroll
      for (int j = 0; j < kQueriesOfThread; ++j) {
        const float4 b = *reinterpret_cast<const float4*>(right + 8 * j * query_row + first);
#pragma unroll
        for (int i = 0; i < kItemsOfThread; ++i) {
          sums[i][j] = fmaf(a[i].x, b.x, sums[i][j]);
          sums[i][j] = fmaf(a[i].y, b.y, sums[i][j]);
          sums[i][j] = fmaf(a[i].z, b.z, sums[i][j]);
          sums[i][j] = fmaf(a[i].w, b.w, sums[i][j]);
        }
      }
    }
  }

  static __device__ __forceinline__ int item(int i) {
    return threadIdx.x / 32 * 32 + threadIdx.x % 4 + 4 * i;
  }
  static __device__ __forceinline__ int query(int j) { return threadIdx.x % 32 / 4 + 8 * j; }
  __device__ __forceinline__ float sum(int i, int j) const { return sums[i][j]; }
};

}  // namespace cuda
}  // namespace seqrec
