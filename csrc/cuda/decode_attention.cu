// SPDX-License-Identifier: Apache-2.0
// Decode attention: one query a row and head against cached keys and values.
//
// Every cached number is used once, so that memory sets the pace: eight lanes read a key, 16 bytes
// each, a block sixteen keys at a time, a few of them ahead. Each eight lanes keep a softmax of
// their own, with a running maximum; those of a block are put together in its end, those of several
// blocks of a row by a second launch. The order of all sums depends on shapes alone.
#include <cmath>

#include "cuda/decode_attention.h"
#include "cuda/device.cuh"

namespace seqrec {
namespace cuda {
namespace {

constexpr int kThreads = kDecodeThreads, kLanes = kDecodeLanes, kGroups = kThreads / kLanes;
constexpr int kWarps = kThreads / 32, kMergeThreads = 64;
constexpr float kLog2E = 1.44269504f;

/// What scores are taken relative to. A maximum of minus infinity would make their difference NaN.
__device__ __forceinline__ float reference_of(float maximum) {
  return maximum == -INFINITY ? 0.0f : maximum;
}

__device__ __forceinline__ float weight(float score, float reference) {
  return exp2f((score - reference) * kLog2E);
}

struct Cache {
  std::int64_t length, begin;  // begin: where it lies, if not in pages
};

/// Where a row's cache begins or ends, of those that lie end to end. Offsets come from the caller:
/// whatever they say, it is inside.
__device__ __forceinline__ std::int64_t offset_of(const DecodeAttention& p, std::int64_t row) {
  const std::int64_t at = load_readonly(p.offsets + row);
  return at < 0 ? 0 : at > p.tokens ? p.tokens : at;
}

/// How many tokens a row has cached. Whatever the caller's numbers say, all of them exist.
__device__ __forceinline__ Cache cache_of(const DecodeAttention& p, std::int64_t row) {
  std::int64_t room = p.row_pages * p.page_tokens, begin = 0;
  if (p.offsets != nullptr) {
    begin = offset_of(p, row);
    const std::int64_t end = offset_of(p, row + 1);
    room = end > begin ? end - begin : 0;
  }
  if (p.lengths == nullptr) return {room, begin};
  const std::int64_t length = load_readonly(p.lengths + row);
  return {length < 0 ? 0 : length > room ? room : length, begin};
}

/// The first slot of a row: each slot is a chunk of a row's cache.
__device__ __forceinline__ std::int64_t first_slot(const DecodeAttention& p, std::int64_t row) {
  if (p.slots == p.rows) return row;
  if (p.offsets == nullptr) return row * (p.slots / p.rows);
  return offset_of(p, row) / p.chunk + row;
}

/// The last row whose first slot is not behind `slot`.
__device__ __forceinline__ std::int64_t row_of_slot(const DecodeAttention& p, std::int64_t slot) {
  if (p.slots == p.rows) return slot;
  if (p.offsets == nullptr) return slot / (p.slots / p.rows);
  std::int64_t from = 0, to = p.rows;
  while (to - from > 1) {
    const std::int64_t middle = from + (to - from) / 2;
    if (first_slot(p, middle) <= slot) {
      from = middle;
    } else {
      to = middle;
    }
  }
  return from;
}

/// The place of a token among pages and in its page; a page of -1 does not exist.
struct Place {
  std::int64_t page, token;
};

__device__ __forceinline__ Place place_of(const DecodeAttention& p, std::int64_t row,
                                          const Cache& cache, std::int64_t token) {
  if (p.offsets != nullptr) return {0, cache.begin + token};
  // lengths of caches fit in 32 bits, whose division is quick
  const unsigned number = static_cast<unsigned>(token), size = static_cast<unsigned>(p.page_tokens);
  const std::int64_t at = row * p.table_row + number / size;
  const std::int64_t page =
      p.wide ? load_readonly(static_cast<const std::int64_t*>(p.page_table) + at)
             : load_readonly(static_cast<const std::int32_t*>(p.page_table) + at);
  return {page >= 0 && page < p.pages ? page : -1, number % size};
}

/// This lane's numbers of a row of a head, as float32; zeros beyond the width.
template <typename T, int kPieces>
struct Numbers {
  static constexpr int kVector = 16 / sizeof(T);
  float at[kPieces][kVector];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
#pragma unroll
      for (int c = 0; c < kVector; ++c) at[i][c] = 0.0f;
    }
  }

  __device__ __forceinline__ void read(const T* row, int width, bool vectors) {
    const int lane = threadIdx.x % kLanes;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int first = (lane + i * kLanes) * kVector;
      if (vectors) {
        uint4 bits = make_uint4(0, 0, 0, 0);
        if (first < width) bits = load_readonly(reinterpret_cast<const uint4*>(row + first));
        unpack(bits, at[i]);
      } else {
#pragma unroll
        for (int c = 0; c < kVector; ++c) {
          at[i][c] = first + c < width ? to_float(load_readonly(row + first + c)) : 0.0f;
        }
      }
    }
  }

