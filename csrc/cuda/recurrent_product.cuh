// SPDX-License-Identifier: Apache-2.0
// The product of the recurrent weights with the states (or gate gradients) of a few rows, with the
// weights resident.
//
// A warp owns 16 hidden units and multiplies with G matrices A_g [16 units, hidden]: forward the
// rows of W_hh of these units, backward their columns. Of the result, tiles of 16 units x 8 slots,
// a thread holds units 2r and 2r + 1 for slots 2c and 2c + 1 (r = lane / 4, c = lane % 4): for all
// gates, so that it can turn the sums of a unit into its new state without asking anybody.
//
// That is how a matrix instruction m16n8 leaves its result, with rows r and r + 8 of it read as
// units 2r and 2r + 1, which lie together in memory. Depth is permuted in the same way, so that the
// operand of a thread is one load of 8 bytes: for 16-bit numbers its places 2c, 2c + 1, 2c + 8,
// 2c + 9 stand for depth 4c to 4c + 3; for tf32 c and c + 4 for 2c and 2c + 1.
//
// Weights lie as fragments: what a lane needs of one gate and step is 16 bytes, or a line of the
// multiply-add form. A warp reads only what it wrote, so that no barrier is needed for them.
#pragma once

#include "cuda/device.cuh"
#include "cuda/recurrent_plan.h"

namespace seqrec {
namespace cuda {

template <RecurrentMath M>
struct RecurrentNumber {
  using Type = float;
};
template <>
struct RecurrentNumber<RecurrentMath::kFloat16> {
  using Type = Half;
};
template <>
struct RecurrentNumber<RecurrentMath::kBfloat16> {
  using Type = BFloat16;
};

/// Two numbers next to one another: those of the two units of a thread.
template <typename T>
struct alignas(2 * sizeof(T)) Two {
  T a, b;
};

/// The matrices A_g as they lie in memory: forward W_hh, backward its transpose.
template <typename T>
struct RecurrentMatrix {
  const T* weights;
  int hidden;
  int row_step;            // elements between two units
  std::int64_t gate_step;  // between two gates

  __device__ RecurrentMatrix(const void* from, int hidden_, int gates, bool back)
      : weights(static_cast<const T*>(from)),
        hidden(hidden_),
        row_step(back ? gates * hidden_ : hidden_),
        gate_step(back ? hidden_ : std::int64_t{hidden_} * hidden_) {}

  __device__ const T* place(int gate, int unit, int depth) const {
    return weights + gate * gate_step + std::int64_t{unit} * row_step + depth;
  }

  __device__ T at(int gate, int unit, int depth) const {
    if (unit >= hidden || depth >= hidden) return from_float<T>(0.0f);
    return load_readonly(place(gate, unit, depth));
  }

  /// 8 bytes from `depth` on, where rows are a multiple of that long.
  __device__ uint2 line(int gate, int unit, int depth) const {
    if (unit >= hidden || depth >= hidden) return uint2{0, 0};
    return load_readonly(reinterpret_cast<const uint2*>(place(gate, unit, depth)));
  }
};

/// Fragments of the matrix instructions.
template <RecurrentMath M, int G, bool Back>
class RecurrentProduct {
 public:
  using T = typename RecurrentNumber<M>::Type;
  static constexpr int kDepth = recurrent_tile_depth(M);
  static constexpr int kHeld = recurrent_held_tiles(M, G, Back);

  /// `shared` and `streamed`: where this warp keeps what does not fit the registers.
  __device__ void load(const RecurrentMatrix<T>& matrix, const RecurrentPlan& plan, int unit,
                       unsigned char* shared, unsigned char* streamed) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    shared_ = reinterpret_cast<uint4*>(shared) + lane;
    streamed_ = reinterpret_cast<uint4*>(streamed) + lane;
    const int u = unit + lane / 4 * 2, k = lane % 4 * kLine;
    if (matrix.hidden % kLine == 0) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
#pragma unroll
        for (int g = 0; g < G; ++g) held_[i][g] = fragment(matrix, g, u, k + i * kDepth);
      }
      spread<true>(matrix, plan, u, k);
    } else {
      // rare, so that it is to be short rather than fast
#pragma unroll 1
      for (int at = 0; at < kHeld * G; ++at) {
        const uint4 found = odd_fragment(matrix, at % G, u, k + at / G * kDepth);
#pragma unroll
        for (int i = 0; i < kHeld * G; ++i) {
          if (i == at) held_[i / G][i % G] = found;
        }
      }
      spread<false>(matrix, plan, u, k);
    }
  }

  /// sums[chain][n][unit * 2 + slot]: overwritten. `operand`: [slots][tile_stride]; `second`:
  /// whether slots 8 to 15 are at work.
  __device__ void run(const RecurrentPlan& plan, const T* operand, bool second,
                      float (&sums)[G][2][4]) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    // where there are fewer than eight slots, the columns beyond repeat the last one
    const int slot = lane / 4 < plan.slots ? lane / 4 : plan.slots - 1;
    const T* place = operand + slot * plan.tile_stride + lane % 4 * kLine;
    const int eight = 8 * plan.tile_stride;
