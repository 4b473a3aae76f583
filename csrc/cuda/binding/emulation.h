// SPDX-License-Identifier: Apache-2.0
// What only the emulated module has: tests choose the device that is pretended and the order of the
// threads, and read which kernels were started and what they loaded and stored.
#pragma once

#include <utility>
#include <vector>

#include "cuda/binding/binding.h"

namespace seqrec {
namespace cuda {

inline void bind_emulation(py::module_& parent) {
  py::module_ m = parent.def_submodule("emulation");
  m.def("set_order", &shim::set_order, py::arg("seed"));
  m.def(
      "set_device",
      [](int multiprocessors, int shared_per_block, int major) {
        shim::device.multiprocessors = multiprocessors;
        shim::device.major = major;
        shim::device.shared_per_block = shared_per_block;
        shim::device.shared_per_multiprocessor = shared_per_block + 1024;
      },
      py::arg("multiprocessors"), py::arg("shared_per_block") = shim::Device().shared_per_block,
      py::arg("major") = shim::Device().major);
  // (address, bytes) of each region whose loads and stores are counted on their own
  m.def("start_counting", [](const std::vector<std::pair<std::uintptr_t, std::size_t>>& watched) {
    shim::start_counting(watched);
  });
  // of everything, then of each region: loads, bytes loaded, stores, bytes stored
  m.def("stop_counting", [] {
    py::list found;
    for (const shim::Counter& c : shim::stop_counting()) {
      found.append(py::make_tuple(c.loads, c.loaded_bytes, c.stores, c.stored_bytes));
    }
    return found;
  });
  // since the last call: name, blocks, threads of a block, bytes of shared memory, cooperative
  m.def("take_launches", [] {
    py::list found;
    for (const shim::Launched& l : shim::take_launches()) {
      found.append(py::make_tuple(l.name, py::make_tuple(l.grid.x, l.grid.y, l.grid.z),
                                  py::make_tuple(l.block.x, l.block.y, l.block.z), l.shared_bytes,
                                  l.cooperative));
    }
    return found;
  });
}

}  // namespace cuda
}  // namespace seqrec