  static __device__ __forceinline__ void unpack(const uint4& bits, float (&to)[kVector]) {
    struct Vector {
      T at[kVector];
    };
    const Vector numbers = detail::same_bits<Vector>(bits);
#pragma unroll
    for (int c = 0; c < kVector; ++c) to[c] = to_float(numbers.at[c]);
  }
};

template <typename T>
__device__ __forceinline__ const T* row_at(const DecodeView& view, std::int64_t page,
                                           std::int64_t token, std::int64_t head) {
  return static_cast<const T*>(view.data) + page * view.page + token * view.token +
         head * view.head;
}

/// Writes the numbers of a row that is done: `sums / total`, or zeros where nothing is cached.
template <typename T>
__device__ __forceinline__ void write_out(const DecodeAttention& p, std::int64_t row,
                                          std::int64_t head, int c, float sum, float total,
                                          bool cached) {
  T* out = static_cast<T*>(p.out) + (row * p.heads + head) * p.width;
  store_global(out + c, from_float<T>(cached ? sum / total : 0.0f));
}

template <typename T, int kPieces>
__global__ void __launch_bounds__(kThreads) decode_attention(DecodeAttention p) {
  using Row = Numbers<T, kPieces>;
  constexpr int kVector = Row::kVector, kAhead = kPieces >= 4 ? 8 / kPieces : 4;
  constexpr int kPadded = kPieces * kVector * kLanes;
  SEQREC_SHARED(shared);
  float* warp_sums = reinterpret_cast<float*>(shared);  // [kWarps][kPadded]
  float* warp_totals = warp_sums + kWarps * kPadded;    // [kWarps]
  float* warp_tops = warp_totals + kWarps;              // [kWarps]

  const unsigned heads = static_cast<unsigned>(p.heads);
  const std::int64_t slot = blockIdx.x / heads, head = blockIdx.x % heads;
  const std::int64_t row = row_of_slot(p, slot);
  const Cache cache = cache_of(p, row);
  const std::int64_t begin = (slot - first_slot(p, row)) * p.chunk;
  const bool whole = p.slots == p.rows;  // the block alone makes the result
  // the same for all threads of the block
  if (!whole && (begin < 0 || begin >= cache.length)) return;
  const std::int64_t end = cache.length - begin < p.chunk ? cache.length : begin + p.chunk;

  const int width = static_cast<int>(p.width), thread = threadIdx.x;
  const int warp = thread / 32, group = thread / kLanes;
  Row query, sums;
  query.read(row_at<T>(p.q, 0, row, head), width, p.vectors);
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
#pragma unroll
    for (int c = 0; c < kVector; ++c) query.at[i][c] *= p.scale;
  }
  sums.clear();
  float top = -INFINITY, total = 0.0f;

  for (std::int64_t base = begin; base < end; base += kGroups * kAhead) {
    Row numbers[kAhead];
    float scores[kAhead];
    const T* values[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const std::int64_t token = base + a * kGroups + group;
      values[a] = nullptr;
      numbers[a].clear();
      scores[a] = -INFINITY;
      if (token < end) {
        const Place place = place_of(p, row, cache, token);
        scores[a] = 0.0f;
        if (place.page < 0) {
          scores[a] = NAN;  // seen in the result, where a refusal would wait for the device
        } else {
          values[a] = row_at<T>(p.values, place.page, place.token, head);
          numbers[a].read(row_at<T>(p.keys, place.page, place.token, head), width, p.vectors);
        }
      }
    }
    float highest = top;
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      float part = 0.0f;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
#pragma unroll
        for (int c = 0; c < kVector; ++c) part = fmaf(query.at[i][c], numbers[a].at[i][c], part);
      }
#pragma unroll
      for (int bits = 1; bits < kLanes; bits *= 2) part += __shfl_xor_sync(kAllLanes, part, bits);
      scores[a] += part;
      highest = fmaxf(highest, scores[a]);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      numbers[a].clear();
      if (values[a] != nullptr) numbers[a].read(values[a], width, p.vectors);
    }
    const float reference = reference_of(highest), shrink = weight(top, reference);
    top = highest;
    total *= shrink;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
#pragma unroll
      for (int c = 0; c < kVector; ++c) sums.at[i][c] *= shrink;
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const float w = weight(scores[a], reference);
      total += w;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
#pragma unroll
        for (int c = 0; c < kVector; ++c) {
          sums.at[i][c] = fmaf(w, numbers[a].at[i][c], sums.at[i][c]);
        }
      }
    }
  }

  // the four groups of a warp, then the warps
  float highest = top;
#pragma unroll
  for (int bits = kLanes; bits < 32; bits *= 2) {
    highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, bits));
  }
  const float shrink = weight(top, reference_of(highest));
  total *= shrink;