#pragma unroll
    for (int g = 0; g < G; ++g) {
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[g][i / 4][i % 4] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (i < plan.tiles) step(held_[i], place + i * kDepth, eight, plan.part_stride, second, sums);
    }
    place += kHeld * kDepth;
    for (int i = 0; i < plan.shared_tiles; ++i, place += kDepth) {
      uint4 weights[G];
#pragma unroll
      for (int g = 0; g < G; ++g) weights[g] = shared_[(i * G + g) * 32];
      step(weights, place, eight, plan.part_stride, second, sums);
    }
    for (int i = 0; i < plan.streamed_tiles; ++i, place += kDepth) {
      uint4 weights[G];
#pragma unroll
      for (int g = 0; g < G; ++g) weights[g] = load_shared_by_blocks(streamed_ + (std::int64_t{i} * G + g) * 32);
      step(weights, place, eight, plan.part_stride, second, sums);
    }
  }

 private:
  static constexpr int kLine = 8 / static_cast<int>(sizeof(T));  // depth that a lane has of a tile

  template <bool Whole>
  __device__ void spread(const RecurrentMatrix<T>& matrix, const RecurrentPlan& plan, int u,
                         int k) {
    const int tiles = plan.shared_tiles + plan.streamed_tiles;
#pragma unroll 2
    for (int i = 0; i < tiles; ++i) {
      uint4* to = i < plan.shared_tiles
                      ? shared_ + i * G * 32
                      : streamed_ + std::int64_t{i - plan.shared_tiles} * G * 32;
      for (int g = 0; g < G; ++g) {
        const int depth = k + (kHeld + i) * kDepth;
        to[g * 32] = Whole ? fragment(matrix, g, u, depth) : odd_fragment(matrix, g, u, depth);
      }
    }
  }

  static __device__ uint4 fragment(const RecurrentMatrix<T>& matrix, int gate, int unit,
                                   int depth) {
    return arrange(matrix.line(gate, unit, depth), matrix.line(gate, unit + 1, depth));
  }

  static __device__ uint4 odd_fragment(const RecurrentMatrix<T>& matrix, int gate, int unit,
                                       int depth) {
    uint2 lines[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      T line[kLine];
#pragma unroll
      for (int i = 0; i < kLine; ++i) line[i] = matrix.at(gate, unit + j, depth + i);
      memcpy(&lines[j], line, sizeof line);
    }
    return arrange(lines[0], lines[1]);
  }

  /// Rows of the instruction by turns, lower depth first.
  static __device__ uint4 arrange(uint2 even, uint2 odd) {
    if constexpr (M == RecurrentMath::kTf32) {
      return uint4{rounded(even.x), rounded(odd.x), rounded(even.y), rounded(odd.y)};
    } else {
      return uint4{even.x, odd.x, even.y, odd.y};
    }
  }

  static __device__ unsigned rounded(unsigned bits) { return to_tf32(__uint_as_float(bits)); }

  static __device__ uint2 read(const T* place) {
    uint2 found = *reinterpret_cast<const uint2*>(place);
    if constexpr (M == RecurrentMath::kTf32) {
      found = uint2{rounded(found.x), rounded(found.y)};
    }
    return found;
  }

  static __device__ void multiply(const uint4& weights, uint2 states, float (&sums)[4]) {
    const unsigned a[4] = {weights.x, weights.y, weights.z, weights.w};
    const unsigned b[2] = {states.x, states.y};
    if constexpr (M == RecurrentMath::kTf32) {
      mma_m16n8k8_tf32(sums, a, b);
    } else {
      mma_m16n8k16<T>(sums, a, b);
    }
  }

  static __device__ void step(const uint4 (&weights)[G], const T* place, int eight, int part,
                              bool second, float (&sums)[G][2][4]) {
    uint2 states = read(place);
#pragma unroll
    for (int g = 0; g < G; ++g) {
      if (Back && g > 0) states = read(place + g * part);
      multiply(weights[g], states, sums[g][0]);
    }
    if (!second) return;
    states = read(place + eight);
#pragma unroll
    for (int g = 0; g < G; ++g) {
      if (Back && g > 0) states = read(place + eight + g * part);
      multiply(weights[g], states, sums[g][1]);
    }
  }

  uint4 held_[kHeld][G];
  uint4* shared_;
  uint4* streamed_;
};

