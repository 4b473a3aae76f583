// SPDX-License-Identifier: Apache-2.0
// The Python module seqrec_fast._cuda. The CUDA runtime is part of it and looks for the driver when
// it is first asked for something, so that the module can be imported where there is none.
#include <exception>
#include <stdexcept>
#include <string>

#include "cuda/binding/binding.h"

#ifdef SEQREC_CUDA_SHIM
#include "cuda/binding/emulation.h"
#endif

// The build names the files beside this one: SEQREC_CUDA_OPERATIONS(DO) is DO(embedding) ...
#define SEQREC_DECLARE(name) void bind_##name(py::module_& m);

namespace seqrec {
namespace cuda {

SEQREC_CUDA_OPERATIONS(SEQREC_DECLARE)

namespace {

#ifndef SEQREC_CUDA_ARCHS
#define SEQREC_CUDA_ARCHS ""
#endif

py::dict build_info() {
  py::dict info;
  info["version"] = SEQREC_VERSION;
#ifdef SEQREC_CUDA_SHIM
  info["emulated"] = true;
  info["toolkit"] = "";
#else
  info["emulated"] = false;
  info["toolkit"] =
      std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
#endif
  info["architectures"] = SEQREC_CUDA_ARCHS;
  return info;
}

/// Of the GPUs that the kernels are compiled for, the lowest.
constexpr int kLeastCapability = 8;

/// Makes a device the current one of the runtime in this module, which need not know what the one
/// that torch brings has been told.
void use_device(int device) {
  int current = -1;
  check(cudaGetDevice(&current), "the current CUDA device");
  if (current != device) check(cudaSetDevice(device), "a CUDA device");
}

/// Why no kernel can be started; empty where one can.
std::string why_not() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    int driver = 0;
    const bool known = cudaDriverGetVersion(&driver) == cudaSuccess && driver != 0;
    return known ? cudaGetErrorString(error) : "no NVIDIA driver was found";
  }
  if (devices == 0) return "no CUDA device was found";
  for (int device = 0; device < devices; ++device) {
    int major = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
          "the compute capability of a CUDA device");
    if (major >= kLeastCapability) return "";
  }
  return "no device has compute capability " + std::to_string(kLeastCapability) +
         ".0 or above, which the kernels need";
}

void translate(std::exception_ptr pointer) {
  const auto raise = [](const char* type, const std::exception& error) {
    PyErr_SetString(py::module_::import("seqrec_fast.errors").attr(type).ptr(), error.what());
  };
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const CudaError& error) {
    raise("DeviceError", error);
  } catch (const std::invalid_argument& error) {
    raise("InputError", error);
  }
}

}  // namespace
}  // namespace cuda
}  // namespace seqrec

PYBIND11_MODULE(SEQREC_CUDA_MODULE, m, py::mod_gil_not_used()) {
  m.doc() = "CUDA kernels of seqrec_fast; use seqrec_fast.ops instead.";
  py::register_local_exception_translator(&seqrec::cuda::translate);
  m.def("build_info", &seqrec::cuda::build_info);
  m.def("why_not", &seqrec::cuda::why_not);
  m.def("use_device", &seqrec::cuda::use_device);
#define SEQREC_BIND(name) seqrec::cuda::bind_##name(m);
  SEQREC_CUDA_OPERATIONS(SEQREC_BIND)
#ifdef SEQREC_CUDA_SHIM
  seqrec::cuda::bind_emulation(m);
#endif
}
