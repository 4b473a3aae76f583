// SPDX-License-Identifier: Apache-2.0
// What kernels share: 16-bit floats, memory that is read and written once, sums over warps and
// blocks, matrix products of a warp, asynchronous copies, barriers. Every function has two bodies,
// one for the GPU and one for the CPU (see shim/shim.h); kernels have one.
//
// A warp is whole: blocks are multiples of 32 threads, and all threads reach every barrier, shuffle
// and matrix product.
#pragma once

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/numbers.h"

#ifdef SEQREC_CUDA_SHIM
#include "cuda/shim/matrix.h"
#define SEQREC_SHARED(name) unsigned char* name = ::seqrec::cuda::shim::shared_memory()
#else
#include <cooperative_groups.h>
// The dynamic shared memory of the block, aligned to 128 bytes; carve it up by hand.
#define SEQREC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

namespace seqrec {
namespace cuda {

#define SEQREC_DEVICE __device__ __forceinline__

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

SEQREC_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) & 31; }
SEQREC_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) >> 5; }

// -------------------------------------------------------------------------------------- barriers

#ifdef SEQREC_CUDA_SHIM
#define grid_barrier() ::seqrec::cuda::shim::sync_grid(__FILE__, __LINE__)
#else
/// All threads of a cooperative launch meet; what each wrote before, all see after.
SEQREC_DEVICE void grid_barrier() { cooperative_groups::this_grid().sync(); }
#endif

/// Of a flag or counter in device memory: what was written before the release is seen after the
/// acquire that reads its value.
SEQREC_DEVICE unsigned load_acquire(const unsigned* p) {
#ifdef SEQREC_CUDA_SHIM
  const unsigned value = __atomic_load_n(p, __ATOMIC_ACQUIRE);
  shim::yield();
  return value;
#else
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
#endif
}

SEQREC_DEVICE void store_release(unsigned* p, unsigned value) {
#ifdef SEQREC_CUDA_SHIM
  __atomic_store_n(p, value, __ATOMIC_RELEASE);
#else
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
#endif
}

/// The old value.
SEQREC_DEVICE unsigned add_acquire_release(unsigned* p, unsigned value) {
#ifdef SEQREC_CUDA_SHIM
  return __atomic_fetch_add(p, value, __ATOMIC_ACQ_REL);
#else
  unsigned old;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(p), "r"(value)
               : "memory");
  return old;
#endif
}

// --------------------------------------------------------------------------------- device memory
// Loads and stores that tests count by the byte. T: any type of 1, 2, 4, 8 or 16 bytes; the address
// is a multiple of its size.

namespace detail {

template <int kBytes>
struct WordOf;
template <>
struct WordOf<1> {
  using type = unsigned char;
};
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

template <typename To, typename From>
SEQREC_DEVICE To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace detail

/// A plain load, of memory that this kernel may also write.
template <typename T>
SEQREC_DEVICE T load_global(const T* p) {
#ifdef SEQREC_CUDA_SHIM
  shim::count_load(p, sizeof(T));
#endif
  return *p;
}

/// A load of memory that nobody writes while the kernel runs.
template <typename T>
SEQREC_DEVICE T load_readonly(const T* p) {
#ifdef SEQREC_CUDA_SHIM
  return load_global(p);
#else
  using Word = typename detail::WordOf<sizeof(T)>::type;
  return detail::same_bits<T>(__ldg(reinterpret_cast<const Word*>(p)));
#endif
}

/// A load of memory that is read once: it does not push out what the caches hold.
template <typename T>
SEQREC_DEVICE T load_streaming(const T* p) {
#ifdef SEQREC_CUDA_SHIM
  return load_global(p);
#else
  using Word = typename detail::WordOf<sizeof(T)>::type;
  return detail::same_bits<T>(__ldcs(reinterpret_cast<const Word*>(p)));
#endif
}

/// A load past the cache of the multiprocessor, of memory that other blocks have written.
template <typename T>
SEQREC_DEVICE T load_shared_by_blocks(const T* p) {
#ifdef SEQREC_CUDA_SHIM
  return load_global(p);
#else
  using Word = typename detail::WordOf<sizeof(T)>::type;
  return detail::same_bits<T>(__ldcg(reinterpret_cast<const Word*>(p)));
#endif
}

template <typename T>
SEQREC_DEVICE void store_global(T* p, T value) {
#ifdef SEQREC_CUDA_SHIM
  shim::count_store(p, sizeof(T));
#endif
  *p = value;
}

/// A store of what is not read soon.
template <typename T>
SEQREC_DEVICE void store_streaming(T* p, T value) {
#ifdef SEQREC_CUDA_SHIM
  store_global(p, value);
#else
  using Word = typename detail::WordOf<sizeof(T)>::type;
  __stcs(reinterpret_cast<Word*>(p), detail::same_bits<Word>(value));
#endif
}

// ------------------------------------------------------------------------ sums of warps and blocks

struct Sum {
  template <typename T>
  SEQREC_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};

struct Maximum {
  template <typename T>
  SEQREC_DEVICE T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

struct Minimum {
  template <typename T>
  SEQREC_DEVICE T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};

/// Of groups of `kWidth` neighbouring lanes (a power of two); every lane gets the result, which is
/// the same bits in all of them.
template <typename Join, int kWidth = 32, typename T>
SEQREC_DEVICE T warp_reduce(T value, Join join = Join()) {
#pragma unroll
  for (int bits = kWidth / 2; bits > 0; bits /= 2) {
    value = join(value, __shfl_xor_sync(kAllLanes, value, bits));
  }
  return value;
}

template <typename T>
SEQREC_DEVICE T warp_sum(T value) {
  return warp_reduce<Sum>(value);
}
template <typename T>
SEQREC_DEVICE T warp_max(T value) {
  return warp_reduce<Maximum>(value);
}

/// Over a block of one dimension; every thread gets the result. `scratch`: 32 elements of shared
/// memory, free for others again only after the next barrier.
template <typename Join, typename T>
SEQREC_DEVICE T block_reduce(T value, T neutral, T* scratch, Join join = Join()) {
  value = warp_reduce<Join>(value, join);
  if (lane_index() == 0) scratch[warp_index()] = value;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / 32;
  return warp_reduce<Join>(lane_index() < warps ? scratch[lane_index()] : neutral, join);
}

template <typename T>
SEQREC_DEVICE T block_sum(T value, T* scratch) {
  return block_reduce<Sum>(value, T(0), scratch);
}

// ------------------------------------------------------------------------- asynchronous copies

/// Begins to copy `kBytes` (4, 8 or 16) from device to shared memory, both at multiples of it; with
/// `valid` false zeros arrive and `from` is not read.
template <int kBytes>
SEQREC_DEVICE void copy_async(void* to, const void* from, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "what cp.async copies");
#ifdef SEQREC_CUDA_SHIM
  shim::copy_async(to, from, kBytes, valid ? kBytes : 0);
#else
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(at), "l"(from), "n"(kBytes),
                 "r"(bytes)
                 : "memory");
  }