/// float32 by multiply-adds: no matrix instruction is as exact. A step is four deep; its weights
/// lie as [depth][unit parity][r][gate], and four lanes read each of them.
template <int G, bool Back>
class RecurrentProduct<RecurrentMath::kFloat32, G, Back> {
 public:
  using T = float;
  static constexpr int kDepth = recurrent_tile_depth(RecurrentMath::kFloat32);
  static constexpr int kTile = kDepth * kRecurrentUnits * G;

  __device__ void load(const RecurrentMatrix<float>& matrix, const RecurrentPlan& plan,
                       int unit, unsigned char* shared, unsigned char* streamed) {
    const int lane = static_cast<int>(threadIdx.x) % 32, r = lane / 4, c = lane % 4;
    shared_ = reinterpret_cast<float*>(shared);
    streamed_ = reinterpret_cast<float*>(streamed);
    for (int i = 0; i < plan.shared_tiles + plan.streamed_tiles; ++i) {
      float* tile = i < plan.shared_tiles
                        ? shared_ + i * kTile
                        : streamed_ + std::int64_t{i - plan.shared_tiles} * kTile;
      for (int j = 0; j < 2; ++j) {
        for (int g = 0; g < G; ++g) {
          tile[((c * 2 + j) * 8 + r) * G + g] = matrix.at(g, unit + 2 * r + j, i * kDepth + c);
        }
      }
    }
    __syncwarp();
  }

  __device__ void run(const RecurrentPlan& plan, const float* operand, bool second,
                      float (&sums)[G][2][4]) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int r = lane / 4, slot = lane % 4 * 2, most = plan.slots - 1;
    const float* first = operand + (slot < most ? slot : most) * plan.tile_stride;
    const int next = slot < most ? plan.tile_stride : 0;
#pragma unroll
    for (int g = 0; g < G; ++g) {
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[g][i / 4][i % 4] = 0.0f;
    }
    for (int i = 0; i < plan.shared_tiles; ++i, first += kDepth) {
      step(shared_ + i * kTile + r * G, first, next, plan, second, sums);
    }
    for (int i = 0; i < plan.streamed_tiles; ++i, first += kDepth) {
      step(streamed_ + std::int64_t{i} * kTile + r * G, first, next, plan, second, sums);
    }
  }

 private:
  static __device__ void step(const float* weights, const float* first, int next,
                              const RecurrentPlan& plan, bool second,
                              float (&sums)[G][2][4]) {
    add<0>(weights, first, next, plan.part_stride, sums);
    if (second) add<1>(weights, first + 8 * plan.tile_stride, next, plan.part_stride, sums);
  }

  template <int N>
  static __device__ void add(const float* weights, const float* first, int next, int part,
                             float (&sums)[G][2][4]) {
    constexpr int kParts = Back ? G : 1;
    float4 states[kParts][2];
#pragma unroll
    for (int g = 0; g < kParts; ++g) {
      states[g][0] = *reinterpret_cast<const float4*>(first + g * part);
      states[g][1] = *reinterpret_cast<const float4*>(first + g * part + next);
    }
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float w[G];
        read(weights + (k * 2 + j) * 8 * G, w);
#pragma unroll
        for (int g = 0; g < G; ++g) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float4& s = states[Back ? g : 0][i];
            const float h = k == 0 ? s.x : k == 1 ? s.y : k == 2 ? s.z : s.w;
            float& sum = sums[g][N][j * 2 + i];
            sum = fmaf(w[g], h, sum);
          }
        }
      }
    }
  }

  static __device__ void read(const float* from, float (&to)[G]) {
    if constexpr (G == 4) {
      const float4 four = *reinterpret_cast<const float4*>(from);
      to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
    } else {
#pragma unroll
      for (int g = 0; g < G; ++g) to[g] = from[g];
    }
  }

  float* shared_;
  float* streamed_;
};

}  // namespace cuda
}  // namespace seqrec
