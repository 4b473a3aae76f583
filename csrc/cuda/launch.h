// SPDX-License-Identifier: Apache-2.0
// How a kernel is started: a function instead of <<< >>>, so that a C++ compiler can compile the
// same file for the CPU, and so that what a launch refuses names the kernel.
//
//   launch(gather<float>, grid, block, shared_bytes, stream, arguments...);
//
// Nothing here waits for the device, and all of it may be captured into a CUDA graph.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "cuda/stream.h"

#ifdef SEQREC_CUDA_SHIM
#include "cuda/shim/shim.h"
#else
#include <cuda_runtime.h>
#endif

namespace seqrec {
namespace cuda {

/// What the CUDA runtime refused.
class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// `what` is what was tried, for the message.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw CudaError(std::string(what) + ": " + cudaGetErrorString(error));
}

struct LaunchShape {
  dim3 grid, block;
  std::size_t shared_bytes;
  cudaStream_t stream;
  bool cooperative;
};

namespace detail {

/// "gather<float>, grid, ..." names the kernel `gather`.
inline std::string kernel_name(const char* call) {
  const std::string text(call);
  const std::size_t end = text.find_first_of("<,( ");
  const std::string name = text.substr(0, end);
  const std::size_t colon = name.rfind(':');
  return colon == std::string::npos ? name : name.substr(colon + 1);
}

inline std::string text_of(const dim3& size) {
  return std::to_string(size.x) + " x " + std::to_string(size.y) + " x " + std::to_string(size.z);
}

inline void check_launch(cudaError_t error, const char* call, const LaunchShape& shape) {
  if (error == cudaSuccess) return;
  throw CudaError("the CUDA kernel " + kernel_name(call) +
                  " could not be launched: " + cudaGetErrorString(error) + " (grid " +
                  text_of(shape.grid) + ", block " + text_of(shape.block) + ", " +
                  std::to_string(shape.shared_bytes) + " bytes of shared memory)");
}

template <typename... Parameters>
void start(const char* call, void (*kernel)(Parameters...), const LaunchShape& shape,
           std::tuple<Parameters...> arguments) {
#ifdef SEQREC_CUDA_SHIM
  cudaError_t error = cudaSuccess;
  const unsigned threads = shape.block.x * shape.block.y * shape.block.z;
  const std::size_t blocks = static_cast<std::size_t>(shape.grid.x) * shape.grid.y * shape.grid.z;
  const int resident = shim::blocks_per_multiprocessor(threads, shape.shared_bytes);
  // whole warps are a rule of this project
  if (blocks == 0 || threads == 0 || threads % 32 != 0 || shape.grid.y > 65535 ||
      shape.grid.z > 65535) {
    error = cudaErrorInvalidConfiguration;
  } else if (resident == 0) {
    error = cudaErrorInvalidValue;
  } else if (shape.cooperative &&
             blocks > static_cast<std::size_t>(resident) *
                          static_cast<std::size_t>(shim::device.multiprocessors)) {
    error = cudaErrorCooperativeLaunchTooLarge;
  }
  check_launch(error, call, shape);
  shim::run(kernel_name(call).c_str(), shape.grid, shape.block, shape.shared_bytes,
            shape.cooperative, [&] { std::apply(kernel, arguments); });
#else
  const void* function = reinterpret_cast<const void*>(kernel);
  constexpr std::size_t kWithoutAsking = 48 << 10;
  if (shape.shared_bytes > kWithoutAsking) {
    check_launch(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shape.shared_bytes)),
                 call, shape);
  }
  std::apply(
      [&](auto&... values) {
        void* addresses[] = {static_cast<void*>(&values)..., nullptr};
        const cudaError_t error =
            shape.cooperative
                ? cudaLaunchCooperativeKernel(function, shape.grid, shape.block, addresses,
                                              shape.shared_bytes, shape.stream)
                : cudaLaunchKernel(function, shape.grid, shape.block, addresses, shape.shared_bytes,
                                   shape.stream);
        // an error that is kept by the runtime would be blamed on the next call
        if (error != cudaSuccess) (void)cudaGetLastError();
        check_launch(error, call, shape);
      },
      arguments);
#endif
}

template <typename... Parameters, typename... Arguments>
void launch_kernel(const char* call, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                   std::size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  start(call, kernel, LaunchShape{grid, block, shared_bytes, stream, false},
        std::tuple<Parameters...>(std::forward<Arguments>(arguments)...));
}

template <typename... Parameters, typename... Arguments>
void launch_kernel_cooperative(const char* call, void (*kernel)(Parameters...), dim3 grid,
                               dim3 block, std::size_t shared_bytes, cudaStream_t stream,
                               Arguments&&... arguments) {
  start(call, kernel, LaunchShape{grid, block, shared_bytes, stream, true},
        std::tuple<Parameters...>(std::forward<Arguments>(arguments)...));
}

}  // namespace detail

/// The device attribute of the current device.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "the current CUDA device");
  check(cudaDeviceGetAttribute(&value, attribute, device), "an attribute of the CUDA device");
  return value;
}

/// Blocks of a kernel that fit on one multiprocessor of the current device.
template <typename... Parameters>
int resident_blocks(void (*kernel)(Parameters...), int threads, std::size_t shared_bytes) {
  int blocks = 0;
#ifndef SEQREC_CUDA_SHIM
  constexpr std::size_t kWithoutAsking = 48 << 10;
  if (shared_bytes > kWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    if (error != cudaSuccess) {
      (void)cudaGetLastError();
      return 0;
    }
  }
#endif
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes),
        "the occupancy of a kernel");
  return blocks;
}

}  // namespace cuda
}  // namespace seqrec

// Arguments: the kernel (a function, template arguments and all), grid, block, bytes of shared
// memory, stream, and what the kernel takes, converted to its parameters.
#define launch(...) ::seqrec::cuda::detail::launch_kernel(#__VA_ARGS__, __VA_ARGS__)
#define launch_cooperative(...) \
  ::seqrec::cuda::detail::launch_kernel_cooperative(#__VA_ARGS__, __VA_ARGS__)
