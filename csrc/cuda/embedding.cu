// SPDX-License-Identifier: Apache-2.0
// A gather moves its bytes once: a thread takes 16 of them, a block some dozen tokens, whose places
// in their rows are found first, side by side. Gradients are summed in float32 whatever their type.
#include "cuda/device.cuh"
#include "cuda/dropout.cuh"
#include "cuda/embedding.h"

namespace seqrec {
namespace cuda {
namespace {

template <typename T, int kVector>
struct alignas(sizeof(T) * kVector) Pack {
  T v[kVector];
};

/// The place of a token in its row.
SEQREC_DEVICE std::int64_t place_of(const EmbeddingTokens& b, std::int64_t token) {
  std::int64_t low = 0, high = b.rows;  // the last row that begins at or before the token
  while (low < high) {
    const std::int64_t middle = (low + high + 1) / 2;
    if (load_readonly(b.offsets + middle) <= token) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return token - load_readonly(b.offsets + low);
}

template <typename T, int kVector>
__global__ void __launch_bounds__(EmbeddingPlan::kThreads)
    embedding_gather(EmbeddingTokens b, int tile, const T* table, const T* position_table, T* out) {
  SEQREC_SHARED(memory);
  std::int64_t* ids = reinterpret_cast<std::int64_t*>(memory);
  std::int64_t* places = ids + tile;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * tile;
  const std::int64_t rest = b.tokens - first;
  const int count = static_cast<int>(rest < tile ? rest : tile);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    ids[i] = load_readonly(b.ids + first + i);
    places[i] = position_table != nullptr ? place_of(b, first + i) : 0;
  }
  __syncthreads();
  const std::uint64_t seed = seed_of(b.dropout);
  const int pieces = static_cast<int>(b.dim / kVector);
  for (int i = static_cast<int>(threadIdx.x); i < count * pieces;
       i += static_cast<int>(blockDim.x)) {
    const int token = i / pieces, column = (i - token * pieces) * kVector;
    const std::int64_t id = ids[token], place = places[token];
    const bool known = id >= 0 && id < b.items &&
                       (position_table == nullptr || (place >= 0 && place < b.positions));
    float x[kVector];
    if (known) {
      const auto row =
          load_readonly(reinterpret_cast<const Pack<T, kVector>*>(table + id * b.dim + column));
#pragma unroll
      for (int j = 0; j < kVector; ++j) x[j] = to_float(row.v[j]);
      if (position_table != nullptr) {
        const auto other = load_readonly(
            reinterpret_cast<const Pack<T, kVector>*>(position_table + place * b.dim + column));
#pragma unroll
        for (int j = 0; j < kVector; ++j) x[j] += to_float(other.v[j]);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kVector; ++j) x[j] = __int_as_float(0x7FC00000);
    }
    if (b.dropout.threshold > 0) {
      const DropoutRow drop(b.dropout, seed, first + token);
#pragma unroll
      for (int j = 0; j < kVector; ++j) x[j] *= drop.factor(column + j);
    }
    Pack<T, kVector> made;
#pragma unroll
    for (int j = 0; j < kVector; ++j) made.v[j] = from_float<T>(x[j]);
    store_global(reinterpret_cast<Pack<T, kVector>*>(out + (first + token) * b.dim + column), made);
  }
}

/// The gradient of an element as it reaches the table.
template <typename T>
SEQREC_DEVICE float arriving(const EmbeddingTokens& b, const T* gradient, std::uint64_t seed,
                             std::int64_t token, std::int64_t column) {
  const float g = to_float(load_readonly(gradient + token * b.dim + column));
  if (b.dropout.threshold == 0) return g;
  return g * DropoutRow(b.dropout, seed, token).factor(column);
}

__global__ void __launch_bounds__(EmbeddingPlan::kThreads)
    embedding_scatter_atomic(EmbeddingTokens b, int tile, const float* gradient, float* d_table) {
  const std::uint64_t seed = seed_of(b.dropout);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * tile;
  const std::int64_t rest = b.tokens - first;
  const int count = static_cast<int>(rest < tile ? rest : tile), dim = static_cast<int>(b.dim);
  for (int i = static_cast<int>(threadIdx.x); i < count * dim; i += static_cast<int>(blockDim.x)) {
    const int token = i / dim, column = i - token * dim;
    const std::int64_t id = load_readonly(b.ids + first + token);
    if (id < 0 || id >= b.items) continue;
    atomicAdd(d_table + id * b.dim + column, arriving(b, gradient, seed, first + token, column));
  }
}

/// Sums kEmbeddingRun neighbours in the order of ids. An id whose tokens all lie here is written;
/// what reaches over the edges goes to `parts` [runs, 2, dim]: the sum that an earlier block began,
/// and the one that this block begins and a later one ends.
template <typename T>
__global__ void __launch_bounds__(256)
    embedding_scatter_runs(EmbeddingTokens b, const T* gradient, const std::int64_t* sorted_ids,
                           const std::int64_t* sorted_tokens, T* d_table, float* parts) {
  SEQREC_SHARED(memory);
  // the neighbours on both sides too
  std::int64_t* ids = reinterpret_cast<std::int64_t*>(memory) + 1;
  std::int64_t* tokens = ids + kEmbeddingRun + 1;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kEmbeddingRun;
  const std::int64_t rest = b.tokens - first;
  const int count = static_cast<int>(rest < kEmbeddingRun ? rest : kEmbeddingRun);
  for (int i = static_cast<int>(threadIdx.x) - 1; i <= count; i += static_cast<int>(blockDim.x)) {
    const bool inside = first + i >= 0 && first + i < b.tokens;
    ids[i] = inside ? load_readonly(sorted_ids + first + i) : -1;
    if (i >= 0 && i < count) tokens[i] = load_readonly(sorted_tokens + first + i);
  }
  __syncthreads();
  const std::uint64_t seed = seed_of(b.dropout);
  for (std::int64_t c = threadIdx.x; c < b.dim; c += blockDim.x) {
    float sum = 0.0f;
    bool begun_here = ids[-1] != ids[0];
    for (int i = 0; i < count; ++i) {
      sum += arriving(b, gradient, seed, tokens[i], c);
      const bool ends = ids[i + 1] != ids[i];
      if (!ends && i + 1 < count) continue;
      if (ids[i] >= 0 && ids[i] < b.items) {
        if (begun_here && ends) {
          store_global(d_table + ids[i] * b.dim + c, from_float<T>(sum));
        } else {
          const std::int64_t part =
              2 * static_cast<std::int64_t>(blockIdx.x) + (begun_here ? 1 : 0);
          store_global(parts + part * b.dim + c, sum);
        }
      }
      sum = 0.0f;
      begun_here = true;
    }
  }
}

/// Joins the sums that reach over the edges of blocks, each at the block that begins it.
template <typename T>
__global__ void __launch_bounds__(256)
    embedding_scatter_join(EmbeddingTokens b, const std::int64_t* sorted_ids, const float* parts,
                           T* d_table) {
  const std::int64_t run = blockIdx.x, runs = gridDim.x, first = run * kEmbeddingRun;
  const std::int64_t end = first + kEmbeddingRun;
  if (end >= b.tokens) return;  // the whole block: nothing comes behind it
  const std::int64_t id = load_readonly(sorted_ids + end - 1);
  const bool goes_on = load_readonly(sorted_ids + end) == id;
  const bool begins = load_readonly(sorted_ids + first) != id || first == 0 ||
                      load_readonly(sorted_ids + first - 1) != id;
  if (!goes_on || !begins || id < 0 || id >= b.items) return;
  for (std::int64_t c = threadIdx.x; c < b.dim; c += blockDim.x) {
    float sum = load_readonly(parts + (2 * run + 1) * b.dim + c);
    for (std::int64_t r = run + 1; r < runs && load_readonly(sorted_ids + r * kEmbeddingRun) == id;
         ++r) {
      sum += load_readonly(parts + 2 * r * b.dim + c);
    }
    store_global(d_table + id * b.dim + c, from_float<T>(sum));
  }
}

/// The sums of a position over a share of the rows: to `parts` [splits, positions, dim], or where
/// there is one share to `d_positions`.
template <typename T>
__global__ void __launch_bounds__(256)
    embedding_positions_sum(EmbeddingTokens b, const T* gradient, float* parts, T* d_positions) {
  const std::int64_t position = blockIdx.x, share = blockIdx.y, shares = gridDim.y;
  const std::int64_t begin = b.rows * share / shares, end = b.rows * (share + 1) / shares;
  const std::uint64_t seed = seed_of(b.dropout);
  for (std::int64_t c = threadIdx.x; c < b.dim; c += blockDim.x) {
    float sum = 0.0f;
    std::int64_t at = load_readonly(b.offsets + begin);
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t next = load_readonly(b.offsets + row + 1);
      const std::int64_t token = at + position;
      // whatever the offsets say, no token is read that does not exist
      if (token < next && token >= 0 && token < b.tokens) {
        sum += arriving(b, gradient, seed, token, c);
      }
      at = next;
    }
    if (shares == 1) {
      store_global(d_positions + position * b.dim + c, from_float<T>(sum));
    } else {
      store_global(parts + (share * b.positions + position) * b.dim + c, sum);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(256)
    embedding_positions_join(EmbeddingTokens b, int shares, const float* parts, T* d_positions) {
  const std::int64_t position = blockIdx.x;
  for (std::int64_t c = threadIdx.x; c < b.dim; c += blockDim.x) {
    float sum = 0.0f;
    for (int share = 0; share < shares; ++share) {
      sum += load_readonly(parts + (share * b.positions + position) * b.dim + c);
    }
    store_global(d_positions + position * b.dim + c, from_float<T>(sum));
  }
}

dim3 blocks(std::int64_t count) { return dim3(static_cast<unsigned>(count)); }

template <typename T, int kVector>
void gather(const EmbeddingGather& p, cudaStream_t stream) {
  const std::size_t shared = 2 * sizeof(std::int64_t) * static_cast<std::size_t>(p.plan.tile);
  launch(embedding_gather<T, kVector>, blocks(p.plan.tiles), EmbeddingPlan::kThreads, shared,
         stream, p.batch, p.plan.tile, static_cast<const T*>(p.table),
         static_cast<const T*>(p.position_table), static_cast<T*>(p.out));
}

template <typename T>
void scatter(const EmbeddingScatter& p, cudaStream_t stream) {
  const auto* gradient = static_cast<const T*>(p.gradient);
  auto* d_table = static_cast<T*>(p.d_table);
  const unsigned threads = static_cast<unsigned>(p.plan.columns);
  constexpr std::size_t kShared = (2 * kEmbeddingRun + 2) * sizeof(std::int64_t);
  launch(embedding_scatter_runs<T>, blocks(p.plan.runs), threads, kShared, stream, p.batch,
         gradient, p.sorted_ids, p.sorted_tokens, d_table, p.scratch);
  launch(embedding_scatter_join<T>, blocks(p.plan.runs), threads, 0, stream, p.batch, p.sorted_ids,
         p.scratch, d_table);
}

template <typename T>
void positions(const EmbeddingScatter& p, cudaStream_t stream) {
  auto* d_positions = static_cast<T*>(p.d_positions);
  const unsigned threads = static_cast<unsigned>(p.plan.columns);
  const dim3 grid(static_cast<unsigned>(p.batch.positions), static_cast<unsigned>(p.plan.splits));
  launch(embedding_positions_sum<T>, grid, threads, 0, stream, p.batch,
         static_cast<const T*>(p.gradient), p.scratch, d_positions);
  if (p.plan.splits == 1) return;
  launch(embedding_positions_join<T>, blocks(p.batch.positions), threads, 0, stream, p.batch,
         p.plan.splits, p.scratch, d_positions);
}

}  // namespace

void launch_embedding_gather(const EmbeddingGather& p, Number number, cudaStream_t stream) {
  if (p.batch.tokens == 0 || p.batch.dim == 0) return;
  switch (number) {
    case Number::kFloat32:
      return p.plan.vector > 1 ? gather<float, 4>(p, stream) : gather<float, 1>(p, stream);
    case Number::kHalf:
      return p.plan.vector > 1 ? gather<Half, 8>(p, stream) : gather<Half, 1>(p, stream);
    case Number::kBFloat16:
      return p.plan.vector > 1 ? gather<BFloat16, 8>(p, stream) : gather<BFloat16, 1>(p, stream);
  }
}

void launch_embedding_scatter(const EmbeddingScatter& p, Number number, cudaStream_t stream) {
  if (p.batch.tokens == 0 || p.batch.dim == 0) return;
  if (p.sorted_ids == nullptr) {
    launch(embedding_scatter_atomic, blocks(p.plan.tiles), EmbeddingPlan::kThreads, 0, stream,
           p.batch, p.plan.tile, static_cast<const float*>(p.gradient),
           static_cast<float*>(p.d_table));
    return;
  }
  switch (number) {
    case Number::kFloat32:
      return scatter<float>(p, stream);
    case Number::kHalf:
      return scatter<Half>(p, stream);
    case Number::kBFloat16:
      return scatter<BFloat16>(p, stream);
  }
}

void launch_embedding_positions(const EmbeddingScatter& p, Number number, cudaStream_t stream) {
  if (p.batch.positions == 0 || p.batch.dim == 0) return;
  switch (number) {
    case Number::kFloat32:
      return positions<float>(p, stream);
    case Number::kHalf:
      return positions<Half>(p, stream);
    case Number::kBFloat16:
      return positions<BFloat16>(p, stream);
  }
}

}  // namespace cuda
}  // namespace seqrec