#pragma unroll
  for (int bits = kLanes; bits < 32; bits *= 2) total += __shfl_xor_sync(kAllLanes, total, bits);
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
#pragma unroll
    for (int c = 0; c < kVector; ++c) {
      float sum = sums.at[i][c] * shrink;
#pragma unroll
      for (int bits = kLanes; bits < 32; bits *= 2) sum += __shfl_xor_sync(kAllLanes, sum, bits);
      if (thread % 32 < kLanes) {
        warp_sums[warp * kPadded + (thread % kLanes + i * kLanes) * kVector + c] = sum;
      }
    }
  }
  if (thread % 32 == 0) {
    warp_totals[warp] = total;
    warp_tops[warp] = highest;
  }
  __syncthreads();

  float best = warp_tops[0];
  for (int w = 1; w < kWarps; ++w) best = fmaxf(best, warp_tops[w]);
  float shares[kWarps], all = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    shares[w] = weight(warp_tops[w], reference_of(best));
    all = fmaf(warp_totals[w], shares[w], all);
  }
  float* part = whole ? nullptr : p.parts + (slot * p.heads + head) * (p.width + 2);
  for (int c = thread; c < width; c += kThreads) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum = fmaf(warp_sums[w * kPadded + c], shares[w], sum);
    if (whole) {
      write_out<T>(p, row, head, c, sum, all, cache.length > 0);
    } else {
      store_global(part + c, sum);
    }
  }
  if (!whole && thread == 0) {
    store_global(part + width, all);
    store_global(part + width + 1, best);
  }
}

/// A block takes a row and a head.
template <typename T>
__global__ void __launch_bounds__(kMergeThreads) decode_attention_merge(DecodeAttention p) {
  const unsigned heads = static_cast<unsigned>(p.heads);
  const std::int64_t row = blockIdx.x / heads, head = blockIdx.x % heads;
  const std::int64_t length = cache_of(p, row).length, first = first_slot(p, row);
  const int count = static_cast<int>((length + p.chunk - 1) / p.chunk);
  const std::int64_t from_chunk_to_chunk = p.heads * (p.width + 2);
  const float* parts = p.parts + (first * p.heads + head) * (p.width + 2);
  float best = -INFINITY, total = 0.0f;
  for (int i = 0; i < count; ++i) {
    best = fmaxf(best, load_global(parts + i * from_chunk_to_chunk + p.width + 1));
  }
  const float reference = reference_of(best);
  for (int i = 0; i < count; ++i) {
    const float* part = parts + i * from_chunk_to_chunk + p.width;
    total = fmaf(load_global(part), weight(load_global(part + 1), reference), total);
  }
  for (int c = threadIdx.x; c < p.width; c += kMergeThreads) {
    float sum = 0.0f;
    for (int i = 0; i < count; ++i) {
      const float* part = parts + i * from_chunk_to_chunk;
      sum = fmaf(load_global(part + c), weight(load_global(part + p.width + 1), reference), sum);
    }
    write_out<T>(p, row, head, c, sum, total, length > 0);
  }
}

template <typename T, int kPieces>
void start(const DecodeAttention& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.slots * p.heads)), block(kThreads);
  constexpr std::size_t kBytes = decode_shared_bytes(kPieces, sizeof(T));
  launch(decode_attention<T, kPieces>, grid, block, kBytes, stream, p);
}

template <typename T>
void start(const DecodeAttention& p, cudaStream_t stream) {
  switch (p.pieces) {
    case 1:
      return start<T, 1>(p, stream);
    case 2:
      return start<T, 2>(p, stream);
    case 4:
      return start<T, 4>(p, stream);
    default:
      // of 16-bit numbers, 8 pieces are more than the most wide head has
      if constexpr (sizeof(T) == 4) start<T, kDecodeMostPieces>(p, stream);
  }
}

template <typename T>
void merge(const DecodeAttention& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.rows * p.heads)), block(kMergeThreads);
  launch(decode_attention_merge<T>, grid, block, 0, stream, p);
}

}  // namespace

void launch_decode_attention(const DecodeAttention& problem, Number type, cudaStream_t stream) {
  switch (type) {
    case Number::kFloat32:
      return start<float>(problem, stream);
    case Number::kHalf:
      return start<Half>(problem, stream);
    case Number::kBFloat16:
      return start<BFloat16>(problem, stream);
  }
}

void launch_decode_attention_merge(const DecodeAttention& problem, Number type,
                                   cudaStream_t stream) {
  switch (type) {
    case Number::kFloat32:
      return merge<float>(problem, stream);
    case Number::kHalf:
      return merge<Half>(problem, stream);
    case Number::kBFloat16:
      return merge<BFloat16>(problem, stream);
  }
}

}  // namespace cuda
}  // namespace seqrec
