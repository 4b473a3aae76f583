// SPDX-License-Identifier: Apache-2.0
// How a kernel is started: a function instead of <<< >>>, so that a C++ compiler can compile the
// same file for the CPU, and so that what a launch refuses names the kernel.
//
//   launch(gather<float>, grid, block, shared_bytes, stream, arguments...);
//
// Nothing here waits for the device, and all of it may be captured into a CUDA graph. The current
// device must be the one of the stream and of the memory.
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
  // an error that the runtime keeps would be blamed on the next call
  (void)cudaGetLastError();
  throw CudaError(std::string(what) + ": " + cudaGetErrorString(error));
}

/// The device attribute of the current device.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "the current CUDA device");
  check(cudaDeviceGetAttribute(&value, attribute, device), "an attribute of the CUDA device");
  return value;
}

struct LaunchShape {
  dim3 grid, block;
  std::size_t shared_bytes;
  cudaStream_t stream;
  bool cooperative;

  std::size_t blocks() const { return std::size_t{grid.x} * grid.y * grid.z; }
  unsigned threads() const { return block.x * block.y * block.z; }
};

namespace detail {

/// Shared memory that a kernel may be launched with before it was allowed more.
inline constexpr std::size_t kWithoutAsking = 48 << 10;

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
  (void)cudaGetLastError();
  throw CudaError("the CUDA kernel " + kernel_name(call) + " could not be launched: " +
                  cudaGetErrorString(error) + " (grid " + text_of(shape.grid) + ", block " +
                  text_of(shape.block) + ", " + std::to_string(shape.shared_bytes) +
                  " bytes of shared memory" + (shape.cooperative ? ", all blocks at once)" : ")"));
}

/// Allows a kernel all the shared memory that a block of the current device can have. It is always
/// the same number: with that of each launch, one thread would take from a kernel what another is
/// about to launch it with.
inline void allow_shared(const void* function, const char* call, const LaunchShape& shape) {
  if (shape.shared_bytes <= kWithoutAsking) return;
  const int most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  check_launch(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
               call, shape);
}

/// Refuses blocks that wait for one another and do not all fit on the current device at once.
/// The runtime does so too, but of a launch that is captured perhaps not before it is replayed.
template <typename... Parameters>
void check_resident(void (*kernel)(Parameters...), const char* call, const LaunchShape& shape) {
  int each = 0;
  const int threads = static_cast<int>(shape.threads());
  check_launch(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, shape.shared_bytes),
      call, shape);
  const int multiprocessors = device_attribute(cudaDevAttrMultiProcessorCount);
  if (shape.blocks() > static_cast<std::size_t>(each) * static_cast<std::size_t>(multiprocessors)) {
    check_launch(cudaErrorCooperativeLaunchTooLarge, call, shape);
  }
}

template <typename... Parameters>
void start(const char* call, void (*kernel)(Parameters...), const LaunchShape& shape,
           std::tuple<Parameters...> arguments) {
  const void* function = reinterpret_cast<const void*>(kernel);
  allow_shared(function, call, shape);
  if (shape.cooperative) check_resident(kernel, call, shape);
#ifdef SEQREC_CUDA_SHIM
  check_launch(shim::refusal(function, shape.grid, shape.block, shape.shared_bytes), call, shape);
  shim::run(kernel_name(call).c_str(), shape.grid, shape.block, shape.shared_bytes,
            shape.cooperative, [&] { std::apply(kernel, arguments); });
#else
  std::apply(
      [&](auto&... values) {
        void* addresses[] = {static_cast<void*>(&values)..., nullptr};
        check_launch(shape.cooperative
                         ? cudaLaunchCooperativeKernel(function, shape.grid, shape.block, addresses,
                                                       shape.shared_bytes, shape.stream)
                         : cudaLaunchKernel(function, shape.grid, shape.block, addresses,
                                            shape.shared_bytes, shape.stream),
                     call, shape);
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

}  // namespace cuda
}  // namespace seqrec

// Arguments: the kernel (a function, template arguments and all), grid, block, bytes of shared
// memory, stream, and what the kernel takes, converted to its parameters.
#define launch(...) ::seqrec::cuda::detail::launch_kernel(#__VA_ARGS__, __VA_ARGS__)
#define launch_cooperative(...) \
  ::seqrec::cuda::detail::launch_kernel_cooperative(#__VA_ARGS__, __VA_ARGS__)
