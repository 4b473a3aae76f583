// SPDX-License-Identifier: Apache-2.0
// The few functions of the CUDA runtime that launchers use. What waits for a device is left out on
// purpose: no kernel of this project may synchronise with the host.
#pragma once

#include <cstddef>
#include <cstring>
#include <utility>

#include "cuda/shim/engine.h"

using cudaStream_t = struct CUstream_st*;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorCooperativeLaunchTooLarge = 720,
};

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrCooperativeLaunch = 95,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3 };

namespace seqrec {
namespace cuda {
namespace shim {

/// What cudaGetLastError has to tell, and whoever calls next gets.
inline thread_local cudaError_t last_error = cudaSuccess;

inline cudaError_t refused(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

/// Why a launch cannot be; whole warps are a rule of this project.
inline cudaError_t refusal(const void* function, dim3 grid, dim3 block, std::size_t shared_bytes) {
  const unsigned threads = block.x * block.y * block.z;
  if (std::size_t{grid.x} * grid.y * grid.z == 0 || threads == 0 || threads % kWarp != 0 ||
      grid.y > 65535 || grid.z > 65535) {
    return refused(cudaErrorInvalidConfiguration);
  }
  if (blocks_per_multiprocessor(threads, shared_bytes) == 0 ||
      shared_bytes > allowed_shared(function)) {
    return refused(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

}  // namespace shim
}  // namespace cuda
}  // namespace seqrec

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
  }
  return "unknown error";
}

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  return seqrec::cuda::shim::refused(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
inline cudaError_t cudaGetLastError() {
  return std::exchange(seqrec::cuda::shim::last_error, cudaSuccess);
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const seqrec::cuda::shim::Device& device = seqrec::cuda::shim::device;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = device.multiprocessors;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = device.threads_per_multiprocessor;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = device.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = device.minor;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = device.shared_per_multiprocessor;
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = 1;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = device.shared_per_block;
      break;
  }
  return cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute, int bytes) {
  namespace shim = seqrec::cuda::shim;
  if (bytes > shim::device.shared_per_block) return shim::refused(cudaErrorInvalidValue);
  shim::allow_shared(function, static_cast<std::size_t>(bytes));
  return cudaSuccess;
}

template <typename F>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, F*, int threads,
                                                          std::size_t shared_bytes) {
  *blocks =
      seqrec::cuda::shim::blocks_per_multiprocessor(static_cast<unsigned>(threads), shared_bytes);
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  if (bytes != 0) std::memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  if (bytes != 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