#endif
}

/// Closes the group of the copies that this thread has begun.
SEQREC_DEVICE void copy_async_commit() {
#ifdef SEQREC_CUDA_SHIM
  shim::copy_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Waits until at most the `kNewest` newest groups of this thread are under way. What other threads
/// copied is there after a barrier behind their wait.
template <int kNewest>
SEQREC_DEVICE void copy_async_wait() {
#ifdef SEQREC_CUDA_SHIM
  shim::copy_async_wait(kNewest);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
#endif
}

// ------------------------------------------------------------------------------ matrix products
// Fragments as PTX numbers them; with g = lane / 4 and t = lane % 4:
//   m16n8k16  a: rows g and g + 8 by turns, columns 2t, 2t + 1, then the same plus 8
//                (a[0] row g, a[1] row g + 8, a[2] row g columns + 8, a[3] row g + 8 columns + 8)
//             b: column g, rows 2t, 2t + 1 (b[0]) and plus 8 (b[1])
//             d: row g columns 2t, 2t + 1 (d[0], d[1]); row g + 8 (d[2], d[3])
//   m16n8k8   a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); b: (t, g), (t + 4, g); d as above

/// d += a b, of 16 x 16 and 16 x 8 elements of T (Half or BFloat16), the lower column or row in the
/// lower half of a register.
template <typename T>
SEQREC_DEVICE void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4],
                                const std::uint32_t (&b)[2]) {
#ifdef SEQREC_CUDA_SHIM
  shim::mma_m16n8k16<T>(d, a, b);
#else
  if constexpr (sizeof(T) == 2 && T::kExponentBits == 5) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

/// d += a b, of 16 x 8 and 8 x 8 numbers that to_tf32 has rounded.
SEQREC_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const std::uint32_t (&a)[4],
                                    const std::uint32_t (&b)[2]) {
#ifdef SEQREC_CUDA_SHIM
  shim::mma_m16n8k8_tf32(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/// Four 8 x 8 matrices of 16-bit elements from shared memory: lane 8 i + j gives the address of row
/// j of matrix i (a multiple of 16 bytes); register i of a lane gets columns 2t and 2t + 1 of row g
/// of matrix i, with `kTransposed` rows 2t and 2t + 1 of column g.
template <bool kTransposed = false>
SEQREC_DEVICE void load_matrices(std::uint32_t (&to)[4], const void* row) {
#ifdef SEQREC_CUDA_SHIM
  shim::load_matrices(to, 4, row, kTransposed);
#else
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
  }
#endif
}

/// Two matrices; the addresses of lanes 16 and above are not used.
template <bool kTransposed = false>
SEQREC_DEVICE void load_matrices(std::uint32_t (&to)[2], const void* row) {
#ifdef SEQREC_CUDA_SHIM
  shim::load_matrices(to, 2, row, kTransposed);
#else
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(at)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(at)
                 : "memory");
  }
#endif
}

}  // namespace cuda
}  // namespace seqrec
